"""Examine annotated pictures before a training: what is wrong and how to mend it, and what decides a recipe."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frcnn.data.anchor_recall import Settings, propose_settings, resize_boxes
from frcnn.data.duplicates import fingerprint, group_duplicates
from frcnn.data.images import SUFFIXES, brightest_value, exif_orientation
from frcnn.data.readers import Problem, find_format, read_records, require_boxes, split_names
from frcnn.data.readers.voc_folders import describe_layout
from frcnn.data.threads import map_in_threads

_SAME_BOX = 0.9  # IoU from which two boxes of a picture are one thing
_MOST_COMPARED = 2000  # boxes of a picture, with each other
_FEW_BOXES = 20  # of a class
_RARE = 0.1  # a name with so small a share of another's boxes may be a mistyped one
_LONG_NAME = 4  # letters; shorter names often differ by one
_DARK_BITS = 14  # of 16 in use, at most: read as they are stored, such pictures are dark
_MOST_DECODED = 50  # pictures of 16 bits a channel, without `full`
_MET = 0.9  # share of a class's boxes that some anchor should overlap by 0.5


class Report(NamedTuple):
    """What was found.

    Attributes:
        source: dict of what was read and how.
        problems: list of Problem, errors first, each kind together.
        records: list of ImageRecord, what training would use.
        class_names: tuple of K strings.
        statistics: dict of plain values: pictures, sizes, boxes a picture, and a list of dicts `classes`.
        settings: Settings as configured, with their recall; None without boxes.
        better: list of Settings, one an im_size, and the index of the one to take, which has the present values where
            nothing better was found; None without boxes.
    """

    source: dict
    problems: list
    records: list
    class_names: tuple
    statistics: dict
    settings: Settings | None
    better: tuple | None


def examine(path, config, format="auto", split=None, test=None, full=False, outside="warning", images=None):
    """Read annotations in any format, and look for everything that costs people days.

    Args:
        path, format, split, outside, images: as in `frcnn.data.readers.read_records`; without a split everything
            is read, but with `test` what training would take.
        config: `frcnn.Config`; its `data` and `model.anchor_*` decide what is tiny and which anchors there are.
        test: None, or a second set of annotations; of one with splits test is read, else val.
        full: decode every picture and look for duplicates.

    Returns:
        Report.

    Raises:
        ValueError: nothing usable is at a path.
    """
    format = find_format(path, format)
    if split is None and test is None and split_names(path, format):
        split = "all"
    problems, test_problems = [], []
    records, class_names = read_records(path, format, None, split, problems, outside, images)
    if class_names:  # without them it has been said
        require_boxes(records, path, problems)
    tests, test_classes = [], class_names
    if test is not None:
        test_split = next((name for name in ("test", "val") if name in split_names(test)), None)
        tests, test_classes = read_records(test, "auto", None, test_split, test_problems, outside, images)
        if test_classes:
            require_boxes(tests, test, problems)
        folder = test if os.path.isdir(test) else os.path.dirname(test)
        problems += [problem._replace(file=os.path.join(folder, problem.file)) for problem in test_problems]
        tests = [replace(record, source=os.path.join(folder, record.source)) for record in tests]
    records, tests = ([record.without_crowds() for record in part] for part in (records, tests))
    extra = [name for name in test_classes if name not in class_names]
    problems += [Problem("unknown-class", "error", str(test), None, f"class {name!r} is not trained") for name in extra]
    problems += [problem for record in records + tests for problem in _check_exif(record)]
    problems += [problem for record in records + tests for problem in _check_overlaps(record, class_names)]
    problems += _check_tiny(records, config)
    problems += _check_bit_depth(records + tests, config.data.bit_depth, None if full else _MOST_DECODED, path)
    if split in (None, "all"):
        problems += _check_unreferenced(records + tests, problems)
    if full:
        problems += _check_pictures(records, tests, config.data.workers)
    statistics = _statistics(records, class_names)
    problems += _check_classes(statistics["classes"], path)
    settings = better = None
    if statistics["boxes"]:
        settings, found, chosen = propose_settings(records, config, len(class_names))
        better = found, chosen
        problems += _check_recall(class_names, settings.recall, path)
    problems.sort(key=lambda problem: (problem.severity, problem.kind))  # "error" is before "warning"
    source = {"path": str(path), "format": format, "split": split, "test": test and str(test), "full": full}
    source["bit_depth"] = config.data.bit_depth
    source["layout"] = describe_layout(path, records) if format in ("voc", "pascal_voc") else ""
    return Report(source, problems, records, class_names, statistics, settings, better)


def _check_exif(record):
    orientation = exif_orientation(record.path)
    if orientation is None:
        message = f"damaged EXIF, or an orientation not 1 to 8; read as {record.size[1]} wide and {record.size[0]} high"
        yield Problem("exif-invalid", "warning", record.path, None, message)
    elif orientation != 1:
        upright = f"the picture as turned, {record.size[1]} wide and {record.size[0]} high"
        message = f"EXIF orientation {orientation}: the boxes must be those of {upright}"
        yield Problem("exif-rotation", "warning", record.path, None, message)


def _check_overlaps(record, class_names):
    """Boxes of one picture that lie on each other, whatever their classes."""
    for first, second in np.argwhere(np.triu(_same_boxes(record.boxes), 1)):
        one, other = (class_names[record.labels[index]] for index in (first, second))
        kind = "duplicate-box" if one == other else "conflicting-boxes"
        message = f"{_show(record, second)}, {other!r:.80}, lies on the box {_where(record, first)}, {one!r:.80}"
        yield _at_box(kind, record, second, message)


def _same_boxes(boxes):
    """(G, G) bool, whether two boxes overlap by `_SAME_BOX`; of more than `_MOST_COMPARED` only the first ones."""
    boxes = boxes[:_MOST_COMPARED]
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    sides = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
    shared = np.prod(np.maximum(sides, 0), axis=2)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared >= _SAME_BOX * (areas[:, None] + areas - shared)


def _check_tiny(records, config):
    boxes = resize_boxes(records, config.data.im_size, config.data.max_size)
    stride = config.model.anchor_levels[0][0]
    sides = (boxes.corners[:, 2:] - boxes.corners[:, :2]).min(axis=1)
    places = [(record, index) for record in records for index in range(len(record.boxes))]
    for row in np.flatnonzero(sides < stride):
        message = f"{_show(*places[row])} is {sides[row]:.1f} px narrow after resizing, less than a cell of {stride} px"
        yield _at_box("tiny-box", *places[row], message)


def _check_bit_depth(records, bit_depth, most, path):
    """Pictures of 16 bits a channel of which few are used: cut to 8 bits as they are stored, they are nearly black."""
    step = 1 if most is None else max(1, len(records) // most)
    values = [value for record in records[::step] if (value := brightest_value(record.path)) is not None]
    bits = max(9, max(values, default=0).bit_length())
    if not values or (bits > _DARK_BITS if bit_depth is None else bits == bit_depth):
        return
    what = f"pictures of 16 bits a channel use {bits} of them (values up to {max(values)})"
    if bit_depth is None:
        yield Problem("bit-depth", "warning", str(path), None, f"{what}: they are read nearly black")
    else:
        yield Problem("bit-depth", "warning", str(path), None, f"{what}, data.bit_depth says {bit_depth}")


def _at_box(kind, record, index, message):
    line = None if record.lines is None else int(record.lines[index])
    return Problem(kind, "warning", record.source, line, f"{record.path}: {message}")


def _show(record, index):
    return f"box ({', '.join(f'{side:g}' for side in record.boxes[index])})"


def _where(record, index):
    return "before" if record.lines is None else f"of line {record.lines[index]}"


def _check_unreferenced(records, problems):
    """Pictures in the folders of annotated ones that no annotation names, broken ones included."""
    used = {os.path.abspath(record.path) for record in records}
    folders = sorted({os.path.dirname(path) for path in used})
    used |= {os.path.abspath(problem.message.partition(": cannot ")[0]) for problem in problems}
    stems = {Path(problem.file).stem for problem in problems}
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            place = os.path.join(folder, name)
            if suffix.lower() in SUFFIXES and place not in used and stem not in stems:
                yield Problem("unreferenced-picture", "warning", place, None, "is not annotated")


def _check_pictures(records, tests, workers):
    """Decode all pictures; find the broken ones and those that are nearly the same."""
    paths = [record.path for record in records + tests]
    marks = list(map_in_threads(_fingerprint_or_reason, paths, workers, ahead=workers))
    kept = []
    for index, (path, mark) in enumerate(zip(paths, marks, strict=True)):
        if isinstance(mark, str):
            yield Problem("undecodable-picture", "error", path, None, mark.removeprefix(f"{path}: "))
        else:
            kept.append(index)
    for group in group_duplicates([marks[index] for index in kept]):
        group = [kept[index] for index in group]
        equal = len({marks[index].digest for index in group}) == 1
        leaks = group[0] < len(records) <= group[-1]
        kind = "leaked-picture" if leaks else "duplicate-picture" if equal else "near-duplicate-picture"
        others = [f"{paths[index]}{' (test)' * (index >= len(records))}" for index in group[1:]]
        message = f"{'the same file' if equal else 'nearly the same picture'} as {', '.join(others)}"
        yield Problem(kind, "error" if leaks and equal else "warning", paths[group[0]], None, message)


def _fingerprint_or_reason(path):
    try:
        return fingerprint(path)
    except ValueError as error:
        return str(error)


def _check_classes(classes, path):
    """Names that differ by little, and classes with few boxes."""
    for one, other in _similar_pairs(classes):
        shown = " and ".join(f"{entry['name']!r:.80} (boxes: {entry['boxes']})" for entry in (one, other))
        yield Problem("similar-classes", "warning", str(path), None, f"classes {shown} may be one")
    for entry in classes:
        if entry["boxes"] < _FEW_BOXES:
            message = f"class {entry['name']!r:.80} (boxes: {entry['boxes']}): under {_FEW_BOXES} are hard to learn"
            yield Problem("few-boxes", "warning", str(path), None, message)


def _similar_pairs(classes):
    """Pairs of names that are equal but for case, blanks and punctuation, or of which a rare one is off by a letter."""
    plain = [re.sub(r"[\W_]", "", entry["name"])[:80].casefold() for entry in classes]
    # Names that are off by a letter are equal once one letter is left out of one of them or of both.
    alike = defaultdict(set)
    for index, name in enumerate(plain):
        letters = [place for place, letter in enumerate(name) if letter.isalpha()] if len(name) >= _LONG_NAME else []
        for key in (name, *(name[:place] + name[place + 1 :] for place in letters)):
            alike[key].add(index)
    pairs = set()
    for group in alike.values():  # all with the most frequent one
        common = max(group, key=lambda index: classes[index]["boxes"])
        pairs |= {(common, index) for index in group - {common}}
    for common, rare in sorted(pairs):
        same = plain[common] == plain[rare]
        if plain[rare] if same else classes[rare]["boxes"] <= _RARE * classes[common]["boxes"]:
            yield classes[common], classes[rare]


def _check_recall(class_names, recall, path):
    for name, (half, _) in zip(class_names, recall, strict=True):
        if half < _MET:
            message = f"class {name!r}: of its boxes the anchors overlap only {half:.1%} by an IoU of 0.5"
            yield Problem("anchors-miss", "warning", str(path), None, message)


def _statistics(records, class_names):
    counts = np.array([len(record.boxes) for record in records])
    sizes = Counter(record.size for record in records)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    labels = np.concatenate([np.zeros(0, np.int32), *(record.labels for record in records)])
    pictures = Counter(label for record in records for label in set(record.labels.tolist()))
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return {
        "pictures": len(records),
        "background_only": int((counts == 0).sum()),
        "boxes": len(boxes),
        "boxes_a_picture": _spread(counts),
        "picture_width": _spread([record.size[1] for record in records]),
        "picture_height": _spread([record.size[0] for record in records]),
        "picture_height_to_width": _spread([record.size[0] / record.size[1] for record in records]),
        "most_frequent_sizes": [{"height": h, "width": w, "pictures": n} for (h, w), n in sizes.most_common(3)],
        "classes": [
            {
                "name": name,
                "boxes": int((labels == label).sum()),
                "pictures": pictures[label],
                "box_size": _spread(np.sqrt(width * height)[labels == label]),
                "box_height_to_width": _spread((height / width)[labels == label]),
            }
            for label, name in enumerate(class_names)
        ],
    }


def _spread(values):
    """Smallest, 5 %, median, 95 % and largest value; None of nothing."""
    if not len(values):
        return None
    names = ("smallest", "low", "median", "high", "largest")
    return dict(zip(names, np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).round(2).tolist(), strict=True))
