"""The command line: the only place that parses arguments, prints and exits."""

import argparse
import contextlib
import importlib
import io
import os
import re
import sys

from frcnn.cli.start import command_settings
from frcnn.files import printable

COMMANDS = {
    "doctor": "look over annotated pictures before training",
    "train": "train a detector on annotated pictures",
    "detect": "detect objects in a folder of pictures",
    "evaluate": "score a trained detector on annotated pictures",
    "convert-data": "write annotated pictures in another format, in one part or several",
    "convert-weights": "make a run folder of a detector of torchvision's",
    "classify": "train, score and use a classifier of whole pictures",
    "inspect": "show the effective config, the network, its anchors, its batches",
}


def main(argv=None):
    """Run one command.

    Args:
        argv: arguments, as in `sys.argv[1:]`.

    Returns:
        int: 0 done; 1 done, but some pictures could not be read; 2 a mistake in the command, the files or the config,
        explained in a sentence; 130 interrupted; 143 terminated; 129 the terminal was closed; 141 nobody reads any more
        what it prints, and it makes nothing else.
    """
    with command_settings():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv):
    parser = argparse.ArgumentParser(
        "frcnn", description="Faster R-CNN for Keras 3.", epilog="example: frcnn train -p annotations.txt"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"frcnn.cli.{name.replace('-', '_')}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(execute=module.run)  # not "run": detect and evaluate have an argument of that name
    # People write overrides anywhere; argparse takes positional arguments from one place, and lists swallow them.
    overrides = [token for token in argv if _is_override(token)]
    arguments, rest = parser.parse_known_args([token for token in argv if token not in overrides])
    rest, known = overrides + rest, getattr(arguments, "overrides", None)  # not every command has a config
    if rest and (known is None or not all("=" in token and not token.startswith("-") for token in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = [*(known or ()), *rest]
    files = [getattr(arguments, name, None) for name in ("output", "json", "html")]
    only_prints = arguments.command in ("doctor", "inspect") and not any(files)
    with contextlib.nullcontext() if only_prints else _steady_output():
        return _execute(arguments)


def _execute(arguments):
    """Run the command; its exit status, and a sentence where it fails."""
    try:
        return arguments.execute(arguments)
    except BrokenPipeError:  # whoever reads what is printed, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
        return 141
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("FRCNN_TRACEBACK"):
            raise
        lines = map(printable, _sentence(error).splitlines())
        print(f"frcnn {arguments.command}: {chr(10).join(lines)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"frcnn {arguments.command}: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "status", 130)


def _is_override(token):
    """Whether an argument is `section.field=value`; other words with a dot may be values, as a file is."""
    section = re.match(r"(\w+)\.\w+\s*=", token)
    if not section:
        return False

    from frcnn.schema import Config

    return section[1] in Config.model_fields


class _Steady(io.FileIO):
    """Standard output or error that drops what cannot be written: to a closed pipe or terminal, or a full disk."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)


@contextlib.contextmanager
def _steady_output():
    """Let a command that makes files go on when nobody sees any more what it prints."""
    old = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_steady, old)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = old


def _steady(stream):
    if stream is None or stream not in (sys.__stdout__, sys.__stderr__):  # closed from the start, or not the system's
        return stream or open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    raw, settings = _Steady(stream.fileno(), "wb", closefd=False), {"write_through": stream.write_through}
    settings |= {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
    return io.TextIOWrapper(io.BufferedWriter(raw), **settings)


def _sentence(error):
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or "memory ran out"  # Python's own MemoryError says nothing
    file = error.filename2 or error.filename  # of two, the one that a draft should have become
    return f"{file}: {error.strerror}" if file else error.strerror


class Names:
    """Names for `choices` that a module holds, imported once asked for: a list of commands need not wait for it."""

    def __init__(self, module, attribute):
        self.module, self.attribute = module, attribute

    def __iter__(self):
        return iter(getattr(importlib.import_module(self.module), self.attribute))


def add_annotation_arguments(parser, required=True):
    """The arguments that name annotated pictures, for the commands that read them."""
    parser.add_argument(
        "-p",
        "--path",
        required=required,
        metavar="PATH",
        help="annotation file (text, CSV, COCO's or Label Studio's JSON), YOLO's data.yaml, or folder: a Pascal VOC "
        "tree, YOLO's, Roboflow's COCO files, Hugging Face's metadata.jsonl",
    )
    add_format_arguments(parser)
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="part of a VOC tree (default: trainval, to evaluate test) or of another folder (train, to evaluate test); "
        "all",
    )


def add_format_arguments(parser):
    """The arguments that say how annotated pictures are read."""
    parser.add_argument(
        "-o",
        "--parser",
        default="auto",
        choices=Names("frcnn.data.readers", "PARSERS"),
        metavar="FORMAT",
        help="their format, one of %(choices)s; simple: filepath,x1,y1,x2,y2,class_name a line, csv: a table with a "
        "header (default: auto, told by what is in the file or folder)",
    )
    parser.add_argument(
        "--outside",
        default="warning",
        choices=["warning", "error"],
        help="what the name of a picture is that leaves the folder of the annotations (default: warning)",
    )
    add_images_argument(parser.add_argument)


def add_images_argument(add):
    """The argument that says where the pictures of annotations are; `add` adds one."""
    add(
        "--images",
        metavar="FOLDER",
        help="where the pictures are that do not lie where the annotations say: found by the last parts of their names",
    )


def add_override_argument(parser):
    """`key=value` overrides of config fields."""
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="config fields to change, e.g. train.epochs=5"
    )


def add_run_arguments(parser):
    """The arguments that name a trained detector."""
    parser.add_argument(
        "--run",
        "--config_filename",
        metavar="PATH",
        help="run folder that training wrote, or a config.pickle that names its weights (default: the newest in runs/)",
    )
    parser.add_argument(
        "--weights", default="best", choices=["best", "last"], help="which weights of a run folder (default: best)"
    )
    keras_frcnn = parser.add_argument_group("keras-frcnn's flags, accepted without effect")
    keras_frcnn.add_argument("-n", "--num_rois", type=int, metavar="N", help="all proposals go through in one pass")
    keras_frcnn.add_argument("--network", metavar="NAME", help="the config says which network it is")


def find_run(path, kind="detector", weights="best"):
    """The run folder or config.pickle asked for, or the newest finished run in runs/, which is then said.

    Args:
        path: what was asked for, or None.
        kind: "detector" or "classifier".
        weights: which of a run's weights must be there.

    Raises:
        ValueError: none was named and none is there.
    """
    from pathlib import Path

    from frcnn.config import load_run_config

    if path:
        return Path(path)
    found = Path("runs").glob("*/config.pickle")
    finished = [file for file in found if file.with_name(f"{weights}.weights.h5").exists()]
    for file in sorted(finished, key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(ValueError):  # a run of the other kind, or damaged
            load_run_config(file, kind)
            print(f"no --run was named: {file.parent}, the newest of a {kind} in runs/, is taken", flush=True)
            return file.parent
    raise ValueError(f"no --run was named and runs/ holds none of a {kind}: train one first, or name its folder")
