"""Hugging Face's imagefolder: a `metadata.jsonl` in the folder of the pictures, or in its train, validation and test.

A line a picture: `{"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height], ...], "categories": ["cat"]}}`, in
pixels from the top left corner. Categories are names, or numbers that then are the names. A line without boxes is
background.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from frcnn.data.readers.annotation_text import locate
from frcnn.data.readers.coco import left_top_sides
from frcnn.data.readers.problems import choose_split, find_by_split, parse_json, read_lines
from frcnn.data.readers.table import BACKGROUND, build_records, index_picture, table_of_sides
from frcnn.files import replacing

METADATA_FILE = "metadata.jsonl"
_CORNERS = ("x", "y", "x + width", "y + height")
_CATEGORIES = ("categories", "category", "labels", "label")
_COLUMNS = {"picture": np.int64, "class_name": object, "line": np.int64}


def read_huggingface(path, class_names, split, errors):
    """Read the metadata of an imagefolder; see `frcnn.data.readers.read_records` for the results."""
    path = Path(path)
    files = choose_split(find_by_split(path, METADATA_FILE), split, path)
    if not files:
        raise ValueError(f"{path} is a folder without {METADATA_FILE}, in it or in its train, validation or test")
    pictures, sides, rows, numbers = {}, [], [], set()
    for file in files:
        lines, start = read_lines(file, file.relative_to(path) if file != path else file.name, errors)
        for line, text in enumerate(lines, start + 1):
            name, boxes = _read_line(text, line, errors) if text.strip() else (None, ())
            if name is None:
                continue
            index = index_picture(locate(name, file.parent, line, errors), line, pictures, errors)
            sides += [np.nan] * 4
            rows += (index, BACKGROUND, line)
            for box, category in boxes:
                sides += box
                rows += (index, str(category).strip(), line)
                numbers |= {category} if isinstance(category, int) else {None}
    if not pictures and not errors.found:
        raise ValueError(f"{path}: {METADATA_FILE} has no line that names a picture")
    table = table_of_sides(sides, rows, _COLUMNS).assign(difficult=False)
    if class_names is None and None not in numbers:
        class_names = tuple(map(str, sorted(numbers)))  # or 10 would stand before 2
    return build_records(table, list(pictures), class_names, errors, _CORNERS)


def huggingface_splits(path):
    """The names of the splits of an imagefolder."""
    return tuple(filter(None, find_by_split(path, METADATA_FILE)))


def write_huggingface(folder, parts, class_names, names):
    """Write an imagefolder with copies of the pictures.

    Args:
        folder: the folder.
        parts: dict from train, val or test to a list of ImageRecord.
        class_names: K strings, what their labels mean.
        names: dict from each picture's path to its name in the folder.
    """
    for part, records in parts.items():
        place = folder / {"val": "validation"}.get(part, part)
        with replacing(place / METADATA_FILE) as file:
            for record in records:
                shutil.copyfile(record.path, place / names[record.path])
                categories = [class_names[label] for label in record.labels]
                objects = {"bbox": left_top_sides(record.boxes), "categories": categories}
                entry = {"file_name": names[record.path], "objects": objects}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _read_line(text, line, errors):
    """The picture's name, and (box, category) of each of its boxes; None and () where a mistake is reported."""
    try:
        entry = parse_json(text)
    except ValueError as error:
        errors.add(line, "broken-json", str(error))
        return None, ()
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or "objects" not in entry:
        errors.add(line, "broken-entry", "a line needs a file_name, and objects with bbox and categories")
        return None, ()
    boxes, categories = _columns(entry["objects"])
    pairs = list(zip(boxes, categories))
    good = [pair for pair in pairs if _is_box(*pair)]
    if len(boxes) != len(categories):
        errors.add(line, "broken-entry", f"{len(boxes)} boxes and {len(categories)} categories, expected as many")
    elif len(good) < len(pairs):
        index = next(index for index, pair in enumerate(pairs) if not _is_box(*pair))
        message = f"objects: entry {index}: expected a bbox [x, y, width, height] and a category, a name or a number"
        errors.add(line, "broken-entry", message)
    return name, good if len(boxes) == len(categories) else ()


def _columns(objects):
    """The boxes and categories: lists of one length where nothing is wrong."""
    if isinstance(objects, list):  # a dict an object
        objects = [each if isinstance(each, dict) else {} for each in objects]
        return [each.get("bbox") for each in objects], [_first(each) for each in objects]
    if not isinstance(objects, dict):
        return [] if objects is None else [None], []
    boxes, categories = objects.get("bbox"), _first(objects)
    return [each if isinstance(each, list) else [] if each is None else [None] for each in (boxes, categories)]


def _first(values):
    return next((values[key] for key in _CATEGORIES if key in values), None)


def _is_box(box, category):
    is_category = isinstance(category, int | str) and not isinstance(category, bool)
    return isinstance(box, list) and len(box) == 4 and is_category
