"""Data sets from one format to another, in parts such as train and val."""

import itertools
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np

from frcnn.data.images import SUFFIXES
from frcnn.data.readers import find_format, read_records, split_names
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.data.readers.yolo import SPLITS
from frcnn.files import replacing
from frcnn.outputs import json_lines, write_voc_file, yolo_shares

TARGETS = ("voc", "coco", "yolo", "simple")
_FILES = {".txt": "simple", ".json": "coco"}  # formats that are one file a part


def read_parts(path, format="auto", split=None, outside="warning", images=None):
    """Read a data set with all its splits.

    Args:
        path, format, outside, images: see `frcnn.data.readers.read_records`.
        split: one split of it, "all" for everything as one part, or None for every split by itself.

    Returns:
        dict from the name of each part to its list of ImageRecord, None for the name of the only part of a data set
        without splits; tuple of K class names; the number of pictures that are in no split.

    Raises:
        ValueError: see `read_records`.
    """
    format, where = find_format(path) if format == "auto" else format, {"outside": outside, "images": images}
    names = () if format in ("simple", "coco") or split else split_names(path)
    if not names:
        records, class_names = read_records(path, format, split=split, **where)
        return {None if split == "all" else split: records}, class_names, 0
    everything, class_names = read_records(path, format, split="all", **where)
    parts, by_path = {}, {record.path: record for record in everything}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all has been said
        for name in sorted(names, key=lambda name: (*SPLITS, name).index(name)):
            records, _ = read_records(path, format, class_names, name, **where)
            parts[name] = [by_path[record.path] for record in records]
    listed = {record.path for records in parts.values() for record in records}
    return parts, class_names, len(everything) - len(listed)


def name_parts(parts, to):
    """Give the parts the names that the target's tools look for.

    A part with the same pictures as others together (VOC's trainval beside train and val) is left out but for VOC;
    what is the only one to train on is called trainval for VOC, and train for YOLO.

    Raises:
        ValueError: YOLO has no place for a part of this name.
    """
    paths = {name: {record.path for record in records} for name, records in parts.items()}
    if to != "voc":
        union = paths.get("train", set()) | paths.get("val", set())
        parts = {name: part for name, part in parts.items() if name != "trainval" or paths[name] != union}
    unnamed = {"voc": {None: "trainval"}, "yolo": {None: "train"}}.get(to, {})
    if to == "yolo" and "train" not in parts:
        unnamed["trainval"] = "train"
    parts = {unnamed.get(name, name): part for name, part in parts.items()}
    if to == "yolo" and not set(parts) <= set(SPLITS):
        raise ValueError(f"YOLO has the splits train, val and test, but here are {', '.join(parts)}: name one of them")
    return parts


def find_losses(records, class_names, to):
    """What a format cannot hold of these records: a list of sentences."""
    difficult = sum(int(record.difficult.sum()) for record in records)
    crowd = sum(int(record.crowd.sum()) for record in records)
    thin = sum(len(record.boxes) - int(_fits_voc(record).sum()) for record in records)
    shown = sorted({class_names[label] for record in records for label in record.labels})
    losses = {
        f"{difficult} marks of difficult boxes": difficult and to != "voc",
        f"{crowd} marks of crowds": crowd and to != "coco",
        f"{thin} boxes not more than one pixel wide or high": thin and to == "voc",
        "the order of the classes, or those without boxes": to in ("voc", "simple") and tuple(shown) != class_names,
    }
    return [loss for loss, happens in losses.items() if happens]


