"""Detections on disk: as COCO results (JSON) and as a table (CSV).

Both writers tell a picture in which nothing was found from one that was never looked at, and replace an older file only
once the new one is complete.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.files import replacing

BOX_DECIMALS = 2
SCORE_DECIMALS = 5


def write_json(path, detections, sizes=None):
    """Write a COCO results file, and beside it the list of the pictures.

    `detections.json` is the list that `pycocotools.COCO.loadRes` takes, one line a detection:
    `{"image_id", "category_id", "bbox": [x, y, width, height], "score", "file_name", "category_name"}`. Such a list has
    no place for a picture without detections, so `detections.images.json` holds every picture as
    `{"id", "file_name", "detections": their number}` (with "height" and "width" where sizes are given) and every class
    as `{"id", "name"}`, under COCO's keys "images" and "categories".

    `image_id` is the place of the picture in `detections`, from 1, and `category_id` the label plus 1, as COCO counts;
    annotations that are numbered otherwise are joined by "file_name". Boxes are rounded to 2 decimals, scores to 5.

    Args:
        path: file to write, ending in ".json"; missing folders are made.
        detections: list of Detections, all with the same class names.
        sizes: list of (height, width) of the same pictures, pixels, or None.

    Returns:
        (path, images_path), both Path.

    Raises:
        ValueError: sizes or class names disagree, or a box or score is not finite.
    """
    path = Path(path)
    images, categories = _coco_images(detections, sizes), _coco_categories(detections)
    results = [entry for image, found in zip(images, detections, strict=True) for entry in _coco_results(image, found)]
    images_path = path.with_suffix(".images.json")
    # The pictures first: whoever finds the results finds their list too.
    with replacing(images_path) as file:
        file.write(f'{{"images": {_json_lines(images)}, "categories": {_json_lines(categories)}}}\n')
    with replacing(path) as file:
        file.write(_json_lines(results) + "\n")
    return path, images_path


def write_csv(path, detections):
    """Write a table with the columns file, x1, y1, x2, y2, score, class and a row per detection.

    A picture without detections has one row that is empty after the file, like a background-only picture in an
    annotation file. Boxes are xyxy pixels rounded to 2 decimals, scores are rounded to 5.

    Args:
        path: file to write; missing folders are made.
        detections: list of Detections.

    Returns:
        Path of the file.

    Raises:
        ValueError: a box or score is not finite.
    """
    path = Path(path)
    empty = np.full((1, 5), np.nan)
    numbers = [np.column_stack(_rounded(found)) if len(found) else empty for found in detections]
    table = pd.DataFrame(np.concatenate([np.zeros((0, 5)), *numbers]), columns=["x1", "y1", "x2", "y2", "score"])
    table.insert(0, "file", [found.path for found in detections for _ in range(max(len(found), 1))])
    table["class"] = [name for found in detections for name in _label_names(found) or [""]]
    with replacing(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")
    return path


def _coco_images(detections, sizes):
    if sizes is not None and len(sizes) != len(detections):
        raise ValueError(f"{len(sizes)} sizes but {len(detections)} detections: give one (height, width) per picture")
    images = []
    for index, found in enumerate(detections):
        image = {"id": index + 1, "file_name": found.path, "detections": len(found)}
        if sizes is not None:
            image["height"], image["width"] = map(int, sizes[index])
        images.append(image)
    return images


def _coco_categories(detections):
    names = detections[0].class_names if detections else ()
    for index, found in enumerate(detections):
        if found.class_names != names:
            raise ValueError(
                f"detections {index} ({found.path}) name the classes {found.class_names}, detections 0 {names}: "
                "write those of different detectors into different files"
            )
    return [{"id": category_id, "name": name} for category_id, name in enumerate(names, start=1)]


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


def _json_lines(entries):
    if not entries:
        return "[]"
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]"
