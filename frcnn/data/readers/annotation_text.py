"""keras-frcnn's annotation file: one `filepath,x1,y1,x2,y2,class_name` a line, no header.

`filepath,,,,,` is a background-only picture. Coordinates are pixels of the picture as `cv2.imread` returns it, taken as
they stand.
"""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.data.images import SUFFIXES, UNREAD
from frcnn.data.readers.problems import Errors, read_lines
from frcnn.data.readers.table import COORDINATES, build_records
from frcnn.files import replacing

_FIELDS = ("filepath", *COORDINATES, "class_name")
_LINE = ",".join(_FIELDS)


def read_annotation_text(path, class_names, split, errors):
    """Read an annotation file; see `frcnn.data.readers.read_records` for the results.

    Picture paths are tried from the annotation file's folder, then from the working directory.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an annotation file; format 'auto' tells what a folder holds")
    lines, _ = read_lines(path, path.name, errors)
    table = _drop_header(_parse(lines, errors), errors)
    if table.empty and not errors.found:
        raise ValueError(f"{path} is empty: expected lines of {_LINE}")
    pictures = find_pictures(table, path.parent, errors)
    return build_records(table, pictures, class_names, errors, allow_empty=False)


def read_list(path, images=None):
    """Read a text file with the path of a picture a line, from the file's folder or else the working directory.

    Args:
        path: the file; it is such a list if its first line is the name of a picture.
        images: see `frcnn.data.readers.read_records`.

    Returns:
        list of paths; None where the file is another one.

    Raises:
        ValueError: not text, or a picture is not there; each with its line.
    """
    path, errors = Path(path), Errors(images=images)
    lines, start = read_lines(path, path.name, errors)
    names = [(start + number, line.strip().strip('"')) for number, line in enumerate(lines, start=1) if line.strip()]
    if not names or not names[0][1].lower().endswith(SUFFIXES + UNREAD):
        return None
    paths = [locate(name, path.parent, line, errors) for line, name in names]
    errors.finish()
    return paths


def write_annotations(path, records, class_names):
    """Write records in this format, with absolute picture paths.

    Args:
        path: the file.
        records: list of ImageRecord.
        class_names: K strings, what their labels mean.

    Raises:
        ValueError: a path would not be read back: it holds a line end or bytes that are no text, or ends in a blank.
    """
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        for record in records:
            place = os.path.abspath(record.path)
            if place != place.rstrip() or re.search(r"[\r\n\ud800-\udfff]", place):
                raise ValueError(f"{place!a}: a text file cannot hold this name: rename the picture or its folder")
            for box, label in zip(record.boxes.tolist(), record.labels, strict=True):
                writer.writerow([place, *(f"{side:.9g}" for side in box), class_names[label]])
            if not len(record.boxes):
                writer.writerow([place, "", "", "", "", ""])


def _parse(lines, errors):
    """Split lines into a table of strings, names stripped, with the `line` number of each row."""
    columns, numbers = parse_columns(enumerate(lines, start=1), _FIELDS, ",", errors)
    columns = {name: columns[index] for index, name in enumerate(_FIELDS)}
    for name in ("filepath", "class_name"):
        columns[name] = list(map(str.strip, columns[name]))
    return pd.DataFrame(columns, dtype=object).assign(line=np.array(numbers, np.int64), difficult=False)


def parse_columns(lines, names, separator, errors):
    """The columns of a table, lists of texts, and the numbers of its lines; those of another length are mistakes.

    Args:
        lines: pairs of a line's number and its text.
        names: of the columns.
        separator: between fields.
        errors: takes the mistakes.
    """
    flat, numbers = [], []  # one flat list: a million small ones would keep the garbage collector busy for seconds
    for number, line in lines:
        fields = split_line(line, separator)
        if len(fields) == len(names):
            flat += fields
            numbers.append(number)
        elif line.strip():
            count = f"{len(fields)} field{'s'[: len(fields) > 1]}"
            errors.add(number, "field-count", f"{count}, expected {len(names)}: {separator.join(names)}")
    return [flat[start :: len(names)] for start in range(len(names))], numbers


def split_line(line, separator=","):
    """The fields of one line, quotation marks removed."""
    if '"' not in line:
        return line.split(separator)
    try:
        # Line by line, so that a quotation mark left open spoils its own line and not the rest of the file.
        return next(csv.reader([line], skipinitialspace=True, delimiter=separator))
    except csv.Error:  # longer than any line of ours: JSON, perhaps
        return [line]


def _drop_header(table, errors):
    first = table.head(1)
    texts = first[list(COORDINATES)].to_numpy(object).ravel()
    if len(first) and all(map(str.strip, texts)) and pd.isna(pd.to_numeric(texts, errors="coerce")).all():
        message = f"no coordinate is a number ({', '.join(texts)}): delete it if it is a header, or say -o csv"
        errors.add(first.line.iloc[0], "header-line", message)
        return table.iloc[1:].reset_index(drop=True)
    return table


def find_pictures(table, folder, errors):
    """Find every distinct picture once; sets `table.picture`, an index into the returned list of paths."""
    name_indices, names = pd.factorize(table.filepath)
    # Names are numbered as they appear: each new one raises the running maximum.
    lines = table.line[np.diff(np.maximum.accumulate(name_indices), prepend=-1) > 0]
    places = [locate(name, folder, line, errors) for name, line in zip(names, lines, strict=True)]
    # Two spellings of one file are one picture: two records would each be trained with a part of its boxes.
    picture_indices, pictures = pd.factorize(np.array(places, object))
    table["picture"] = picture_indices[name_indices]
    return list(pictures)


def locate(name, folder, line, errors):
    """Where a picture lies, in `folder` or else the working directory; that it lies nowhere goes into `errors`."""
    candidates = list(dict.fromkeys(os.path.normpath(place) for place in (os.path.join(folder, name), name)))
    message = f"no picture at {' or '.join(candidates)}" if name else "filepath is empty"
    return errors.find_picture(line, name, candidates, message) or f"{os.devnull}/{name}"  # no file: no box is used
