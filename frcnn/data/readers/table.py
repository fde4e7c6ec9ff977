"""The way from a table of annotated boxes to records that all readers share."""

import os

import numpy as np
import pandas as pd

from frcnn.data.images import image_size
from frcnn.records import ImageRecord

COORDINATES = ("x1", "y1", "x2", "y2")
BACKGROUND = "bg"
_UNKNOWN_SIZE = (np.nan, np.nan)
_ROUNDING = 1e-5  # of a share: in files with few digits, boxes at the border reach a little outside


def build_records(table, pictures, class_names, errors, corners=COORDINATES, origin=0, shares=False, allow_empty=True):
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
    """
    sizes = _measure(table, pictures, errors)
    _compare_sizes(pictures, sizes, errors)
    boxes = _select_boxes(table, sizes if shares else None, corners, errors)
    class_names = _label(boxes, class_names, errors)
    _check_boxes(boxes, sizes, corners, origin, allow_empty, errors)
    keep = boxes["good"] & np.isfinite(sizes[boxes["picture"]]).all(axis=1)
    boxes = {name: values[keep] for name, values in boxes.items()}
    edges = sizes[boxes["picture"]][:, [1, 0, 1, 0]]
    clipped = np.clip(boxes["corners"], 0, edges)
    lines = boxes["line"][(clipped != boxes["corners"]).any(axis=1)]
    errors.note(lines, "clipped-box", "clipped to the picture")
    errors.finish()
    return _split_by_picture(boxes | {"corners": clipped}, pictures, sizes, errors), class_names


def index_picture(place, line, pictures, errors):
    """The index of a picture in `pictures`, a dict from path to index that takes each once; a second is a mistake."""
    if place in pictures and place != os.devnull:  # which stands for names that may not be opened
        errors.add(line, "repeated-picture", f"{place} is the picture of an entry before")
    return pictures.setdefault(place, len(pictures))


def table_of_sides(sides, rows, columns):
    """A table for `build_records` of boxes (x, y, width, height).

    Args:
        sides: flat list of four values a box, whatever JSON holds: what is no number becomes NaN.
        rows: flat list of the other values of each box.
        columns: dict from the names of these values to their dtypes.
    """
    boxes = _to_float64(sides).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is reported later
        boxes[:, 2:] += boxes[:, :2]
    table = pd.DataFrame(boxes, columns=COORDINATES)
    for start, (name, dtype) in enumerate(columns.items()):
        table[name] = np.array(rows[start :: len(columns)], dtype)
    return table


def to_float(value):
    """A value from JSON as a float: NaN if it is no number, inf if it is too large for one."""
    try:
        return float(value) if isinstance(value, int | float) else np.nan
    except OverflowError:
        return np.inf


def _to_float64(values):
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # something is not a number: the slower way that marks it
        return np.array([to_float(value) for value in values], np.float64)


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


def _compare_sizes(pictures, sizes, errors):
    """Report declared sizes that are not the measured ones, by which everything goes: only to who asks for problems."""
    for picture, size in zip(pictures, sizes, strict=True) if errors.problems is not None else ():
        line, *declared = errors.declared.get(picture, (0, 0, 0))
        told = all(isinstance(side, int) and 0 < side < 2**31 for side in declared)
        if told and np.isfinite(size).all() and declared != size[::-1].tolist():
            found = f"the picture is {size[1]:g} wide and {size[0]:g} high"
            errors.add(line, "size-differs", f"{found}, annotated as {declared[0]:g} and {declared[1]:g}", "warning")


def _select_boxes(table, sizes, corners, errors):
    """The rows that hold a box, as a dict of arrays: the table's columns, (N, 4) float32 `corners`, NaN or inf where
    reported, and `good`, whether nothing is wrong yet. With `sizes`, coordinates are shares of the picture's sides."""
    names = table.class_name.to_numpy(object)
    has_box = names != BACKGROUND
    texts = [table[name].to_numpy() for name in COORDINATES]
    for row in np.flatnonzero(names == ""):
        has_box[row] = any(str(column[row]).strip() for column in texts)
    columns = ("class_name", "picture", "line", "difficult", "crowd")
    boxes = {name: table[name].to_numpy()[has_box] for name in columns if name in table}
    boxes["good"] = boxes["class_name"] != ""
    texts = [column[has_box] for column in texts]
    columns = [_to_numbers(column, np.float32 if sizes is None else np.float64) for column in texts]
    if sizes is not None:  # in float64: a share in float32 would be off by a thousandth of a pixel
        known = np.where(np.isfinite(sizes), sizes, 1).astype(np.float64)[boxes["picture"]]
        columns = [_snap(column) * known[:, (index + 1) % 2] for index, column in enumerate(columns)]
    with np.errstate(over="ignore"):
        boxes["corners"] = np.stack(columns, axis=1).astype(np.float32)
    wrong = ~np.isfinite(boxes["corners"])
    boxes["good"] &= ~wrong.any(axis=1)
    for column, row in np.argwhere(wrong.T):
        text = str(texts[column][row]).strip()
        message = f"{corners[column]} ({text}) is not a finite number" if text else f"{corners[column]} is empty"
        errors.add(boxes["line"][row], "bad-number", message)
    for line in boxes["line"][boxes["class_name"] == ""]:
        errors.add(line, "missing-class", "class_name is empty")
    return boxes


