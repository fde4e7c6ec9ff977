"""Label Studio's JSON exports: a list of tasks, each with its annotations, or JSON-MIN's list of flat rows.

Read are the rectangles (type `rectanglelabels`: x, y, width, height in percent of the picture, a rotation in degrees
around the corner); of a turned one the box around it is taken. Of several annotations of a task, those of several
people, the first that is not cancelled counts. Predictions are not read. A task without an annotation is not labelled
yet, and left out; an annotation without a rectangle is background.
"""

import bisect
import json
import math
import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from frcnn.data.images import SUFFIXES
from frcnn.data.readers.annotation_text import locate
from frcnn.data.readers.problems import decode, parse_json, read_bytes
from frcnn.data.readers.table import BACKGROUND, build_records, index_picture, table_of_sides, to_float
from frcnn.files import open_regular, replacing

_CORNERS = ("left side", "top", "right side", "bottom")
_COLUMNS = {"picture": np.int64, "class_name": object, "line": np.int64}
_LABELS = "rectanglelabels"
_OTHERS = ("rectangle", "polygonlabels", "keypointlabels", "brushlabels", "ellipselabels", "choices", "relation")
_LOCAL = "/data/local-files/?d="
_UPLOAD = "/data/upload/"
_SIZE = ("original_width", "original_height")


def is_label_studio(path):
    """Whether a JSON file begins as a list, where COCO's is an object."""
    try:
        with open_regular(path) as file:
            return file.read(4096).decode("utf-8-sig", "ignore").lstrip()[:1] == "["
    except OSError:  # the reader says why
        return False


def read_label_studio(path, class_names, split, errors):
    """Read an export; see `frcnn.data.readers.read_records` for the results."""
    path = Path(path)
    tasks = _parse(path)
    chosen = [_choose(task) for task in tasks]
    # Entries are numbered through the tasks, each before its results, as the lines of a text file are.
    starts = np.cumsum([1] + [1 + len(results or ()) for results, _, _ in chosen]).tolist()
    first = errors.begin(path.name, starts[-1], partial(_entry_name, tasks, starts))
    pictures, sides, rows = {}, [], []
    for task, (results, cancelled, others), start in zip(tasks, chosen, starts):
        line = first + start
        errors.note([line] * cancelled, "cancelled", "cancelled, not used", what="annotation")
        errors.note([line] * others, "annotators", "of further people, of whom the first counts", what="annotation")
        index = _add_picture(task, results, path.parent, line, pictures, errors)
        if index is None:
            continue
        sides += [np.nan] * 4
        rows += (index, BACKGROUND, line)
        for result_line, result in enumerate(results, line + 1):
            box, names = _read_result(result, result_line, errors)
            for name in names:
                sides += box
                rows += (index, name.strip(), result_line)
    if not pictures and not errors.found:
        raise ValueError(f"{path} has no task with an annotation that is not cancelled")
    table = table_of_sides(sides, rows, _COLUMNS).assign(difficult=False)
    return build_records(table, list(pictures), class_names, errors, _CORNERS, shares=True)


def write_label_studio(path, records, class_names):
    """Write tasks that Label Studio imports, with its paths of local files.

    Args:
        path: the file.
        records: list of ImageRecord.
        class_names: K strings, what their labels mean.
    """
    with replacing(path) as file:
        for number, record in enumerate(records, start=1):
            inside = os.path.relpath(record.path, path.parent)
            place = os.path.abspath(record.path) if inside.startswith(os.pardir) else inside
            image = _LOCAL + quote(os.fsencode(place.replace(os.sep, "/")))
            annotation = {"id": number, "was_cancelled": False, "result": _results(record, class_names)}
            task = {"id": number, "data": {"image": image}, "annotations": [annotation]}
            file.write(("[" if number == 1 else ",\n") + json.dumps(task, ensure_ascii=False))
        file.write("]\n" if records else "[]\n")


def _results(record, class_names):
    height, width = record.size
    shares = record.boxes.astype(np.float64) / (width, height, width, height) * 100
    shares[:, 2:] -= shares[:, :2]
    shared = {"type": _LABELS, "from_name": "label", "to_name": "image"}
    shared |= {"original_width": width, "original_height": height, "image_rotation": 0}
    values = [dict(zip(("x", "y", "width", "height"), sides), rotation=0) for sides in shares.tolist()]
    return [
        {"id": str(index), **shared, "value": value | {_LABELS: [class_names[label]]}}
        for index, (value, label) in enumerate(zip(values, record.labels))
    ]


def _parse(path):
    tasks = parse_json(decode(read_bytes(path), path), path)
    first = tasks[0] if isinstance(tasks, list) and tasks else None
    if isinstance(first, dict) and {"image_id", "bbox", "score"} <= set(first):
        raise ValueError(f"{path} is a list of detections, as `frcnn detect` writes, and no file of annotations")
    if not isinstance(tasks, list) or not any(_find_name(task) for task in tasks):
        expected = "expected a list of tasks, each with data, the path of its picture in it, and annotations"
        raise ValueError(f"{path} is no export of Label Studio: {expected}")
    return tasks


