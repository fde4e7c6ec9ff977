"""Tables of boxes with a header, one box a line, columns in any order: TensorFlow's tutorials and Roboflow's
(`filename,width,height,class,xmin,ymin,xmax,ymax`), VoTT's (`image,xmin,ymin,xmax,ymax,label`), OpenImages'.

Fields are separated by commas, semicolons or tabs. Coordinates are pixels, taken as they stand; in OpenImages' tables,
told by their columns ImageID and LabelName, they are shares of the picture's sides, and the names lack their suffix.
A line without coordinates and class is a background-only picture.
"""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.data.images import SUFFIXES
from frcnn.data.readers.annotation_text import find_pictures, parse_columns, split_line
from frcnn.data.readers.problems import printable, read_lines
from frcnn.data.readers.table import BACKGROUND, COORDINATES, build_records
from frcnn.files import open_regular

# What a column may be called, in lower case, letters and digits only; those of a row mean the same.
_NAMES = {
    "filepath": ("filename", "filepath", "file", "path", "image", "imagename", "imagepath", "imageid", "imgpath"),
    "x1": ("xmin", "x1", "left"),
    "y1": ("ymin", "y1", "top"),
    "x2": ("xmax", "x2", "right"),
    "y2": ("ymax", "y2", "bottom"),
    "class_name": ("class", "classname", "label", "labelname", "category", "categoryname"),
}
_EXTRA = {"width": ("width",), "height": ("height",), "difficult": ("difficult",), "crowd": ("iscrowd", "isgroupof")}
_MOST_HEADER_BYTES = 2**16


def has_header(path):
    """Whether a file begins with a header: two columns of coordinates by name, and no number."""
    try:
        with open_regular(path) as file:
            text = file.read(_MOST_HEADER_BYTES).decode("utf-8-sig", "ignore")
    except OSError:  # the reader says why
        return False
    line = next(filter(str.strip, text.split("\n")), "")
    names = _plain(line, _separator(line))
    known = [name for key in COORDINATES for name in _NAMES[key]]
    return sum(name in known for name in names) >= 2 and not any(name.isdigit() for name in names)


def read_csv_table(path, class_names, split, errors):
    """Read a table with a header; see `frcnn.data.readers.read_records` for the results."""
    path = Path(path)
    lines, start = read_lines(path, path.name, errors)
    first = next((index for index, line in enumerate(lines) if line.strip()), 0)
    separator = _separator(lines[first])
    columns = _find_columns(lines[first], separator, errors.place(start + first + 1))
    header = [name.strip() for name in split_line(lines[first].strip(), separator)]
    rows = enumerate(lines[first + 1 :], start + first + 2)
    found, numbers = parse_columns(rows, header, separator, errors)
    if not numbers and not errors.found:
        raise ValueError(f"{path} has a header and no line after it")
    texts = {key: list(map(str.strip, found[index])) for key, index in columns.items()}
    table = pd.DataFrame({key: texts[key] for key in _NAMES}, dtype=object)
    table["line"] = np.array(numbers, np.int64)
    for flag in ("difficult", "crowd"):
        table[flag] = [text.lower() in ("1", "true", "yes") for text in texts[flag]] if flag in texts else False
    is_open_images = {"imageid", "labelname"} <= set(_plain(lines[first], separator))
    if is_open_images:
        _check_shares(table, errors)
    table["filepath"] = _add_suffixes(table.filepath, path.parent)
    pictures = find_pictures(table, path.parent, errors)
    _declare_sizes(table, texts, pictures, errors)
    corners = [header[columns[key]] for key in COORDINATES]
    return build_records(table, pictures, class_names, errors, corners, shares=is_open_images)


def _separator(line):
    return max(",;\t", key=line.count)


def _plain(line, separator):
    """The names in a header, in lower case, letters and digits only."""
    return [re.sub(r"[\W_]", "", name.lower()) for name in split_line(line.strip(), separator)]


def _find_columns(line, separator, place):
    """A dict from what a column is to its index, of those in `_NAMES` and of the extra ones that are there.

    Raises:
        ValueError: a needed column is missing, or there twice.
    """
    names, columns = _plain(line, separator), {}
    for key, known in (_NAMES | _EXTRA).items():
        name = next((name for name in known if name in names), None)
        if names.count(name) == 1:
            columns[key] = names.index(name)
        elif key in _NAMES:
            what = f"{names.count(name)} columns called {name}" if name else f"no column called {' or '.join(known)}"
            raise ValueError(f"{place}: {what}; the header is {printable(line.strip()[:200])}")
    return columns


def _check_shares(table, errors):
    """Report coordinates far outside 0..1; such a line becomes background, which keeps its picture."""
    numbers = table[list(COORDINATES)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    for row in np.flatnonzero((np.abs(numbers) > 2).any(axis=1)):
        shown = ", ".join(table.loc[row, list(COORDINATES)])
        message = f"({shown}) must be shares of the picture's width and height, 0 to 1, as OpenImages has them"
        errors.add(table.line[row], "bad-number", message)
        table.loc[row, "class_name"] = BACKGROUND


def _add_suffixes(names, folder):
    """Names of pictures, a suffix added where the name has none of a picture and such a file is there."""
    found = {name: name for name in names.unique()}
    for name in found:
        if name and not name.lower().endswith(SUFFIXES):
            full = (name + suffix for suffix in ("", *SUFFIXES, *map(str.upper, SUFFIXES)))
            found[name] = next((each for each in full if os.path.isfile(os.path.join(folder, each))), name)
    return names.map(found)


def _declare_sizes(table, texts, pictures, errors):
    """Keep the sizes that the table has, to compare them with the measured ones."""
    if not {"width", "height"} <= set(texts):
        return
    for index, line, *sides in zip(table.picture, table.line, texts["width"], texts["height"]):
        numbers = [int(text) if text.isdecimal() and len(text) < 10 else 0 for text in sides]
        errors.declared.setdefault(pictures[index], (line, *numbers))
