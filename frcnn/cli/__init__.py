"""The command line: the only place that parses arguments, prints and exits."""

import argparse
import importlib
import os
import re
import sys
import warnings

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
        explained in a sentence; 130 interrupted; 143 terminated; 141 nobody reads what it prints any more.
    """
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"  # for people: no file and line of ours
    warnings.filterwarnings("ignore", module="PIL")  # of damaged pictures, without their names
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or a machine without GPU is told of an error at every start
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
    argv = sys.argv[1:] if argv is None else argv
    # People write overrides anywhere; argparse takes positional arguments from one place, and lists swallow them.
    overrides = [token for token in argv if re.match(r"\w+\.\w+\s*=", token)]
    arguments, rest = parser.parse_known_args([token for token in argv if token not in overrides])
    rest, known = overrides + rest, getattr(arguments, "overrides", None)  # not every command has a config
    if rest and (known is None or not all("=" in token and not token.startswith("-") for token in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = [*(known or ()), *rest]
    try:
        return arguments.execute(arguments)
    except BrokenPipeError:  # whoever reads what is printed, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
        return 141
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("FRCNN_TRACEBACK"):
            raise
        print(f"frcnn {arguments.command}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"frcnn {arguments.command}: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "status", 130)


def _sentence(error):
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or "memory ran out"  # Python's own MemoryError says nothing
    file = error.filename2 or error.filename  # of two, the one that a draft should have become
    return f"{file}: {error.strerror}" if file else error.strerror


def add_annotation_arguments(parser, required=True):
    """The arguments that name annotated pictures, for the commands that read them."""
    parser.add_argument(
        "-p",
        "--path",
        required=required,
        metavar="PATH",
        help="annotation file (text or COCO's JSON), folder of a Pascal VOC tree, or YOLO's data.yaml or its folder",
    )
    add_format_arguments(parser)
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="part of a VOC tree (default: trainval, to evaluate test) or of a YOLO set (train, to evaluate test); all",
    )


def add_format_arguments(parser):
    """The arguments that say how annotated pictures are read."""
    parser.add_argument(
        "-o",
        "--parser",
        default="auto",
        choices=["auto", "simple", "voc", "pascal_voc", "coco", "yolo"],
        help="their format; simple: filepath,x1,y1,x2,y2,class_name a line (default: auto: a folder is voc, or yolo if "
        "it has a data.yaml; of files .json is coco, .yaml is yolo, and the others are simple)",
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


def find_run(path):
    """The run folder or config.pickle asked for, or the newest run folder in runs/.

    Raises:
        ValueError: none was named and none is there.
    """
    from pathlib import Path

    if path:
        return Path(path)
    runs = sorted(Path("runs").glob("*/config.pickle"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ValueError("no --run was named and runs/ holds none: train a detector first, or name its folder")
    return runs[-1].parent