def _to_numbers(texts, dtype):
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, and is reported as not finite
        try:
            return texts.astype(dtype)
        except ValueError:  # something is not a number: the slower way that marks it
            return pd.to_numeric(pd.Series(texts), errors="coerce").to_numpy(dtype)


def _snap(shares):
    """Shares that rounding put a little outside 0..1, at the border."""
    inside = np.clip(shares, 0, 1)
    return np.where(np.abs(shares - inside) < _ROUNDING, inside, shares)


def _label(boxes, class_names, errors):
    """Add `label` to the boxes, indices into the returned class names."""
    name_indices, names = pd.factorize(boxes["class_name"], sort=True)
    class_names = tuple(name for name in names if name) if class_names is None else tuple(class_names)
    labels = {name: label for label, name in enumerate(class_names)}
    boxes["label"] = np.array([labels.get(name, -1) for name in names], np.int32)[name_indices]
    unknown = (boxes["label"] < 0) & (boxes["class_name"] != "")
    boxes["good"] &= ~unknown
    for line, name in zip(boxes["line"][unknown], boxes["class_name"][unknown]):
        message = f"class {name!r} is not one of the model's classes: {', '.join(class_names)}"
        errors.add(line, "unknown-class", message)
    return class_names


def _check_boxes(boxes, sizes, corners, origin, allow_empty, errors):
    """Report boxes without area and those wholly outside, no longer `good`; the others become half-open."""
    sides, lines = boxes["corners"], boxes["line"]
    empty = (sides[:, :2] == sides[:, 2:]).any(axis=1) & boxes["good"] & allow_empty
    errors.note(lines[empty], "degenerate-box", "left out, without width or height", severity="error")
    flat = (sides[:, 2:] <= sides[:, :2]) & ~empty[:, None]
    for low in (0, 1):
        for row in np.flatnonzero(flat[:, low]):
            start, end = sides[row, low], sides[row, low + 2]
            kind = "swapped-box" if end < start else "degenerate-box"
            errors.add(
                lines[row], kind, f"{corners[low + 2]} ({end:g}) must be greater than {corners[low]} ({start:g})"
            )
    ordered = ~flat.any(axis=1) & ~empty
    picture_sides = sizes[boxes["picture"]][:, ::-1]
    outside = ((sides[:, :2] - origin >= picture_sides) | (sides[:, 2:] <= 0)).any(axis=1) & ordered
    for row in np.flatnonzero(outside):
        shown, (width, height) = ", ".join(f"{side:g}" for side in sides[row]), picture_sides[row]
        message = f"box ({shown}) lies outside its picture, {width:g} wide and {height:g} high"
        errors.add(lines[row], "outside-box", message)
    boxes["good"] &= ordered & ~outside
    boxes["corners"] = sides - np.float32([origin, origin, 0, 0])


def _split_by_picture(boxes, pictures, sizes, errors):
    order = np.argsort(boxes["picture"], kind="stable")
    none = np.zeros(len(order), bool)
    columns = [boxes["corners"], boxes["label"], boxes["difficult"], boxes.get("crowd", none)]
    columns = [column[order] for column in columns]
    lines = boxes["line"][order]
    ends = np.cumsum(np.bincount(boxes["picture"], minlength=len(pictures))).tolist()
    starts = [0, *ends][:-1]  # none for no picture
    return [
        ImageRecord(path, size, *(column[start:end] for column in columns), *errors.locate(lines[start:end]))
        for path, size, start, end in zip(pictures, sizes, starts, ends, strict=True)
        if np.isfinite(size).all()
    ]
