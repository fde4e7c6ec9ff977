"""Data sets from one format to another, in parts such as train and val."""

import itertools
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np

from frcnn.data.images import SUFFIXES
from frcnn.data.readers import FORMATS, find_format, match_split, read_records, split_names
from frcnn.data.readers.coco import left_top_sides
from frcnn.data.readers.problems import SPLITS
from frcnn.files import fitting, locked, remove_drafts, replacing, require_room
from frcnn.outputs import json_lines, write_voc_file, yolo_shares


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
    format, where = find_format(path, format), {"outside": outside, "images": images}
    names = split_names(path, format)
    split = split if split in (None, "all") else match_split(split, names)
    if not names or split:
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
    what is the only one to train on is called trainval for VOC, and train for the other folders.

    Raises:
        ValueError: the format has no place for a part of this name.
    """
    paths = {name: {record.path for record in records} for name, records in parts.items()}
    if to != "voc":
        union = paths.get("train", set()) | paths.get("val", set())
        parts = {name: part for name, part in parts.items() if name != "trainval" or paths[name] != union}
    is_tree = FORMATS[to].suffix is None
    unnamed = {None: "trainval" if to == "voc" else "train"} if is_tree else {}
    if is_tree and to != "voc" and "train" not in parts:
        unnamed["trainval"] = "train"
    parts = {unnamed.get(name, name): part for name, part in parts.items()}
    if is_tree and to != "voc" and not set(parts) <= set(SPLITS):
        raise ValueError(f"{to} has the splits train, val and test, but here are {', '.join(parts)}: name one of them")
    return parts


def find_losses(records, class_names, to):
    """What a format cannot hold of these records: a list of sentences."""
    difficult = sum(int(record.difficult.sum()) for record in records)
    crowd = sum(int(record.crowd.sum()) for record in records)
    thin = sum(len(record.boxes) - int(_fits_voc(record).sum()) for record in records)
    shown = sorted({class_names[label] for record in records for label in record.labels})
    holds = FORMATS[to].holds
    losses = {
        f"{difficult} marks of difficult boxes": difficult and "difficult" not in holds,
        f"{crowd} marks of crowds": crowd and "crowd" not in holds,
        f"{thin} boxes not more than one pixel wide or high": thin and to == "voc",
        "the order of the classes, or those without boxes": "classes" not in holds and tuple(shown) != class_names,
    }
    return [loss for loss, happens in losses.items() if happens]


def write_parts(target, parts, class_names, to):
    """Write a data set, whole or not at all.

    Formats with a suffix: `<part>.txt` or `<part>.json` (`annotations` without parts) that name the pictures where they
    are. The others: a tree into which the pictures are copied, under their names as far as these differ.

    Args:
        target: folder that does not exist or is empty; for one part of a format with a suffix also a new file with it.
        parts: dict as from `name_parts`.
        class_names: tuple of K strings.
        to: one of `TARGETS`.

    Raises:
        ValueError: the target is taken, or a name holds a character that annotations cannot.
        OSError: a file cannot be read or written.
    """
    for name in class_names:
        if not name.isprintable():
            raise ValueError(f"the class {name!r} holds a character that stands in no name: rename it")
    for path in {record.path for part in parts.values() for record in part} if to == "simple" else ():
        if path != path.strip() or not path.isprintable():
            raise ValueError(f"{path!r}: a text file cannot hold this name: rename the picture, or take another format")
    target = Path(target)
    beside = target.with_name(fitting(f".frcnn-{target.name}", ".lock"))
    with locked(beside, f"{target} is being written", "wait for that, or name another target"):
        require_new(target)
        _write_locked(target, parts, class_names, to)


def require_new(target):
    """Raise ValueError unless a data set can be written to a target that is not there yet, or is an empty folder."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: name a new folder, or an empty one")
    require_room(target.parent)


def _write_locked(target, parts, class_names, to):
    suffix, write = FORMATS[to].suffix, _WRITERS[to]
    if target.suffix.lower() == suffix:
        if len(parts) > 1:
            raise ValueError(f"{target}: {', '.join(parts)} are {len(parts)} files: name a folder, or one of them")
        (records,) = parts.values()
        remove_drafts(target.parent)
        write(target, records, class_names)
        return
    draft = target.with_name(fitting(f".frcnn-{target.name}", ".tmp"))
    shutil.rmtree(draft, ignore_errors=True)  # what a killed process left
    try:
        if suffix is None:
            draft.mkdir(parents=True)
            write(draft, parts, class_names, _tree_names(record.path for part in parts.values() for record in part))
        for name, records in parts.items() if suffix else ():
            write(draft / f"{name or 'annotations'}{suffix}", records, class_names)
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
        for label, crowd, (x, y, *sides) in zip(record.labels, record.crowd, left_top_sides(record.boxes)):
            area = round(sides[0] * sides[1], 4)
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label) + 1}
            annotations.append(annotation | {"bbox": [x, y, *sides], "area": area, "iscrowd": int(crowd)})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    with replacing(path) as file:
        file.write("{" + ",\n".join(f'"{key}": [{json_lines(entries)}\n]' for key, entries in lists.items()) + "}\n")


def _write_voc(folder, parts, class_names, names):
    records = {record.path: record for part in parts.values() for record in part}
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


def _write_yolo(folder, parts, class_names, names):
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
    paths, names, taken = list(dict.fromkeys(paths)), {}, set()
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


_WRITERS = {name: row.write for name, row in FORMATS.items() if row.write}
_WRITERS |= {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}
TARGETS = tuple(name for name in FORMATS if name in _WRITERS)  # what `write_parts` writes
