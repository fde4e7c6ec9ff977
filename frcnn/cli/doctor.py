"""Look over annotated pictures before training: mistakes by file and line with their cures, duplicates, classes, sizes,
and how well the anchors of the config meet the boxes.

The exit status is 0 without errors (warnings or not), 1 with errors, 2 where nothing can be read."""

import json
from pathlib import Path

from frcnn.cli import add_format_arguments, add_override_argument
from frcnn.files import replacing, require_room

EXAMPLE = "frcnn doctor annotations.txt --full --html doctor.html --config config/resnet50_c4.yaml"


def add_arguments(parser):
    """The arguments of `frcnn doctor`."""
    add = parser.add_argument
    add("path", metavar="PATH", help="what -p of `frcnn train` takes")
    add_format_arguments(parser)
    add("--split", metavar="NAME", help="part of a folder with splits (default: all, with --test that of training)")
    add("--test", metavar="PATH", help="the test set, to look for mistakes, and with --full for pictures of both sets")
    add("--full", action="store_true", help="decode every picture, and look for duplicates")
    add("--json", metavar="FILE", help="write everything, for programs")
    add("--html", metavar="FILE", help="write a page with pictures")
    add("--config", metavar="YAML", help="the recipe whose sizes and anchors are looked at (default: the defaults)")
    add_override_argument(parser)


def run(arguments):
    """Examine, print, write; returns 1 if there are errors."""
    from frcnn.config import load_config
    from frcnn.doctor import examine
    from frcnn.doctor_report import to_dict, to_html, to_text

    for file in map(Path, filter(None, (arguments.json, arguments.html))):
        require_room(file.parent, [file.name])
    config = load_config(arguments.config, arguments.overrides)
    what = {name: getattr(arguments, name) for name in ("split", "test", "full", "outside", "images")}
    report = examine(arguments.path, config, arguments.parser, **what)
    print(to_text(report))
    if arguments.json:
        with replacing(arguments.json) as file:
            file.write(json.dumps(to_dict(report), indent=1) + "\n")
    if arguments.html:
        with replacing(arguments.html) as file:
            file.write(to_html(report))
    for file in filter(None, (arguments.json, arguments.html)):
        print(f"written: {file}")
    return int(any(problem.severity == "error" for problem in report.problems))