def write_parts(target, parts, class_names, to):
    """Write a data set, whole or not at all.

    simple, coco: `<part>.txt` or `<part>.json` (`annotations` without parts) that name the pictures where they are.
    voc, yolo: a tree into which the pictures are copied, under their names as far as these differ.

    Args:
        target: folder that does not exist or is empty; for one part in simple or coco also a new .txt or .json file.
        parts: dict as from `name_parts`.
        class_names: tuple of K strings.
        to: one of `TARGETS`.

    Raises:
        ValueError: the target is taken, or a name holds a character that annotations cannot.
        OSError: a file cannot be read or written.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: name a new folder, or an empty one")
    for name in class_names:
        if not name.isprintable():
            raise ValueError(f"the class {name!r} holds a character that stands in no name: rename it")
    for path in {record.path for part in parts.values() for record in part} if to == "simple" else ():
        if path != path.strip() or not path.isprintable():
            raise ValueError(f"{path!r}: a text file cannot hold this name: rename the picture, or take another format")
    if _FILES.get(target.suffix.lower()) == to:
        if len(parts) > 1:
            raise ValueError(f"{target}: {', '.join(parts)} are {len(parts)} files: name a folder, or one of them")
        (records,) = parts.values()
        _WRITERS[to](target, records, class_names)
        return
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if to in ("voc", "yolo"):
            draft.mkdir(parents=True)
            _WRITERS[to](draft, parts, class_names)
        else:
            suffix = next(suffix for suffix, format in _FILES.items() if format == to)
            for name, records in parts.items():
                _WRITERS[to](draft / f"{name or 'annotations'}{suffix}", records, class_names)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_coco(path, records, class_names):
    images, annotations = [], []
    for image_id, record in enumerate(records, start=1):
        height, width = record.size
        inside = os.path.relpath(record.path, path.parent)
        place = os.path.abspath(record.path) if inside.startswith(os.pardir) else inside
        images.append({"id": image_id, "file_name": place, "height": height, "width": width})
        for label, crowd, (x, y, *sides) in zip(record.labels, record.crowd, _coco_boxes(record.boxes)):
            area = round(sides[0] * sides[1], 4)
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label) + 1}
            annotations.append(annotation | {"bbox": [x, y, *sides], "area": area, "iscrowd": int(crowd)})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    with replacing(path) as file:
        file.write("{" + ",\n".join(f'"{key}": [{json_lines(entries)}\n]' for key, entries in lists.items()) + "}\n")


def _coco_boxes(boxes):
    """x, y, width, height of (G, 4) float32 boxes, with as few digits as give back x + width and y + height exactly."""
    corners = boxes.astype(str).astype(np.float64)  # numpy's text of a float32 is the shortest
    low, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    short = np.round(sides, 6)
    exact = (low + short).astype(np.float32) == boxes[:, 2:]
    return np.concatenate([low, np.where(exact, short, sides)], axis=1).tolist()


def _write_voc(folder, parts, class_names):
    records = {record.path: record for part in parts.values() for record in part}
    names = _tree_names(records)
    for place in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    for path, record in records.items():
        shutil.copyfile(path, folder / "JPEGImages" / names[path])
        keep = _fits_voc(record)
        corners = record.boxes[keep].astype(np.float64) + [1, 1, 0, 0]
        texts = [[f"{side:.9g}" for side in box] for box in corners.tolist()]
        objects = [{"difficult": int(difficult)} for difficult in record.difficult[keep]]
        labels = [class_names[label] for label in record.labels[keep]]
        file = folder / "Annotations" / f"{Path(names[path]).stem}.xml"
        write_voc_file(file, f"JPEGImages/{names[path]}", record.size, labels, texts, objects)
    for name, part in parts.items():
        with replacing(folder / "ImageSets" / "Main" / f"{name}.txt") as file:
            file.writelines(f"{Path(names[record.path]).stem}\n" for record in part)


def _fits_voc(record):
    """(G,) bool: VOC's boxes hold their last pixel, so that in one of a single pixel the two are the same."""
    return ((record.boxes[:, :2] + 1).astype(np.float32) < record.boxes[:, 2:]).all(axis=1)


def _write_yolo(folder, parts, class_names):
    names = _tree_names(dict.fromkeys(record.path for part in parts.values() for record in part))
    for part, records in parts.items():
        for record in records:
            picture = folder / "images" / part / names[record.path]
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path, picture)
            with replacing(folder / "labels" / part / f"{picture.stem}.txt") as file:
                for label, shares in zip(record.labels, yolo_shares(record.boxes, record.size).tolist()):
                    file.write(f"{label} {' '.join(f'{share:.12g}' for share in shares)}\n")
    with replacing(folder / "data.yaml") as file:
        file.writelines(f"{part}: images/{part}\n" for part in parts)
        file.write("names:\n")
        file.writelines(f"  {label}: {_quote(name)}\n" for label, name in enumerate(class_names))


def _quote(name):
    return "'" + name.replace("'", "''") + "'"


def _tree_names(paths):
    """What to call pictures in one folder: as they are called, or with the folders before where that is taken."""
    names, taken = {}, set()
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths] or [os.sep])
    for path in paths:
        inside = os.path.relpath(os.path.abspath(path), common)
        numbered = (f"{number}_{inside}" for number in itertools.count(2))
        for name in itertools.chain([os.path.basename(path), inside], numbered):
            # Lists of VOC have a name a line, and perhaps a flag after a blank.
            stem, suffix = os.path.splitext(re.sub(r"^\.|[^\w.+()-]", "_", name))
            if stem.lower() not in taken:
                break
        if suffix.lower() not in SUFFIXES:  # by which readers of trees know a picture; its kind, by its content
            stem, suffix = stem + suffix.replace(".", "_"), ".jpg"
        taken.add(stem.lower())
        names[path] = stem + suffix
    return names


_WRITERS = {"simple": write_annotations, "coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