def _get(entry, key, kind):
    """A value of a JSON object; None where there is none of this kind."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, kind) else None


def _entry_name(tasks, starts, number):
    """`[12] (id 34): result 5`: what to call the entry of a number, counted from 1."""
    index = bisect.bisect_right(starts, number) - 1
    task_id, result = _get(tasks[index], "id", int), number - starts[index]
    shown = f"[{index}]" + (f" (id {task_id:d})" if task_id is not None else "")
    return shown + (f": result {result}" if result else "")


def _choose(task):
    """The results that count, or None without an annotation; numbers of cancelled and of further annotations."""
    if isinstance(task, dict) and "annotations" not in task and "data" not in task:  # JSON-MIN
        lists = [value for value in task.values() if isinstance(value, list)]
        return [each for value in lists for each in value if isinstance(each, dict)], 0, 0
    annotations = [each for each in _get(task, "annotations", list) or () if isinstance(each, dict)]
    valid = [each for each in annotations if each.get("was_cancelled") is not True]
    results = _get(valid[0], "result", list) or [] if valid else None
    return results, len(annotations) - len(valid), max(len(valid) - 1, 0)


def _add_picture(task, results, folder, line, pictures, errors):
    """The index of a task's picture; None where there is none to use, which is reported."""
    name = _find_name(task)
    if name is None:
        errors.add(line, "broken-entry", "a task needs data, with the path of its picture as image")
    elif results is None:
        errors.note([line], "not-labelled", "without an annotation to use, left out", what="task")
    else:
        names = _candidates(name)
        there = (each for each in names if os.path.isfile(os.path.join(folder, each)))
        place = locate(next(there, names[0]), folder, line, errors)
        declared = [next((_get(each, key, int) for each in results), None) for key in _SIZE]
        errors.declared.setdefault(place, (line, *declared))
        return index_picture(place, line, pictures, errors)
    return None


def _find_name(task):
    """The path of a task's picture: of its data, in JSON-MIN of itself, `image` or what ends as one."""
    data = task.get("data", task) if isinstance(task, dict) else None
    texts = [text for text in data.values() if isinstance(text, str)] if isinstance(data, dict) else []
    pictures = [text for text in texts if text.partition("&")[0].lower().endswith(SUFFIXES)]
    return _get(data, "image", str) or next(iter(pictures), None)


def _candidates(text):
    """Where a picture may lie, from the folder of the export: its path or address, shorter and shorter."""
    if "?d=" in text:
        path = unquote(text.partition("?d=")[2].partition("&")[0], errors="surrogateescape")
        names = [path, *_tails(path)]
    elif "://" in text:
        names = _tails(unquote(text.partition("://")[2].partition("?")[0].partition("/")[2]))
    elif text.startswith(_UPLOAD):
        names = [_tails(text)[-1:], _tails(unquote(text))[-1:]]
        names = [name for each in names for name in each]
    else:
        names = [text]
    if _UPLOAD in text:  # Label Studio puts a hash before the name
        names += [re.sub(r"^[0-9a-f]{8}-", "", name.rpartition("/")[2]) for name in names]
    return names or [text]


def _tails(path):
    """The last parts of a path, eight at most, with fewer and fewer folders before the name."""
    parts = [part for part in path.rpartition("../")[2].split("/") if part not in ("", ".", "..")][-8:]
    return ["/".join(parts[index:]) for index in range(len(parts))]


def _read_result(result, line, errors):
    """The box, x, y, width and height as shares of the picture, and its class names, none where nothing is to use."""
    value = result.get("value", result) if isinstance(result, dict) else None  # JSON-MIN's are flat
    if not isinstance(value, dict) or _LABELS not in value:
        kind = _get(result, "type", str)
        kind = kind if kind in _OTHERS else next((each for each in _OTHERS if _get(value, each, list)), "unknown")
        errors.note([line], "other-result", f"of another kind ({kind}), left out", what="result")
        return None, ()
    names = _get(value, _LABELS, list)
    box = [to_float(value.get(key)) / 100 for key in ("x", "y", "width", "height")]
    turned, rotation = to_float(result.get("image_rotation") or 0), to_float(value.get("rotation") or 0)
    size = [to_float(result.get(key, value.get(key))) for key in _SIZE]
    if not names or not all(isinstance(name, str) for name in names):
        errors.add(line, "missing-class", f"a rectangle needs {_LABELS}, a list of names")
    elif turned:
        errors.add(line, "turned-picture", f"image_rotation {turned:g} is not read: turn the picture itself")
    elif rotation % 360 and not all(0 < side < math.inf for side in size):
        errors.add(line, "broken-entry", "a rectangle with a rotation needs original_width and original_height")
    else:
        return (_around(*box, rotation, size) if rotation % 360 else box), names
    return None, ()


def _around(x, y, width, height, rotation, size):
    """The box around one turned clockwise, by degrees, around its left top corner; as shares of (width, height)."""
    angle = math.radians(rotation) if math.isfinite(rotation) else math.nan
    across, down = width * size[0], height * size[1]
    xs = np.array([0, across * math.cos(angle), -down * math.sin(angle)])
    ys = np.array([0, across * math.sin(angle), down * math.cos(angle)])
    xs, ys = np.append(xs, xs[1] + xs[2]) / size[0], np.append(ys, ys[1] + ys[2]) / size[1]
    return [x + xs.min(), y + ys.min(), np.ptp(xs), np.ptp(ys)]
