"""Detections on disk: COCO results (JSON), a table (CSV), VOC XML, YOLO text, and the objects cut out of a picture.

`write_json` and `write_csv` take any iterable, so that any number of pictures needs little memory. All tell a picture
in which nothing was found from one never looked at, and replace an older file only once the new one is complete.
"""

import csv
import functools
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from frcnn.data.images import write_image
from frcnn.files import fitting, is_of_the_name, replacing

BOX_DECIMALS = 2
SCORE_DECIMALS = 5
YOLO_DECIMALS = 6
# Control characters (a reader would turn line ends into others), halves of letters, and what is no character.
_NOT_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ON_WINDOWS = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)  # devices, whatever the suffix


def write_json(path, detections):
    """Write a COCO results file, and beside it the list of the pictures.

    `detections.json` is the list that `pycocotools.COCO.loadRes` takes, one line a detection:
    `{"image_id", "category_id", "bbox": [x, y, width, height], "score", "file_name", "category_name"}`. Such a list has
    no place for a picture without detections, so `detections.images.json` holds every picture as
    `{"id", "file_name", "detections": their number}` (with "height" and "width" where the size is known) and every
    class as `{"id", "name"}`, under COCO's keys "images" and "categories".

    `image_id` is the place of the picture in `detections`, from 1, and `category_id` the label plus 1, as COCO counts;
    annotations that are numbered otherwise are joined by "file_name". Boxes are rounded to 2 decimals, scores to 5.

    Args:
        path: file to write, ending in ".json"; missing folders are made.
        detections: iterable of Detections, all with the same class names.

    Returns:
        (path, images_path), both Path.

    Raises:
        ValueError: class names disagree, or a box or score is not finite.
    """
    path, names, count = Path(path), (), 0
    images_path = path.with_suffix(".images.json")
    # The inner file takes its place first: whoever finds the results finds their pictures too.
    with replacing(path) as results, replacing(images_path) as images:
        images.write('{"images": [')
        results.write("[")
        for index, found in enumerate(detections):
            names = names if index else found.class_names
            _require_same_classes(index, found, names)
            image = {"id": index + 1, "file_name": found.path, "detections": len(found)}
            image |= dict(zip(("height", "width"), found.size or ()))
            images.write(json_lines([image], index))
            results.write(json_lines(_coco_results(image, found), count))
            count += len(found)
        categories = [{"id": category_id, "name": name} for category_id, name in enumerate(names, start=1)]
        images.write(f'\n], "categories": [{json_lines(categories, 0)}\n]}}\n')
        results.write("\n]\n")
    return path, images_path


def write_csv(path, detections):
    """Write a table with the columns file, x1, y1, x2, y2, score, class and a row per detection.

    A picture without detections has one row that is empty after the file, like a background-only picture in an
    annotation file. Boxes are xyxy pixels rounded to 2 decimals, scores are rounded to 5.

    Args:
        path: file to write; missing folders are made.
        detections: iterable of Detections.

    Returns:
        Path of the file.

    Raises:
        ValueError: a box or score is not finite.
    """
    path = Path(path)
    with replacing(path) as file:
        write_rows(file, [["file", "x1", "y1", "x2", "y2", "score", "class"]])
        for found in detections:
            boxes, scores = _rounded(found)
            rows = zip(boxes.tolist(), scores.tolist(), _label_names(found))
            write_rows(file, ([found.path, *box, score, name] for box, score, name in rows))
            if not len(found):
                write_rows(file, [[found.path, "", "", "", "", "", ""]])
    return path


