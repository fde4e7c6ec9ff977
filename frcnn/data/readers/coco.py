"""COCO's JSON of instances: {"images": [...], "annotations": [...], "categories": [...]}.

Only boxes, classes and `iscrowd` are read; outlines and keypoints are not. Classes are in the order of their ids, which
may have gaps; categories of one name are one class, and one that only groups others is none. A picture without
annotations is background. Boxes are (x, y, width, height) from the top left corner.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.data.readers.problems import choose_split, decode, find_by_split, parse_json, read_bytes
from frcnn.data.readers.table import BACKGROUND, build_records, table_of_sides

FOLDER_FILE = "_annotations.coco.json"  # Roboflow's, in each of train, valid and test
_COLUMNS = {"picture": np.int64, "class_name": object, "line": np.int64, "crowd": bool}
_KEYS = ("images", "annotations", "categories")
_CORNERS = ("x", "y", "x + width", "y + height")


def read_coco(path, class_names, split, errors):
    """Read a JSON file of instances, or Roboflow's folders; see `frcnn.data.readers.read_records` for the results.

    Each picture is looked for beside the file, in `images` there, in the folders that COCO and its followers use
    (`instances_val.json` or `val.json`: `../val`, `../images/val`, `../images`, `..`) and in the working directory.
    """
    files = choose_split(find_by_split(path, FOLDER_FILE), split, path)
    if not files:
        raise ValueError(f"{path} is a folder without {FOLDER_FILE}, in it or in its train, valid or test")
    pictures, tables, declared = {}, [], []
    for file in files:
        shown = file.relative_to(path) if file != Path(path) else file.name
        table, names = _read_file(file, shown, pictures, errors)
        tables.append(table)
        declared += [name for name in names if name not in declared]
    table = pd.concat(tables, ignore_index=True).assign(difficult=False)
    class_names = tuple(declared) if class_names is None else class_names
    return build_records(table, list(pictures), class_names, errors, _CORNERS)


def coco_splits(path):
    """The names of the splits of Roboflow's folders; none of a file."""
    return tuple(filter(None, find_by_split(path, FOLDER_FILE)))


def _read_file(path, shown, pictures, errors):
    """The table of one file, and the classes that it declares; its pictures join the dict `pictures`."""
    content = _parse(read_bytes(path), path)
    lists = [content[key] for key in _KEYS]
    # Entries are numbered through the three lists, as the lines of a text file are.
    first = errors.begin(shown, sum(map(len, lists)), partial(_entry_name, lists)) + 1
    firsts = [first, first + len(lists[0]), first + len(lists[0]) + len(lists[1])]
    declared, labels = _read_categories(lists[2], firsts[2], lists[1], errors)
    known = len(pictures)
    indices, lines = _read_images(lists[0], _folders(path), firsts[0], pictures, errors)
    table = _read_annotations(lists[1], indices, labels, firsts[1], errors)
    # A row a picture keeps those without annotations, and the order of the pictures.
    rows = {"class_name": BACKGROUND, "picture": range(known, len(pictures)), "line": lines, "crowd": False}
    return pd.concat([pd.DataFrame(rows), table], ignore_index=True), declared


def _parse(data, path):
    content = parse_json(decode(data, path), path)
    for key in _KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path} is no COCO file of instances: expected an object with a list {key!r}")
    return content


def _entry_name(lists, number):
    """`annotations[12] (id 34)`: what to call the entry of a number, counted from 1 through the lists."""
    which, index = 0, number - 1
    while which < len(lists) - 1 and index >= len(lists[which]):
        index, which = index - len(lists[which]), which + 1
    entry_id = _get(lists[which][index], "id")
    return f"{_KEYS[which]}[{index}]" + (f" (id {entry_id})" if isinstance(entry_id, int) else "")


def _get(entry, key):
    """A value of a JSON object; None where there is none, or no object, or a value that cannot be an id or a name."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _read_categories(entries, first, annotations, errors):
    """The class names, and a dict from each category's id to its name."""
    names, lines, repeated = {}, {}, []
    for line, entry in enumerate(entries, first):
        number, name = _get(entry, "id"), _get(entry, "name")
        name = name.strip() if isinstance(name, str) else ""
        if number is None or not name:
            errors.add(line, "broken-entry", "a category needs an id and a name")
        elif number in names:
            errors.add(line, "repeated-class", f"id {number} is taken by a category before")
        else:
            repeated += [line] if name in lines else []
            names[number] = name
            lines.setdefault(name, line)
    errors.note(repeated, "repeated-class", "taken by a category before, joined with it", what="category name")
    groups = _unused_groups(entries, annotations, names)
    unused = [lines[name] for name in groups]
    errors.note(unused, "unused-category", "of a group of others only, no class", what="category name")
    order = sorted(names, key=lambda number: (isinstance(number, str), number))
    classes = dict.fromkeys(names[number] for number in order)
    return tuple(name for name in classes if name not in (BACKGROUND, *groups)), names


