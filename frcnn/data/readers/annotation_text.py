"""keras-frcnn's annotation file: one `filepath,x1,y1,x2,y2,class_name` a line, no header.

`filepath,,,,,` is a background-only picture; a box of class `bg` is dropped unread and its picture kept. Coordinates
are pixels of the picture as `cv2.imread` returns it, taken as they stand.
"""

import csv
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.data.images import image_size
from frcnn.files import replacing
from frcnn.records import ImageRecord

_COORDINATES = ("x1", "y1", "x2", "y2")
_FIELDS = ("filepath", *_COORDINATES, "class_name")
_LINE = ",".join(_FIELDS)
_BACKGROUND = "bg"
_MAX_ERRORS = 20
_UNKNOWN_SIZE = (np.nan, np.nan)


class _Errors:
    """Mistakes by line; raised together, so that one run shows them all."""

    def __init__(self, name):
        self.name = name
        self.found = []

    def add(self, line, message):
        self.found.append((int(line), message))

    def raise_if_any(self):
        if not self.found:
            return
        self.found.sort(key=lambda error: error[0])
        shown = [f"{self.name} line {line}: {message}" for line, message in self.found[:_MAX_ERRORS]]
        more = len(self.found) - _MAX_ERRORS
        raise ValueError("\n".join(shown + ([f"... and {more} more"] if more > 0 else [])))


def read_annotation_text(path, class_names=None):
    """Read an annotation file; see `frcnn.data.readers.read_records` for the arguments, results and errors.

    Picture paths are tried from the annotation file's folder, then from the working directory. A box that reaches
    outside its picture is clipped, and one warning counts them.
    """
    path = Path(path)
    errors = _Errors(path.name)
    table = _drop_header(_parse(_read_lines(path), errors), errors)
    if table.empty and not errors.found:
        raise ValueError(f"{path} is empty: expected lines of {_LINE}")
    pictures, sizes = _find_pictures(table, path.parent, errors)
    boxes = _select_boxes(table, errors)
    class_names = _label(boxes, class_names, errors)
    _check_boxes(boxes, sizes, errors)
    errors.raise_if_any()
    if not class_names:
        raise ValueError(f"{path} has no box, only background pictures: expected lines of {_LINE}")
    _clip(boxes, sizes, path.name)
    return _build_records(boxes, pictures, sizes), class_names


def write_annotations(path, records, class_names):
    """Write records in this format, with absolute picture paths.

    Args:
        path: the file.
        records: list of ImageRecord.
        class_names: K strings, what their labels mean.
    """
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        for record in records:
            place = os.path.abspath(record.path)
            for box, label in zip(record.boxes.tolist(), record.labels, strict=True):
                writer.writerow([place, *(f"{side:.9g}" for side in box), class_names[label]])
            if not len(record.boxes):
                writer.writerow([place, "", "", "", "", ""])


def _read_lines(path):
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name} line {line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8 text"
        ) from error
    # Not str.splitlines: it also breaks at characters that may stand in a file name. A "\r" goes with the blanks.
    return text.split("\n")


def _parse(lines, errors):
    """Split lines into a table of strings, names stripped, with the `line` number of each row."""
    flat, numbers = [], []  # one flat list: a million small ones would keep the garbage collector busy for seconds
    for number, line in enumerate(lines, start=1):
        fields = _split(line)
        if len(fields) == len(_FIELDS):
            flat += fields
            numbers.append(number)
        elif line.strip():
            errors.add(number, f"{len(fields)} field{'s'[: len(fields) > 1]}, expected {len(_FIELDS)}: {_LINE}")
    columns = {name: flat[start :: len(_FIELDS)] for start, name in enumerate(_FIELDS)}
    for name in ("filepath", "class_name"):
        columns[name] = list(map(str.strip, columns[name]))
    return pd.DataFrame(columns, dtype=object).assign(line=np.array(numbers, np.int64))


def _split(line):
    # Line by line, so that a quotation mark left open spoils its own line and not the rest of the file.
    return line.split(",") if '"' not in line else next(csv.reader([line], skipinitialspace=True))


def _drop_header(table, errors):
    first = table.head(1)
    texts = first[list(_COORDINATES)].to_numpy(object).ravel()
    if len(first) and all(map(str.strip, texts)) and pd.isna(pd.to_numeric(texts, errors="coerce")).all():
        errors.add(first.line.iloc[0], f"no coordinate is a number ({', '.join(texts)}): delete it if it is a header")
        return table.iloc[1:].reset_index(drop=True)
    return table


