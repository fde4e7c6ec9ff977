"""How a command starts: quietly, with the settings of Keras that the library is made for; and how it leaves its host.

Importing frcnn changes nothing in a process. What a command changes for its own time it puts back, but for the memory
settings of the C library.
"""

import contextlib
import importlib.machinery
import os
import subprocess
import sys
import warnings

from frcnn.machine import keep_freed_memory

BACKENDS = ("tensorflow", "jax", "torch")
SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}  # of ~/.keras/keras.json
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # or a machine without GPU is told of an error at every start
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # or JAX takes three quarters of a GPU's memory when it first touches it
}
# Of what TensorFlow says while it is imported, passes on all but its notes (I0000 00:00:...) and two errors that are
# none. In a process of its own, so that the last words of a crash are passed on, too.
_FILTER = """
import os, re, sys
chatter = re.compile(
    rb"I\\d{4} |\\d{4}-\\d\\d-\\d\\d [\\d:.]+: I |WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions: |.*Unable to register cu|.*computation placer already registered"
)
for line in sys.stdin.buffer:
    if not chatter.match(line):
        os.write(2, line)
"""


@contextlib.contextmanager
def command_settings():
    """The block runs with a command's settings; afterwards the host's are back."""
    format_warning = warnings.formatwarning
    is_quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ  # who set it wants to see something
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        stack.callback(setattr, warnings, "formatwarning", format_warning)
        warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"  # for people: no file and line of ours
        warnings.filterwarnings("ignore", module="PIL")  # of damaged pictures, without their names
        for name in ENVIRONMENT.keys() - os.environ.keys():
            os.environ[name] = ENVIRONMENT[name]
            stack.callback(os.environ.pop, name, None)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a console may lack letters of a file's name
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        if "keras" in sys.modules:
            _set_keras(sys.modules["keras"], stack)
        else:
            finder = _CarefulFinder(stack, is_quiet)
            sys.meta_path.insert(0, finder)
            stack.callback(sys.meta_path.remove, finder)
        yield


class _CarefulFinder:
    """Has Keras and TensorFlow, which most commands import late or never, imported with care; see importlib's manual.

    With another backend, too, Keras imports TensorFlow, in `fit`.
    """

    def __init__(self, stack, is_quiet):
        self.stack, self.is_quiet = stack, is_quiet

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in ("keras", "tensorflow") else None
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.load(name, execute, module)
        return spec

    def load(self, name, execute, module):
        if name == "keras":
            keep_freed_memory()  # before a backend has threads at work
        is_quiet, self.is_quiet = self.is_quiet, False  # TensorFlow may be imported by Keras
        try:
            with _quiet() if is_quiet else contextlib.nullcontext():
                execute(module)
            if name == "keras" and module.config.backend() not in BACKENDS:
                raise ValueError("another backend")
        except Exception as error:
            if name != "keras":
                raise
            raise ValueError(_why_keras_does_not_start(error)) from error
        finally:
            self.is_quiet = is_quiet
        if name == "keras":
            _set_keras(module, self.stack)


def _set_keras(keras, stack):
    for name, value in SETTINGS.items():
        change, old = getattr(keras.config, f"set_{name}"), getattr(keras.config, name)()
        if old != value:
            stack.callback(change, old)
            change(value)
    policy = keras.config.dtype_policy()
    if policy.name != SETTINGS["floatx"]:
        stack.callback(keras.config.set_dtype_policy, policy)
        keras.config.set_dtype_policy(SETTINGS["floatx"])


def _why_keras_does_not_start(error):
    """One sentence that names the package or the file, and the cure."""
    file = os.path.join(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras")), "keras.json")
    settings = sys.modules.get("keras.src.backend.config")
    if settings is None or not hasattr(settings, "backend"):
        return f"{file}: Keras cannot use it ({type(error).__name__}: {error}): mend it, or delete it"
    name = settings.backend()
    place = "KERAS_BACKEND" if os.environ.get("KERAS_BACKEND") else file if os.path.exists(file) else "Keras"
    if name not in BACKENDS:
        return f"{place} names the backend {name!r}: set KERAS_BACKEND to {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name:
        return f"{place} names the backend {name}, which is not installed: pip install {name}, or set KERAS_BACKEND"
    return f"Keras does not start on {name} ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


@contextlib.contextmanager
def _quiet():
    """Pass on what the block writes to file descriptor 2, by C code too, through `_FILTER`."""
    sys.stderr.flush()
    try:
        shown = os.dup(2)
        arguments = [sys.executable, "-I", "-S", "-c", _FILTER]
        # In a session of its own: Ctrl-C ends the command, and its last words are still to be passed on.
        reader = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    except (OSError, TypeError):  # no standard error, no memory for a process, no program named Python
        yield
        return
    os.dup2(reader.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        reader.stdin.close()
        reader.wait()
