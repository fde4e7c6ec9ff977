"""What the readers share: mistakes by file and line, and the way from a table of annotated boxes to records."""

import bisect
import codecs
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from frcnn.data.images import image_size
from frcnn.records import ImageRecord

COORDINATES = ("x1", "y1", "x2", "y2")
_BACKGROUND = "bg"
_MAX_ERRORS = 20
_UNKNOWN_SIZE = (np.nan, np.nan)


class Problem(NamedTuple):
    """One mistake or note about annotations.

    Attributes:
        kind: a short code that stays the same, such as "missing-picture", "swapped-box" or "clipped-box".
        severity: "error": what it speaks of is left out; "warning": it is used as the message says.
        file: as people write it: the annotation file's name, in a tree its path from there.
        line: from 1, or None where lines say nothing (JSON); the message then begins with the entry.
        message: what is wrong, and what was expected.
    """

    kind: str
    severity: str
    file: str
    line: int | None
    message: str

    def __str__(self):
        """`file line 12: message`."""
        return f"{self.file}{f' line {self.line}' if self.line else ''}: {self.message}"


class Errors:
    """Mistakes by line, raised together, so that one run shows them all. Lines are counted on from file to file.

    Args:
        problems: a list that takes all mistakes and notes as `Problem`s; nothing is raised then, and no warning given.
    """

    def __init__(self, problems=None):
        self.problems = problems
        self.found = []
        self._names, self._starts, self._end, self._entries = [], [], 0, []

    def begin(self, name, size, entry=None):
        """Announce a file of `size` bytes; returns what to add to its line numbers, counted from 1.

        Args:
            name: the file's, as people write it.
            size: more than it has lines.
            entry: None, or a function from a number to the name of an entry, in a file whose lines say nothing.
        """
        self._names.append(str(name))
        self._starts.append(self._end)
        self._entries.append(entry)
        self._end += size + 1  # more than it has lines
        return self._starts[-1]

    def place(self, line):
        """The file and line as people write it."""
        return str(self._problem(line, "", "", "")).removesuffix(": ")

    def add(self, line, kind, message, severity="error"):
        """Note a mistake."""
        self.found.append((int(line), kind, severity, message))

    def note(self, lines, kind, text, severity="warning"):
        """Note boxes that are not used as they stand: one warning counts them, or each is a problem."""
        if self.problems is not None:
            for line in lines:
                self.add(line, kind, f"box {text}", severity)
        elif len(lines):
            # The level of the caller of `read_records`.
            boxes = f"{len(lines)} box{'es' * (len(lines) > 1)}"
            warnings.warn(f"{boxes} {text}, first {self.place(lines.iloc[0])}", stacklevel=5)

    def raise_if_any(self):
        """Raise a ValueError that lists the first mistakes and counts the others, unless problems are collected."""
        if not self.found or self.problems is not None:
            return
        self.found.sort(key=lambda error: error[0])
        shown = [str(self._problem(*error)) for error in self.found[:_MAX_ERRORS]]
        more = len(self.found) - _MAX_ERRORS
        raise ValueError("\n".join(shown + ([f"... and {more} more"] if more > 0 else [])))

    def hand_over(self):
        """Give what was found to the collector, in the order of the lines."""
        if self.problems is not None:
            self.problems += [self._problem(*error) for error in sorted(self.found, key=lambda error: error[0])]

    def _problem(self, line, kind, severity, message):
        index = bisect.bisect_left(self._starts, line) - 1
        name, number, entry = self._names[index], int(line - self._starts[index]), self._entries[index]
        if entry is None:
            return Problem(kind, severity, name, number, message)
        return Problem(kind, severity, name, None, f"{entry(number)}: {message}")