def write_rows(file, rows):
    """Write rows of plain values as CSV into an open file."""
    plain, quoted = (csv.writer(file, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        # Readers end a row at "\r" too, which may stand in the name of a file; the csv of Python 3.11 leaves it bare.
        (quoted if "\r" in str(row[0]) else plain).writerow(row)


def write_voc(path, found):
    """Write the detections of one picture as a Pascal VOC annotation, each object with its score.

    VOC counts pixels from 1 and its boxes include their last pixel, so a box is (x1 + 1, y1 + 1, x2, y2), rounded to
    whole pixels of the picture.

    Args:
        path: XML file to write; missing folders are made.
        found: Detections whose `size` is known.

    Raises:
        ValueError: a box or score is not finite.
    """
    height, width = found.size
    boxes, scores = _rounded(found)
    first = np.clip(np.round(boxes[:, :2]), 0, [width - 1, height - 1]) + 1
    last = np.maximum(np.round(boxes[:, 2:]), first)  # what is thinner than half a pixel keeps one
    corners = np.concatenate([first, last], axis=1).astype(int).tolist()
    objects = [{"difficult": 0, "score": score} for score in scores.tolist()]
    write_voc_file(path, found.path, found.size, _label_names(found), corners, objects)


def write_voc_file(path, picture, size, names, corners, objects):
    """Write a Pascal VOC annotation; a character that XML cannot hold is written as Python escapes it, `\\x01`.

    Args:
        path: XML file to write; missing folders are made.
        picture: path of the picture.
        size: its (height, width).
        names: list of the boxes' classes.
        corners: list of [xmin, ymin, xmax, ymax], as they are to stand in the file.
        objects: list of dicts, what else each <object> says.
    """
    root = ElementTree.Element("annotation")
    _add(root, folder=Path(picture).parent.name, filename=Path(picture).name, path=picture)
    _add(ElementTree.SubElement(root, "size"), width=size[1], height=size[0], depth=3)
    for name, box, more in zip(names, corners, objects):
        entry = ElementTree.SubElement(root, "object")
        _add(entry, name=name, **more)
        _add(ElementTree.SubElement(entry, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), box)))
    ElementTree.indent(root)
    with replacing(path, binary=True) as file:
        file.write(ElementTree.tostring(root, encoding="utf-8") + b"\n")


def write_yolo(path, found):
    """Write the detections of one picture as YOLO text: `class cx cy w h score` a line, an empty file for none.

    Args:
        path: text file to write; missing folders are made.
        found: Detections whose `size` is known; centre and sides become shares of the picture's width and height.

    Raises:
        ValueError: a box or score is not finite.
    """
    boxes, scores = _rounded(found)
    with replacing(path) as file:
        for label, share, score in zip(found.labels, yolo_shares(boxes, found.size), scores):
            numbers = " ".join(f"{side:.{YOLO_DECIMALS}f}" for side in share)
            file.write(f"{label} {numbers} {score:.{SCORE_DECIMALS}f}\n")