def _unused_groups(entries, annotations, names):
    """The names that are the `supercategory` of others and that no annotation has: Roboflow lists such a one first."""
    groups = {_get(entry, "supercategory") for entry in entries if _get(entry, "supercategory") != _get(entry, "name")}
    groups &= {_get(entry, "name") for entry in entries if _get(entry, "supercategory") == "none"}
    if not groups:
        return ()
    labels = _with_other_type(names)
    used = {labels.get(number) for number in {_get(entry, "category_id") for entry in annotations}}
    return sorted(groups.intersection(names.values()) - used)


def _with_other_type(ids):
    """A dict by id that finds 1 as "1" too, and "1" as 1, where that is no id of its own."""
    return {_other_type(number): value for number, value in ids.items()} | ids


def _other_type(number):
    if isinstance(number, int):
        return str(number)
    is_number = number.isascii() and number.isdecimal() and len(number) < 20
    return int(number) if is_number and str(int(number)) == number else number


def _folders(path):
    stem = path.stem.rpartition("_")[2]
    above = path.parent / os.pardir
    folders = [path.parent, path.parent / "images", above / stem, above / "images" / stem, above / "images", above, ""]
    return list(map(str, folders))


def _read_images(entries, folders, first, places, errors):
    """A dict from id to index, and the numbers of the entries of those that join `places`, from path to index."""
    indices, lines = {}, []
    for line, entry in enumerate(entries, first):
        number, name = _get(entry, "id"), _get(entry, "file_name")
        if number is None or not isinstance(name, str) or not name:
            errors.add(line, "broken-entry", "an image needs an id and a file_name")
            continue
        if number in indices:
            errors.add(line, "repeated-id", f"id {number} is taken by an image before")
            continue
        candidates = [os.path.normpath(os.path.join(folder, name)) for folder in folders]
        message = f"no picture at {candidates[0]}, nor in the folders around that are looked in"
        place = errors.find_picture(line, name, candidates, message)
        place = place or f"{os.devnull}/{number}"  # no file: its boxes are left out
        if place in places:
            errors.add(line, "repeated-picture", f"{place} is the picture of an image before")
        else:
            lines.append(line)
            errors.declared[place] = (line, entry.get("width"), entry.get("height"))
        indices[number] = places.setdefault(place, len(places))
    return indices, lines


def _read_annotations(entries, pictures, names, first, errors):
    """A table with a row an annotation, see `build_records`; those that name no picture or class are reported."""
    sides, rows = [], []  # flat lists: a million small ones would keep the garbage collector busy for seconds
    any_type, retyped = (_with_other_type(pictures), _with_other_type(names)), []
    for line, entry in enumerate(entries, first):
        try:
            x, y, width, height = entry["bbox"]
            image, category = entry["image_id"], entry["category_id"]
            row = (any_type[0][image], any_type[1][category], line, entry.get("iscrowd") in (1, "1"))
        except (KeyError, TypeError, ValueError, AttributeError):
            errors.add(line, *_what_is_wrong(entry, *any_type))
            continue
        if not (image in pictures and category in names):
            retyped.append(line)
        sides += (x, y, width, height)
        rows += row
    text = "with an id of another type (text, number) than its picture or category has, used"
    errors.note(retyped, "id-type", text, what="annotation")
    return table_of_sides(sides, rows, _COLUMNS)


def _what_is_wrong(entry, pictures, names):
    """The kind and message of a mistake."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    picture, category = _get(entry, "image_id"), _get(entry, "category_id")
    if not isinstance(box, list) or len(box) != 4:
        return "broken-entry", "an annotation needs a bbox of four numbers: x, y, width, height"
    if picture not in pictures:
        return "unknown-picture", f"image_id {picture} is the id of no image that is used"
    return "unknown-class", f"category_id {category} is the id of no category"


def left_top_sides(boxes):
    """x, y, width, height of (G, 4) float32 boxes, with as few digits as give back x + width and y + height exactly."""
    corners = boxes.astype(str).astype(np.float64)  # numpy's text of a float32 is the shortest
    low, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    short = np.round(sides, 6)
    exact = (low + short).astype(np.float32) == boxes[:, 2:]
    return np.concatenate([low, np.where(exact, short, sides)], axis=1).tolist()
