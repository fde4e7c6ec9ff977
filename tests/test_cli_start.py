"""How a command starts, in processes of their own: quietly, whatever keras.json says; and what an import changes."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from frcnn.cli import main, start

ROOT = Path(__file__).parents[1]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_", "XLA_", "MALLOC_"))}
KERAS_JSON = {"floatx": "float16", "epsilon": 1e-2, "backend": "tensorflow", "image_data_format": "channels_first"}


def python(*arguments, **environment):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=CLEAN | environment, capture_output=True, text=True, check=False)


@pytest.mark.tensorflow
def test_a_good_start_says_nothing_but_our_words(tmp_path):
    """With a keras.json of another mind and an ASCII console, too."""
    (tmp_path / "keras.json").write_text(json.dumps(KERAS_JSON))
    arguments = ["-m", "frcnn", "inspect", "model", "--config", "config/demo.yaml"]
    result = python(*arguments, KERAS_HOME=str(tmp_path), PYTHONIOENCODING="ascii", TF_ENABLE_ONEDNN_OPTS="1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "11,196,372" in result.stdout


WITHOUT_DOCSTRINGS = """
from frcnn.cli import main
from frcnn.config import load_config, save_config
save_config(load_config(), "{folder}", ["größe"])
for arguments in (["inspect", "config", "--config", "{folder}/config.yaml"], ["classify", "train", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
"""


def test_without_docstrings_on_a_console_without_letters(tmp_path):
    program = WITHOUT_DOCSTRINGS.format(folder=tmp_path)
    result = python("-OO", "-c", program, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "") and "train a classifier and write its run" in result.stdout
    missing = python("-m", "frcnn", "doctor", "чашка.txt", PYTHONIOENCODING="cp1252")
    assert missing.returncode == 2 and missing.stderr.startswith("frcnn doctor: \\u0447")


IMPORTS = """
import json, os, sys, warnings
import numpy
def state():
    import socket
    return repr([sorted(os.environ.items()), warnings.formatwarning, warnings.showwarning, sys.getrecursionlimit(),
                 socket.getdefaulttimeout(), [f for f in warnings.filters if "frcnn" in repr(f) or "PIL" in repr(f)]])
import keras, cv2, PIL.Image
from frcnn import machine
called = []
machine.keep_freed_memory = lambda: called.append(1)
libraries = lambda: repr([cv2.getNumThreads(), PIL.Image.MAX_IMAGE_PIXELS, keras.config.image_data_format()])
before = state(), libraries(), warnings.filters[:]
import frcnn
for name in frcnn.__all__:
    getattr(frcnn, name)
import frcnn.cli
assert (state(), libraries(), warnings.filters[:]) == before, (state(), before)
assert not called

keras.config.set_image_data_format("channels_first")
for build in (lambda: frcnn.build_detector(frcnn.load_config(), ["a"]), frcnn.ResNet50):
    try:
        build()
    except ValueError as error:
        assert str(error).startswith("Keras is set to channels_first and float32"), error
    else:
        raise SystemExit("built")
"""


def test_importing_changes_nothing_and_building_asks_for_keras_settings(tmp_path):
    result = python("-c", IMPORTS, KERAS_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("settings", "environment", "sentence"),
    [
        ({}, "jax", "KERAS_BACKEND names the backend jax, which is not installed: pip install jax, or set"),
        ({}, "nonsense", "KERAS_BACKEND names the backend 'nonsense': set KERAS_BACKEND to tensorflow, jax or torch"),
        ({"backend": "jax"}, "", "{file} names the backend jax, which is not installed: pip install jax, or set"),
        ({"floatx": "float99"}, "", "{file}: Keras cannot use it ("),
    ],
)
def test_a_backend_that_is_not_there_is_one_sentence(tmp_path, settings, environment, sentence):
    """A package named jax that is not installed stands in for one."""
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError(\"No module named 'jax'\", name='jax')")
    file = tmp_path / "keras.json"
    file.write_text(json.dumps(KERAS_JSON | settings))
    chosen = {"KERAS_BACKEND": environment} if environment else {}
    result = python("-m", "frcnn", "inspect", "model", PYTHONPATH=str(tmp_path), KERAS_HOME=str(tmp_path), **chosen)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"frcnn inspect: {sentence.format(file=file)}")
    assert len(result.stderr.splitlines()) == 1


CRASH = """
import os, sys
from frcnn.cli.start import _quiet
with _quiet():
    os.write(2, b"I0000 00:00:1.2 3 port.cc:1] oneDNN custom operations are on.\\n")
    os.write(2, b"F0000 1 x.cc:2] Check failed: a == b\\n")
    os.write(2, b"W0000 00:00:1.2 3 gpu.cc:1] Cannot dlopen some GPU libraries\\n")
    {end}
print("after", file=sys.stderr)
"""
LAST_WORDS = ["F0000 1 x.cc:2] Check failed: a == b", "W0000 00:00:1.2 3 gpu.cc:1] Cannot dlopen some GPU libraries"]


@pytest.mark.parametrize(("end", "more"), [("os.abort()", []), ("pass", ["after"])])
def test_the_last_words_of_a_crash_are_seen(end, more):
    result = python("-c", CRASH.replace("{end}", end))
    assert result.stderr.splitlines() == LAST_WORDS + more
    assert (result.returncode == 0) is (end == "pass")


def test_a_command_called_as_a_function_leaves_its_host_as_it_was(monkeypatch, capsys):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)

    def state():
        streams = [stream.errors for stream in (sys.stdout, sys.stderr)]
        return dict(os.environ), warnings.formatwarning, warnings.filters[:], sys.meta_path[:], streams

    before, seen = state(), []
    monkeypatch.setattr("frcnn.cli.inspect.run", lambda _: seen.append(state()) or 0)
    assert main(["inspect", "config"]) == 0
    assert state() == before
    environment, format_warning, _, _, errors = seen[0]
    assert environment["TF_CPP_MIN_LOG_LEVEL"] == "3" and errors == ["backslashreplace"] * 2
    assert format_warning("words", UserWarning, "x.py", 3) == "note: words\n"


def test_a_host_that_has_keras_gets_its_settings_back():
    keras = pytest.importorskip("keras")
    keras.config.set_image_data_format("channels_first")
    try:
        with start.command_settings():
            assert keras.config.image_data_format() == "channels_last"
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")


def test_what_is_printed_moves_no_cursor(capsys):
    assert main(["doctor", "a\x1b[2J.txt"]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err
