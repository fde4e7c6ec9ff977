"""YOLO: a `data.yaml` that names folders of pictures and the classes, and a text file of boxes beside each picture.

`images/train/a.jpg` has its boxes in `labels/train/a.txt`, one `class cx cy w h` a line: the class's number, then the
box's centre and sides as shares of the picture's width and height. A picture without such a file is background. A row
of more numbers is an outline (`class x1 y1 x2 y2 x3 y3 ...`), of which the box around it is taken. Where the data.yaml
has a `kpt_shape`, points follow the box of every row, and are not read. Pictures below no folder `images`, or below one
without `labels` beside it, have their text files beside them.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from frcnn.data.images import SUFFIXES, find_pictures
from frcnn.data.readers.problems import SPLITS, decode, read_bytes, read_lines
from frcnn.data.readers.table import BACKGROUND, COORDINATES, build_records
from frcnn.files import MOST_YAML_BYTES, read_yaml

# Keys of a data.yaml that tools write and that change no box.
_SILENT = {*SPLITS, "valid", "minival", "path", "names", "nc", "kpt_shape", "flip_idx", "kpt_names", "skeleton"}
_SILENT |= {"download", "channels", "roboflow", "yaml_file", "author", "license", "version", "description", "date"}
_CORNERS = ("left side", "top", "right side", "bottom")
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
    points = _point_shape(content.get("kpt_shape"), file)
    first = _begin(file.name, wanted, names, content, errors)
    pictures = {}
    for line, name in enumerate(wanted, first):
        for place in places[name]:
            for picture, *rest in _pictures_of(place, _roots(content, file), file.parent.resolve(), line, errors):
                pictures.setdefault(picture, rest)
    if not pictures and not errors.found:
        raise ValueError(f"{file}: no picture in {', '.join(wanted)}")
    table = _read_labels(pictures, names, points, file.parent, errors)
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
    if not named and len(files) > 1:  # settings of a training, perhaps
        files = [file for file in files if _names_classes(file)]
    return next(iter(named), files[0] if len(files) == 1 else None)


def yolo_splits(path):
    """The names of the splits of a YOLO data set."""
    file = find_yaml(path)
    return tuple(_places(_load(file))) if file else ()


def is_yolo(path):
    """Whether a path is a YAML file, or a folder whose YAML file names classes and pictures as YOLO's does, or is
    called data.yaml: the reader then says what it lacks."""
    file = find_yaml(path)
    return file is not None and (not os.path.isdir(path) or _names_classes(file))


def _names_classes(file):
    try:
        content = _load(file)
    except ValueError:
        content = {}
    is_whole = "names" in content and not {"path", "valid", *SPLITS}.isdisjoint(content)
    return is_whole or (file.stem == "data" and ("names" in content or not content))


def _load(file):
    """The mapping in a data.yaml; all its values are strings, as a class may well be called `no` or `1`."""
    content = read_yaml(decode(read_bytes(file, MOST_YAML_BYTES), file), file, _Loader)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no data.yaml: expected names, and train, val or test")
    return content


def _begin(shown, wanted, names, content, errors):
    """Begin a data.yaml in `errors`, its splits as entries; notes what is not used; the first split's number."""
    unknown = [key for key in content if key not in _SILENT]
    entries = [*wanted, "nc", *unknown]
    first = errors.begin(shown, len(entries), lambda number: entries[number - 1]) + 1
    nc = content.get("nc")
    if nc is not None and nc != str(len(names)):
        text = f"of classes ({str(nc)[:20]!r}) that is not the number of names ({len(names)}), which counts"
        errors.note([first + len(wanted)], "class-count", text, what="number")
    errors.note(range(first + len(wanted) + 1, first + len(entries)), "unknown-key", "unknown, not used", what="key")
    return first


def _point_shape(shape, file):
    """(points, numbers a point) that follow each box; (0, 0) without a `kpt_shape`."""
    if shape is None:
        return 0, 0
    texts = [text for text in shape if isinstance(text, str)] if isinstance(shape, list) else []
    numbers = [int(text) for text in texts if text.isdecimal() and len(text) < 5]
    if len(numbers) != 2 or len(shape) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
        raise ValueError(f"{file}: kpt_shape: expected [number of points, 2 or 3], as in [17, 3]")
    return tuple(numbers)


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
    places["val"] = content.get("valid") if places["val"] is None else places["val"]
    places = {name: place if isinstance(place, list) else [place] for name, place in places.items()}
    texts = {name: [text for text in place if isinstance(text, str)] for name, place in places.items()}
    return {
        name: found for name in SPLITS if (found := [text for text in texts[name] if text not in ("", "~", "null")])
    }


def _roots(content, file):
    """Where relative places start: the folder that `path` names from the data.yaml's, or the latter."""
    path = content.get("path")
    path = path if isinstance(path, str) and path not in ("~", "null") else ""
    return list(dict.fromkeys([file.parent / path, file.parent]))