def read_lines(path, name, errors):
    """Read a UTF-8 text file and begin it in `errors`.

    Returns:
        list of its lines, the number to add to a line's number.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8 text.
    """
    data = read_bytes(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is UTF-16 text; save the file as UTF-8 (Notepad: Save as, Encoding)")
    if b"\0" in data:
        raise ValueError(f"{path}: this annotation file is not text; a picture or an archive, perhaps")
    start = errors.begin(name, len(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = errors.place(start + data.count(b"\n", 0, error.start) + 1)
        raise ValueError(f"{line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8 text") from error
    # Not str.splitlines: it also breaks at characters that may stand in a file name. A "\r" goes with the blanks.
    return text.split("\n"), start


def read_bytes(path):
    """Read a whole file.

    Raises:
        ValueError: it cannot be read; names it.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error.strerror})") from error


def build_records(table, pictures, class_names, errors, corners=COORDINATES, origin=0):
    """Check a table of boxes and turn it into records; see `frcnn.data.readers.read_records` for the results.

    A box of class `bg` is dropped unread and its picture kept. A box that reaches outside its picture is clipped, and
    one warning counts them; another counts the boxes without area that are left out where the origin is 1. Where
    `errors` collects problems, whatever is wrong is left out: the box, or the picture that cannot be read.

    Args:
        table: a DataFrame with a row a box, in the order of the pictures' first appearance: `picture` an index into
            pictures; x1, y1, x2, y2 and `class_name` texts, all empty for a picture without objects; `difficult`
            bool; `line` as `errors` counts it.
        pictures: list of paths.
        class_names: the expected names, or None for those that occur.
        errors: the mistakes so far; those of the table join them, and all are raised.
        corners: what the file calls x1, y1, x2, y2.
        origin: number of the first pixel: 0, or 1 where the last pixel belongs to the box (x1 = 1, x2 = width).
    """
    sizes = _measure(table, pictures, errors)
    boxes = _select_boxes(table, corners, errors)
    class_names = _label(boxes, class_names, errors)
    empty = ((boxes.x1 == boxes.x2) | (boxes.y1 == boxes.y2)) & boxes.good & bool(origin)
    empty_lines, boxes = boxes.line[empty], boxes[~empty].copy()
    _check_boxes(boxes, sizes, corners, origin, errors)
    errors.raise_if_any()
    errors.note(empty_lines, "degenerate-box", "left out, without width or height", severity="error")
    boxes = boxes[boxes.good & np.isfinite(sizes[boxes.picture]).all(axis=1)].copy()
    clipped = _clip(boxes, sizes)
    errors.note(clipped, "clipped-box", "clipped to the picture")
    errors.hand_over()
    return _split_by_picture(boxes, pictures, sizes), class_names


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


def _select_boxes(table, corners, errors):
    """The rows that hold a box, with float32 coordinates (NaN or inf where reported) and `good`, nothing wrong yet."""
    has_box = (table.class_name != _BACKGROUND).to_numpy(copy=True)
    nameless = (table.class_name == "").to_numpy()
    has_box[nameless] = [any(map(str.strip, texts)) for texts in table.loc[nameless, list(COORDINATES)].to_numpy()]
    boxes = table.loc[has_box, table.columns != "filepath"].copy()
    boxes["good"] = boxes.class_name != ""
    for name, shown in zip(COORDINATES, corners, strict=True):
        texts = boxes[name]
        boxes[name] = _to_float32(texts)
        wrong = ~np.isfinite(boxes[name])
        boxes["good"] &= ~wrong
        for line, text in zip(boxes.line[wrong], texts[wrong].str.strip(), strict=True):
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


def _split_by_picture(boxes, pictures, sizes):
    order = np.argsort(boxes.picture.to_numpy(), kind="stable")
    corners = boxes[list(COORDINATES)].to_numpy(np.float32)[order]
    labels, difficult = boxes.label.to_numpy()[order], boxes.difficult.to_numpy()[order]
    ends = np.cumsum(np.bincount(boxes.picture, minlength=len(pictures))).tolist()
    starts = [0, *ends[:-1]]
    return [
        ImageRecord(path, size, corners[start:end], labels[start:end], difficult[start:end])
        for path, size, start, end in zip(pictures, sizes, starts, ends, strict=True)
        if np.isfinite(size).all()
    ]
