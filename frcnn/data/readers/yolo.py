"""YOLO: a `data.yaml` that names folders of pictures and the classes, and a text file of boxes beside each picture.

`images/train/a.jpg` has its boxes in `labels/train/a.txt`, one `class cx cy w h` a line: the class's number, then the
box's centre and sides as shares of the picture's width and height. A picture without such a file is background. A row
of more numbers is an outline (`class x1 y1 x2 y2 x3 y3 ...`), of which the box around it is taken.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from frcnn.data.images import SUFFIXES
from frcnn.data.readers.problems import decode, read_bytes, read_lines
from frcnn.data.readers.table import BACKGROUND, COORDINATES, build_records
from frcnn.files import find_files

SPLITS = ("train", "val", "test")
_CORNERS = ("left side", "top", "right side", "bottom")
_MAX_BYTES, _MAX_DEPTH = 2**20, 10  # of data.yaml: YAML is slow to read
_ROUNDING = 1e-5  # of a share: in files with few digits, boxes at the border reach a little outside
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # makes strings only; in C a hundred times as fast


def read_yolo(path, class_names, split, errors):
    """Read a YOLO data set; see `frcnn.data.readers.read_records` for the results."""
    file = find_yaml(path)
    if file is None:
        raise ValueError(f"{path} is no YOLO data set: expected a data.yaml, or a folder that holds one")
    content = _load(file)
    names, places = _class_names(content.get("names"), file), _places(content)
    wanted = list(places) if split == "all" else [split or "train"]
    if not wanted or not set(wanted) <= set(places):
        raise ValueError(f"{file} has no split {split or 'train'!r}: it names {', '.join(places) or 'none'}")
    first = errors.begin(file.name, len(wanted), lambda number: wanted[number - 1]) + 1
    pictures = {}
    for line, name in enumerate(wanted, first):
        for place in places[name]:
            for picture, its_line in _find_pictures(place, _roots(content, file), file.parent.resolve(), line, errors):
                pictures.setdefault(picture, its_line)
    if not pictures and not errors.found:
        raise ValueError(f"{file}: no picture in {', '.join(wanted)}")
    table = _read_labels(pictures, names, file.parent, errors)
    declared = tuple(name for name in names.values() if name != BACKGROUND)
    chosen = declared if class_names is None else class_names
    return build_records(table, list(pictures), chosen, errors, _CORNERS, shares=True)


def find_yaml(path):
    """The data.yaml of a data set, given by itself or by its folder; None where there is none."""
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
    named = [file for file in files if file.stem == "data"]
    return next(iter(named), files[0] if len(files) == 1 else None)


def yolo_splits(path):
    """The names of the splits of a YOLO data set."""
    return tuple(_places(_load(find_yaml(path))))


def names_data(file):
    """Whether a YAML file is a data.yaml by its content: class names, and where pictures are."""
    try:
        content = _load(file)
    except ValueError:
        return False
    return "names" in content and not {"path", *SPLITS}.isdisjoint(content)


def _load(file):
    """The mapping in a data.yaml; all its values are strings, as a class may well be called `no` or `1`."""
    text = decode(read_bytes(file, _MAX_BYTES), file)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{file}: YAML aliases (*name) and deep nesting can hide attacks and are not read")
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{file}{f' line {mark.line + 1}' if mark else ''}: broken YAML") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no data.yaml: expected names, and train, val or test")
    return content


def _class_names(names, file):
    """A dict from each class's number, without leading zeros, to its name, in the order of the numbers."""
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{file}: expected names, a list of the classes or a mapping from number to name")
    found = {}
    for number, name in names.items():
        name = name.strip() if isinstance(name, str) else ""
        if not name or not (number.isdecimal() and number.isascii() and len(number) < 10):
            raise ValueError(
                f"{file}: names: entry {number!r:.20}: expected a number from 0 and a name that is not empty"
            )
        if name in found.values():
            raise ValueError(f"{file}: names: entry {number!r}: an entry before has the same name")
        found[str(int(number))] = name
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _places(content):
    """The splits, each with its folders of pictures or lists of pictures."""
    places = {name: content.get(name) for name in SPLITS}
    places = {name: place if isinstance(place, list) else [place] for name, place in places.items()}
    texts = {name: [text for text in place if isinstance(text, str)] for name, place in places.items()}
    return {
        name: found for name in SPLITS if (found := [text for text in texts[name] if text not in ("", "~", "null")])
    }


def _roots(content, file):
    """Where relative places start: the folder that `path` names, from the data.yaml or the working directory."""
    path = content.get("path")
    path = path if isinstance(path, str) and path not in ("~", "null") else ""
    return list(dict.fromkeys([file.parent / path, Path(path), file.parent]))


