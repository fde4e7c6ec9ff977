"""Write annotated pictures in another format; the splits of the source stay, or new ones are drawn.

voc, yolo and huggingface become a folder with copies of the pictures. simple, coco and label-studio become a file for
each split, which names the pictures where they are. What the format cannot hold is listed."""

from frcnn.cli import Names, add_format_arguments

EXAMPLE = "frcnn convert-data annotations.txt shapes --to yolo --split 0.8"


def add_arguments(parser):
    """The arguments of `frcnn convert-data`."""
    add = parser.add_argument
    add("source", metavar="SRC", help="what -p of `frcnn train` takes")
    add("target", metavar="DST", help="a folder, new or empty; a single part may be a new .txt or .json file")
    targets = Names("frcnn.convert", "TARGETS")
    add("--to", required=True, choices=targets, metavar="FORMAT", help="the format to write: %(choices)s")
    add_format_arguments(parser)
    add(
        "--split",
        metavar="SHARE|NAME",
        help="a number such as 0.8: draw this share of all pictures as train, the others as val, classes alike, near "
        "duplicates together; a name: only this split of SRC; all: everything as one part",
    )
    add("--group-by", metavar="REGEX", help="keep pictures together whose names match equally, e.g. '^(.*)_frame'")
    add("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")


def run(arguments):
    """Read, split, write, say what was lost."""
    from frcnn.convert import find_losses, name_parts, read_parts, require_new, write_parts
    from frcnn.data.readers import FORMATS

    require_new(arguments.target)
    share = _number(arguments.split)
    if share is None and arguments.group_by is not None:
        raise ValueError("--group-by needs a share to draw: add --split 0.8")
    split = "all" if share is not None else arguments.split
    parts, class_names, unlisted = read_parts(
        arguments.source, arguments.parser, split, arguments.outside, arguments.images
    )
    if unlisted:
        print(f"note: {unlisted} pictures are in no split and left out; --split all takes every picture")
    if share is not None:
        (records,) = parts.values()
        parts = _draw(records, class_names, share, arguments)
    parts = name_parts(parts, arguments.to)
    records = list({record.path: record for part in parts.values() for record in part}.values())
    write_parts(arguments.target, parts, class_names, arguments.to)
    for loss in find_losses(records, class_names, arguments.to):
        print(f"note: {arguments.to} cannot hold {loss}")
    for name, part in parts.items():
        _describe(name, part, class_names)
    is_tree = FORMATS[arguments.to].suffix is None
    copied = f"{len(records)} pictures copied" if is_tree else "pictures stay in their place"
    print(f"written to {arguments.target}, {copied}")
    return 0


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _draw(records, class_names, share, arguments):
    from frcnn.data.duplicates import near_duplicates
    from frcnn.data.splits import group_pictures, split_by_class

    paths = [record.path for record in records]
    related = near_duplicates(paths)
    if related:
        print(f"{sum(map(len, related))} pictures have near duplicates, and stay with them")
    groups = group_pictures(paths, arguments.group_by, related)
    first = split_by_class(records, len(class_names), share, arguments.seed, groups)
    return {
        "train": [record for record, chosen in zip(records, first) if chosen],
        "val": [record for record, chosen in zip(records, first) if not chosen],
    }


def _describe(name, records, class_names):
    """One line: pictures, and boxes of each class."""
    import numpy as np

    labels = np.concatenate([record.labels for record in records] or [np.zeros(0, np.int32)])
    counts = ", ".join(
        f"{count} {name}" for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)))
    )
    print(f"{name or 'all'}: {len(records)} pictures, {len(labels)} boxes: {counts}")
