"""The way from a table of annotated boxes to records that all readers share."""

import os

import numpy as np
import pandas as pd

from frcnn.data.images import image_size
from frcnn.records import ImageRecord

COORDINATES = ("x1", "y1", "x2", "y2")
BACKGROUND = "bg"
_UNKNOWN_SIZE = (np.nan, np.nan)


def build_records(
    table, pictures, class_names, errors, corners=COORDINATES, origin=0, shares=False, allow_empty=True, declared=None
):
    """Check a table of boxes and turn it into records; see `frcnn.data.readers.read_records` for the results.

    A box of class `bg` is dropped unread and its picture kept. A box that reaches outside its picture is clipped, and
    one warning counts them; another counts the boxes without width or height, which are left out. Where `errors`
    collects problems, whatever is wrong is left out: the box, or the picture that cannot be read.

    Args:
        table: a DataFrame with a row a box, in the order of the pictures' first appearance: `picture` an index into
            pictures; x1, y1, x2, y2 and `class_name` texts, all empty for a picture without objects, or the former
            float64; `difficult` and, where known, `crowd` bool; `line` as `errors` counts it.
        pictures: list of paths.
        class_names: the expected names, or None for those that occur.
        errors: the mistakes so far; those of the table join them, and all are raised.
        corners: what the file calls x1, y1, x2, y2.
        origin: number of the first pixel: 0, or 1 where the last pixel belongs to the box (x1 = 1, x2 = width).
        shares: whether the coordinates are shares of the picture's width and height.
        allow_empty: whether a box without width or height is left out with a warning, or is a mistake.
        declared: None, or a dict from index of picture to (line, width, height) as the file has them; what is no
            positive int is not compared with the measured size.
    """
    sizes = _measure(table, pictures, errors)
    _compare_sizes(declared or {}, sizes, errors)
    if shares:  # in float64: a share in float32 would be off by a thousandth of a pixel
        known = np.where(np.isfinite(sizes), sizes, 1)[table.picture].astype(np.float64)
        table[list(COORDINATES)] *= known[:, [1, 0, 1, 0]]
    boxes = _select_boxes(table, corners, errors)
    class_names = _label(boxes, class_names, errors)
    empty = ((boxes.x1 == boxes.x2) | (boxes.y1 == boxes.y2)) & boxes.good & allow_empty
    errors.note(boxes.line[empty], "degenerate-box", "left out, without width or height", severity="error")
    boxes = boxes[~empty].copy()
    _check_boxes(boxes, sizes, corners, origin, errors)
    boxes = boxes[boxes.good & np.isfinite(sizes[boxes.picture]).all(axis=1)].copy()
    errors.note(_clip(boxes, sizes), "clipped-box", "clipped to the picture")
    errors.finish()
    return _split_by_picture(boxes, pictures, sizes, errors), class_names


def _measure(table, pictures, errors):
    """(pictures, 2) float32 sizes (height, width), NaN where a picture could not be read."""
    sizes = []  # threads measured slower: a header is 55 us, most of it Python's
    for path, line in zip(pictures, table.line[~table.picture.duplicated()], strict=True):
        try:
            # A missing file was reported by who looked for it.
            sizes.append(image_size(path) if os.path.isfile(path) else _UNKNOWN_SIZE)
        except ValueError as error:
            errors.add(line, "unreadable-picture", str(error))
            sizes.append(_UNKNOWN_SIZE)
    return np.array(sizes, np.float32).reshape(-1, 2)


def _compare_sizes(declared, sizes, errors):
    """Report other sizes than the measured ones. Training goes by the measured: only who asks for problems is told."""
    for picture, (line, width, height) in declared.items() if errors.problems is not None else ():
        measured = sizes[picture]
        told = all(isinstance(side, int) and 0 < side < 2**31 for side in (width, height))
        if told and np.isfinite(measured).all() and (height, width) != tuple(measured):
            found = f"the picture is {measured[1]:g} wide and {measured[0]:g} high"
            errors.add(line, "size-differs", f"{found}, annotated as {width:g} and {height:g}", "warning")