def yolo_shares(boxes, size):
    """(D, 4) float64 centres and sides, cx cy w h, of xyxy boxes as shares of a picture's size (height, width)."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    return np.concatenate([(low + high) / 2, high - low], axis=1) / [*size[::-1], *size[::-1]]


def write_crops(folder, name, image, found, same=str):
    """Cut the detections out of their picture: `folder/<class>/<name>_<n>.jpg`, n from 1, best first.

    Args:
        folder: where the folders of the classes are made, see `crop_folders`.
        name: the picture's, without suffix; it may hold folders.
        image: (H, W, 3) uint8 RGB.
        found: Detections.
        same: see `unique_names`.

    Raises:
        ValueError: a file cannot be written; the others are.
    """
    edge, places, failed = np.array(image.shape[1::-1]), crop_folders(found.class_names, same), None
    first = np.clip(np.floor(found.boxes[:, :2]), 0, edge - 1).astype(int)
    last = np.clip(np.ceil(found.boxes[:, 2:]), first + 1, edge).astype(int)
    for index, ((x1, y1), (x2, y2)) in enumerate(zip(first, last)):
        path = Path(folder, places[found.labels[index]], fitting(name, f"_{index + 1}.jpg"))
        try:
            write_image(path, image[y1:y2, x1:x2])
        except ValueError as error:
            if not is_of_the_name(error):
                raise
            failed = error
    if failed:
        raise failed


@functools.lru_cache(maxsize=8)
def crop_folders(class_names, same=str):
    """What the folders of the classes are called, a list of strings, no two the same.

    What the name of a folder cannot hold, here or on Windows, becomes "_"; the label then stands before it.

    Args:
        class_names: tuple of K strings.
        same: see `unique_names`.
    """
    names = []
    for label, name in enumerate(class_names):
        safe = fitting(re.sub(r"[^\w .+-]", "_", name).strip(" ."))
        names.append(safe if safe and safe == name and not _ON_WINDOWS.fullmatch(name) else fitting(f"{label}_{safe}"))
    return unique_names(names, same)


def unique_stems(names, same=str):
    """Shorten file names to what a file beside each can be called: without suffix, where no other is then the same.

    Args:
        names: list of distinct relative paths, "/" between their parts.
        same: see `unique_names`.

    Returns:
        list of strings: ["a.jpg", "b.jpg", "b.png"] gives ["a", "b.jpg", "b.png"].
    """
    names = list(names)
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    folders = {str(folder) for place in {*map(os.path.dirname, names)} for folder in (place, *Path(place).parents)}
    beside = (re.fullmatch(r"(.+)(\.xml|\.txt|_\d+\.jpg)", folder) for folder in folders)  # no file is called like that
    taken = {"classes", *(match[1] for match in beside if match)}  # YOLO's list of the classes lies there too
    while True:
        times = Counter(map(same, [*stems, *taken]))
        clashing = [index for index, stem in enumerate(stems) if times[same(stem)] > 1 and stem != names[index]]
        if not clashing:
            return unique_names(stems, same, taken)
        for index in clashing:  # a whole name may be the stem of another: a.png of a.png.png
            stems[index] = names[index]


def unique_names(names, same=str, taken=()):
    """Number names that come again: ["a.png", "A.png"] becomes ["a.png", "A_2.png"] where these are the same.

    Args:
        names: list of strings, "/" between the parts of a path.
        same: function that gives equal texts for names that a file system takes for one.
        taken: names that no other may have.
    """
    own, used, unique = set(map(same, names)), set(map(same, taken)), []
    for name in names:
        stem, suffix = os.path.splitext(name)
        numbered = (fitting(f"{stem}_{number}", suffix) for number in itertools.count(2))
        free = itertools.chain([name][: same(name) not in used], (name for name in numbered if same(name) not in own))
        unique.append(next(name for name in free if same(name) not in used))
        used.add(same(unique[-1]))
    return unique


def _require_same_classes(index, found, names):
    if found.class_names != names:
        raise ValueError(
            f"detections {index} ({found.path}) name the classes {found.class_names}, detections 0 {names}: "
            "write those of different detectors into different files"
        )


def _coco_results(image, found):
    boxes, scores = _rounded(found)
    # The sides are taken from rounded corners, so that x + width gives the x2 of the table.
    sides = np.round(boxes[:, 2:] - boxes[:, :2], BOX_DECIMALS)
    boxes = np.concatenate([boxes[:, :2], sides], axis=1)
    return [
        {
            "image_id": image["id"],
            "category_id": label + 1,
            "bbox": box,
            "score": score,
            "file_name": image["file_name"],
            "category_name": name,
        }
        for label, name, box, score in zip(
            found.labels.tolist(), _label_names(found), boxes.tolist(), scores.tolist(), strict=True
        )
    ]


def json_lines(entries, before=0):
    """Entries of a JSON list, a line each, that follow `before` others."""
    lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
    return "".join(f"{',' * bool(before + index)}\n{line}" for index, line in enumerate(lines))


def _add(parent, **texts):
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = _NOT_XML.sub(lambda found: ascii(found[0])[1:-1], str(text))


def _label_names(found):
    return [found.class_names[label] for label in found.labels]


def _rounded(found):
    """Boxes (D, 4) and scores (D,) in float64: a rounded float32 would be written as 12.340000152587891."""
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise ValueError(
            f"{found.path or 'detections'}: a box or score is not finite; the weights that found it are likely broken"
        )
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64)
    return np.round(boxes, BOX_DECIMALS), np.round(scores, SCORE_DECIMALS)