def _find_pictures(place, roots, home, line, errors):
    """(path, line) of each picture of a folder, or of a text file of paths."""
    # Some write ../train/images and mean what lies beside data.yaml.
    names = dict.fromkeys((place, place.removeprefix("../")))
    candidates = {os.path.normpath(root / name): name for name in names for root in roots}
    for found, name in candidates.items():
        if os.path.exists(found) and not errors.check_name(line, name):
            return []
        if os.path.isdir(found) and Path(found).resolve() in home.parents:
            errors.add(line, "outside-folder", f"{name} holds the data set itself: name the folder of its pictures")
            return []
        if os.path.isdir(found):
            return [(os.path.normpath(picture), line) for picture in find_files(found, SUFFIXES)]
        if os.path.isfile(found):
            return _read_list(found, roots, errors)
    errors.add(line, "missing-folder", f"no folder or list of pictures at {' or '.join(candidates)}")
    return []


def _read_list(file, roots, errors):
    lines, start = read_lines(file, os.path.basename(file), errors)
    found = []
    for line, name in enumerate(map(str.strip, lines), start + 1):
        if not name:
            continue
        if not errors.check_name(line, name):
            continue
        candidates = list(dict.fromkeys(os.path.normpath(root / name) for root in (Path(file).parent, *roots)))
        picture = next(filter(os.path.isfile, candidates), None)
        if picture is None:
            errors.add(line, "missing-picture", f"no picture at {' or '.join(candidates)}")
        else:
            found.append((picture, line))
    return found


def _label_file(picture):
    """Where the boxes of a picture are: the last folder `images` in its path becomes `labels`."""
    before, images, after = f"{os.sep}{picture}".rpartition(f"{os.sep}images{os.sep}")
    place = f"{before}{os.sep}labels{os.sep}{after}"[1:] if images else picture
    return os.path.splitext(place)[0] + ".txt"


def _read_labels(pictures, names, folder, errors):
    """A table with a row a box, and one of the background before those of each picture; see `build_records`."""
    rows, files = [], {_label_file(picture): picture for picture in pictures}
    for index, (picture, line) in enumerate(pictures.items()):
        rows.append((np.nan, np.nan, np.nan, np.nan, BACKGROUND, index, line))
        file = _label_file(picture)
        if not os.path.lexists(file):
            continue
        shown = os.path.relpath(file, folder)
        try:
            lines, start = read_lines(file, shown, errors)
        except ValueError as error:
            errors.add(errors.begin(shown, 1) + 1, "unreadable-file", str(error))
            continue
        for line, text in enumerate(lines, start + 1):
            box = _read_row(text.split(), names, line, errors)
            if box:
                rows.append((*box, index, line))
    _note_unused(files, folder, errors)
    table = pd.DataFrame(rows, columns=[*COORDINATES, "class_name", "picture", "line"])
    return table.astype({"picture": np.int64, "line": np.int64}).assign(difficult=False)


def _read_row(fields, names, line, errors):
    """(x1, y1, x2, y2, class name), shares of the picture; None for a blank line, and where a mistake is reported."""
    if not fields:
        return None
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        errors.add(line, "field-count", f"{len(fields)} fields, expected 5: class cx cy w h (or an outline)")
        return None
    name = names.get(fields[0].lstrip("0") or "0") if fields[0].isdecimal() else None
    if name is None:
        errors.add(line, "unknown-class", f"class {fields[0]} is no number of a class in data.yaml")
        return None
    try:
        numbers = np.array(fields[1:], np.float64)
    except ValueError:
        numbers = np.array([np.nan])
    if not (np.abs(numbers) <= 2).all():
        errors.add(
            line, "bad-number", f"({' '.join(fields[1:])}) must be shares of the picture's width and height, 0 to 1"
        )
        return None
    if len(fields) == 5:
        low, high = numbers[:2] - numbers[2:] / 2, numbers[:2] + numbers[2:] / 2
    else:
        errors.note([line], "outline", "read as the box around it", what="outline")
        low, high = numbers.reshape(-1, 2).min(axis=0), numbers.reshape(-1, 2).max(axis=0)
    corners = np.concatenate([low, high])
    inside = np.clip(corners, 0, 1)
    return *np.where(np.abs(corners - inside) < _ROUNDING, inside, corners).tolist(), name


def _note_unused(files, folder, errors):
    """Count the text files in the folders of labels that belong to no picture."""
    places = {os.path.dirname(file): os.path.dirname(picture) for file, picture in files.items()}
    for labels, images in places.items():
        if labels == images or not os.path.isdir(labels):
            continue
        stems = {os.path.splitext(name)[0] for name in os.listdir(images) if name.lower().endswith(SUFFIXES)}
        for name in sorted(os.listdir(labels)):
            stem, suffix = os.path.splitext(name)
            if suffix == ".txt" and stem not in stems and name != "classes.txt":
                line = errors.begin(os.path.relpath(os.path.join(labels, name), folder), 1) + 1
                errors.note([line], "missing-picture", "without a picture of its name, not used", what="label file")