def _pictures_of(place, roots, home, line, errors):
    """(path, line, other paths beside which its labels may be) of each picture of a folder, or of a list of paths."""
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
            return [(os.path.normpath(picture), line, ()) for picture in find_pictures(found)]
        if os.path.isfile(found):
            return _read_list(found, roots, errors)
    moved = errors.find_folder(place)
    if moved:
        files = [(picture, os.path.relpath(picture, moved)) for picture in find_pictures(moved)]
        return [(picture, line, [os.path.join(place, name) for place in candidates]) for picture, name in files]
    errors.add(line, "missing-folder", f"no folder or list of pictures at {' or '.join(candidates)}")
    return []


def _read_list(file, roots, errors):
    lines, start = read_lines(file, os.path.basename(file), errors)
    found = []
    for line, name in enumerate(map(str.strip, lines), start + 1):
        if not name:
            continue
        candidates = list(dict.fromkeys(os.path.normpath(root / name) for root in (Path(file).parent, *roots)))
        picture = errors.find_picture(line, name, candidates, f"no picture at {' or '.join(candidates)}")
        if picture is not None:
            found.append((picture, line, candidates))
    return found


def _find_label_files(pictures):
    """The text files of boxes: a dict from picture to file, for those that have one, and the set of their folders.

    Of a picture that was moved, the text may have stayed beside one of the other places where the picture should be.
    """
    folders, found = {}, {}
    for picture, (_, others) in pictures.items():
        for path in (picture, *others):
            place, stem = os.path.split(os.path.splitext(path)[0])
            if place not in folders:
                folder = _label_folder(place)
                names = os.listdir(folder) if os.path.isdir(folder) else []
                texts = sorted((name for name in names if name.lower().endswith(".txt")), reverse=True)
                folders[place] = folder, {os.path.splitext(name)[0]: name for name in texts}  # .txt goes before .TXT
            folder, texts = folders[place]
            if stem in texts:
                found[picture] = os.path.join(folder, texts[stem])
                break
    return found, {place: folder for place, (folder, _) in folders.items()}


def _label_folder(place):
    """Where the text files of the pictures in a folder are: the last folder `images` in its path becomes `labels`, if
    there is one."""
    before, images, after = f"{os.sep}{place}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    labels = f"{before}{os.sep}labels"[1:]
    return os.path.join(labels, after).rstrip(os.sep) if images and os.path.isdir(labels) else place


def _read_labels(pictures, names, points, folder, errors):
    """A table with a row a box, and one of the background before those of each picture; see `build_records`."""
    rows = []
    files, folders = _find_label_files(pictures)
    for index, (picture, (line, _)) in enumerate(pictures.items()):
        rows.append((np.nan, np.nan, np.nan, np.nan, BACKGROUND, index, line))
        if picture not in files:
            continue
        shown = os.path.relpath(files[picture], folder)
        try:
            lines, start = read_lines(files[picture], shown, errors)
        except ValueError as error:
            errors.add(errors.begin(shown, 1) + 1, "unreadable-file", str(error))
            continue
        for line, text in enumerate(lines, start + 1):
            box = _read_row(text.split(), names, points, line, errors)
            if box:
                rows.append((*box, index, line))
    with_labels = {os.path.dirname(picture) for picture in files}
    lines = [line for picture, (line, _) in pictures.items() if os.path.dirname(picture) not in with_labels]
    if files:  # else there is no box at all, which is said
        text = "in a folder without any label file, taken for background"
        errors.note(lines, "missing-annotation", text, what="picture")
    _note_unused(folders, folder, errors)
    table = pd.DataFrame(rows, columns=[*COORDINATES, "class_name", "picture", "line"])
    return table.astype({"picture": np.int64, "line": np.int64}).assign(difficult=False)


def _read_row(fields, names, points, line, errors):
    """(x1, y1, x2, y2, class name), shares of the picture; None for a blank line, and where a mistake is reported."""
    if not fields:
        return None
    count, each = points
    is_outline = not count and len(fields) >= 7 and len(fields) % 2
    if len(fields) != 5 + count * each and not is_outline:
        more = f" and {count} points of {each} numbers (kpt_shape)" if count else " (or an outline)"
        message = f"{len(fields)} fields, expected {5 + count * each}: class cx cy w h{more}"
        errors.add(line, "field-count", message)
        return None
    fields = fields if is_outline else fields[:5]
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
    if not is_outline:
        low, high = numbers[:2] - numbers[2:] / 2, numbers[:2] + numbers[2:] / 2
    else:
        errors.note([line], "outline", "read as the box around it", what="outline")
        low, high = numbers.reshape(-1, 2).min(axis=0), numbers.reshape(-1, 2).max(axis=0)
    return *low.tolist(), *high.tolist(), name


def _note_unused(folders, folder, errors):
    """Count the text files in the folders of labels that belong to no picture."""
    for images, labels in folders.items():
        if labels == images or not (os.path.isdir(labels) and os.path.isdir(images)):
            continue
        stems = {os.path.splitext(name)[0] for name in os.listdir(images) if name.lower().endswith(SUFFIXES)}
        for name in sorted(os.listdir(labels)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() == ".txt" and stem not in stems and name != "classes.txt":
                line = errors.begin(os.path.relpath(os.path.join(labels, name), folder), 1) + 1
                errors.note([line], "missing-picture", "without a picture of its name, not used", what="label file")