def _select_boxes(table, corners, errors):
    """The rows that hold a box, with float32 coordinates (NaN or inf where reported) and `good`, nothing wrong yet."""
    has_box = (table.class_name != BACKGROUND).to_numpy(copy=True)
    nameless = (table.class_name == "").to_numpy()
    has_box[nameless] = [any(map(str.strip, texts)) for texts in table.loc[nameless, list(COORDINATES)].to_numpy()]
    boxes = table.loc[has_box, table.columns != "filepath"].copy()
    boxes["good"] = boxes.class_name != ""
    for name, shown in zip(COORDINATES, corners, strict=True):
        texts = boxes[name]
        boxes[name] = _to_float32(texts)
        wrong = ~np.isfinite(boxes[name])
        boxes["good"] &= ~wrong
        for line, text in zip(boxes.line[wrong], texts[wrong].astype(str).str.strip(), strict=True):
            message = f"{shown} ({text}) is not a finite number" if text else f"{shown} is empty"
            errors.add(line, "bad-number", message)
    for line in boxes.line[boxes.class_name == ""]:
        errors.add(line, "missing-class", "class_name is empty")
    return boxes


def _to_float32(texts):
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, and is reported as not finite
        try:
            return texts.to_numpy().astype(np.float32)
        except ValueError:  # something is not a number: the slower way that marks it
            return pd.to_numeric(texts, errors="coerce").astype(np.float32)


def _label(boxes, class_names, errors):
    """Set `boxes.label`, indices into the returned class names."""
    name_indices, names = pd.factorize(boxes.class_name, sort=True)
    class_names = tuple(name for name in names if name) if class_names is None else tuple(class_names)
    labels = {name: label for label, name in enumerate(class_names)}
    boxes["label"] = np.array([labels.get(name, -1) for name in names], np.int32)[name_indices]
    unknown = (boxes.label < 0) & (boxes.class_name != "")
    boxes["good"] &= ~unknown
    for line, name in boxes.loc[unknown, ["line", "class_name"]].itertuples(index=False):
        message = f"class {name!r} is not one of the model's classes: {', '.join(class_names)}"
        errors.add(line, "unknown-class", message)
    return class_names


def _check_boxes(boxes, sizes, corners, origin, errors):
    """Report boxes without area and those wholly outside, no longer `good`; the others become half-open."""
    ordered = np.ones(len(boxes), bool)
    for low, high in ((0, 2), (1, 3)):
        names = [COORDINATES[low], COORDINATES[high]]
        wrong = (boxes[names[1]] <= boxes[names[0]]).to_numpy()
        ordered &= ~wrong
        for line, start, end in boxes.loc[wrong, ["line", *names]].itertuples(index=False):
            kind = "swapped-box" if end < start else "degenerate-box"
            errors.add(line, kind, f"{corners[high]} ({end:g}) must be greater than {corners[low]} ({start:g})")
    height, width = sizes[boxes.picture].T
    outside = (boxes.x1 - origin >= width) | (boxes.y1 - origin >= height) | (boxes.x2 <= 0) | (boxes.y2 <= 0)
    rows = (outside & ordered).to_numpy()
    for box, box_width, box_height in zip(boxes[rows].itertuples(), width[rows], height[rows], strict=True):
        shown = f"{box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}"
        message = f"box ({shown}) lies outside its picture, {box_width:g} wide and {box_height:g} high"
        errors.add(box.line, "outside-box", message)
    boxes["good"] &= ordered & ~outside
    boxes[["x1", "y1"]] -= origin


def _clip(boxes, sizes):
    """Clip the boxes to their pictures; returns the lines of those that changed."""
    corners = boxes[list(COORDINATES)].to_numpy(np.float32)
    clipped = np.clip(corners, 0, sizes[boxes.picture][:, [1, 0, 1, 0]])
    boxes[list(COORDINATES)] = clipped
    return boxes.line[(clipped != corners).any(axis=1)]


def _split_by_picture(boxes, pictures, sizes, errors):
    order = np.argsort(boxes.picture.to_numpy(), kind="stable")
    corners = boxes[list(COORDINATES)].to_numpy(np.float32)[order]
    labels, difficult = boxes.label.to_numpy()[order], boxes.difficult.to_numpy(bool)[order]
    crowd = boxes.crowd.to_numpy(bool)[order] if "crowd" in boxes else np.zeros(len(boxes), bool)
    lines = boxes.line.to_numpy()[order]
    ends = np.cumsum(np.bincount(boxes.picture, minlength=len(pictures))).tolist()
    starts = [0, *ends[:-1]]
    return [
        ImageRecord(
            path,
            size,
            *(part[start:end] for part in (corners, labels, difficult, crowd)),
            *(errors.locate(lines[start:end]) if end > start else ()),
        )
        for path, size, start, end in zip(pictures, sizes, starts, ends, strict=True)
        if np.isfinite(size).all()
    ]