def _find_pictures(table, folder, errors):
    """Find and measure every distinct picture once; sets `table.picture`, an index into the results.

    Returns:
        list of paths, (pictures, 2) float32 sizes (height, width) with NaN where a picture could not be read.
    """
    name_indices, names = pd.factorize(table.filepath)
    # Names are numbered as they appear: each new one raises the running maximum.
    lines = table.line[np.diff(np.maximum.accumulate(name_indices), prepend=-1) > 0]
    places = [_locate(name, folder, line, errors) for name, line in zip(names, lines, strict=True)]
    # Two spellings of one file are one picture: two records would each be trained with a part of its boxes.
    picture_indices, pictures = pd.factorize(np.array(places, object))
    table["picture"] = picture_indices[name_indices]
    sizes = [_measure(path) for path in pictures]  # threads measured slower: a header is 55 us, most of it Python's
    for line, index in zip(lines, picture_indices, strict=True):
        if isinstance(sizes[index], ValueError):
            errors.add(line, str(sizes[index]))
            sizes[index] = _UNKNOWN_SIZE
    return list(pictures), np.array(sizes, np.float32).reshape(-1, 2)


def _locate(name, folder, line, errors):
    candidates = list(dict.fromkeys(os.path.normpath(place) for place in (os.path.join(folder, name), name)))
    place = next(filter(os.path.isfile, candidates), None)
    if place is None:
        errors.add(line, f"no picture at {' or '.join(candidates)}" if name else "filepath is empty")
    return place or candidates[0]


def _measure(path):
    if not os.path.isfile(path):
        return _UNKNOWN_SIZE  # reported by `_locate`, which knows both places
    try:
        return image_size(path)
    except ValueError as error:
        return error


def _select_boxes(table, errors):
    """The rows that hold a box, with float32 coordinates (NaN or inf where reported)."""
    has_box = (table.class_name != _BACKGROUND).to_numpy(copy=True)
    nameless = (table.class_name == "").to_numpy()
    has_box[nameless] = [any(map(str.strip, texts)) for texts in table.loc[nameless, list(_COORDINATES)].to_numpy()]
    boxes = table.loc[has_box, table.columns != "filepath"].copy()
    for name in _COORDINATES:
        texts = boxes[name]
        boxes[name] = _to_float32(texts)
        wrong = ~np.isfinite(boxes[name])
        for line, text in zip(boxes.line[wrong], texts[wrong].str.strip(), strict=True):
            errors.add(line, f"{name} ({text}) is not a finite number" if text else f"{name} is empty")
    for line in boxes.line[boxes.class_name == ""]:
        errors.add(line, "class_name is empty")
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
    unknown = boxes[(boxes.label < 0) & (boxes.class_name != "")]
    for line, name in zip(unknown.line, unknown.class_name, strict=True):
        errors.add(line, f"class {name!r} is not one of the model's classes: {', '.join(class_names)}")
    return class_names


def _check_boxes(boxes, sizes, errors):
    ordered = np.ones(len(boxes), bool)
    for low, high in (("x1", "x2"), ("y1", "y2")):
        wrong = (boxes[high] <= boxes[low]).to_numpy()
        ordered &= ~wrong
        for line, start, end in boxes.loc[wrong, ["line", low, high]].itertuples(index=False):
            errors.add(line, f"{high} ({end:g}) must be greater than {low} ({start:g})")
    height, width = sizes[boxes.picture].T
    outside = (boxes.x1 >= width) | (boxes.y1 >= height) | (boxes.x2 <= 0) | (boxes.y2 <= 0)
    rows = (outside & ordered).to_numpy()
    for box, box_width, box_height in zip(boxes[rows].itertuples(), width[rows], height[rows], strict=True):
        corners = f"{box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}"
        errors.add(box.line, f"box ({corners}) lies outside its picture, {box_width:g} wide and {box_height:g} high")


def _clip(boxes, sizes, name):
    corners = boxes[list(_COORDINATES)].to_numpy(np.float32)
    clipped = np.clip(corners, 0, sizes[boxes.picture][:, [1, 0, 1, 0]])
    lines = boxes.line[(clipped != corners).any(axis=1)]
    if len(lines):
        count = f"{len(lines)} box reaches" if len(lines) == 1 else f"{len(lines)} boxes reach"
        # The level of the caller of `read_records`.
        warnings.warn(
            f"{name}: {count} outside the picture and are clipped to it, first line {lines.iloc[0]}", stacklevel=4
        )
    boxes[list(_COORDINATES)] = clipped


def _build_records(boxes, pictures, sizes):
    order = np.argsort(boxes.picture.to_numpy(), kind="stable")
    corners = boxes[list(_COORDINATES)].to_numpy(np.float32)[order]
    labels = boxes.label.to_numpy()[order]
    ends = np.cumsum(np.bincount(boxes.picture, minlength=len(pictures))).tolist()
    starts = [0, *ends[:-1]]
    return [
        ImageRecord(path, size, corners[start:end], labels[start:end])
        for path, size, start, end in zip(pictures, sizes, starts, ends, strict=True)
    ]
