"""Score a trained detector on annotated pictures: average precision as Pascal VOC or COCO defines it.

Writes evaluation.json, and as PNG and CSV the precision-recall curves at --iou and the confusion matrix."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_override_argument, add_run_arguments, find_run
from frcnn.files import replacing

EXAMPLE = "frcnn evaluate -p test.txt --run runs/demo --metric coco"
SPLITS = ("test", "val", "trainval", "train")


def add_arguments(parser):
    """The arguments of `frcnn evaluate`."""
    add_annotation_arguments(parser)
    add_run_arguments(parser)
    add = parser.add_argument
    add("--metric", default="voc12", choices=["voc07", "voc12", "coco"], help="11 points, all points (default), COCO")
    add("--iou", type=float, default=0.5, metavar="IOU", help="overlap of a hit (default: 0.5); COCO has its own")
    add("--confusion-score", type=float, default=0.5, metavar="S", help="lowest score in the matrix (default: 0.5)")
    add("--detections", metavar="FILE", help="detections.json of `frcnn detect` to score, instead of detecting anew")
    add("--output", metavar="FOLDER", help="where to write (default: the run folder, or that of --detections)")
    add_override_argument(parser)


def run(arguments):
    """Detect in every annotated picture, or read what was detected; print the table, write everything."""
    from frcnn.evaluation import confusion_matrix, evaluate

    thresholds = {"iou_threshold": arguments.iou, "score_threshold": arguments.confusion_score}
    # What is wrong with the thresholds is to be said before a detector runs for an hour.
    evaluate([], [], (), arguments.metric, arguments.iou)
    confusion_matrix([], [], (), **thresholds)
    records, found, class_names, folder = (_read_detections if arguments.detections else _detect)(arguments)
    result = evaluate(records, found, class_names, arguments.metric, arguments.iou)
    print(result.to_table())
    curves = evaluate(records, found, class_names) if arguments.metric == "coco" else result
    matrix = confusion_matrix(records, found, class_names, **thresholds)

    from frcnn.plots import plot_confusion_matrix, plot_precision_recall

    output = Path(arguments.output or folder)
    with replacing(output / "evaluation.json") as file:
        file.write(json.dumps(result.to_dict(), indent=2) + "\n")
    points = ((name, *point) for name, curve in zip(class_names, curves.curves) for point in curve.round(6).T.tolist())
    write_csv(output / "precision_recall.csv", ["class", "score", "precision", "recall"], points)
    rows = ((name, *row) for name, row in zip([*class_names, "background"], matrix.tolist()))
    write_csv(output / "confusion_matrix.csv", ["true class", *class_names, "missed"], rows)
    plot_precision_recall(curves, output / "precision_recall.png")
    title = f"Confusion matrix, IoU >= {arguments.iou:g}, score >= {arguments.confusion_score:g}"
    plot_confusion_matrix(matrix, class_names, output / "confusion_matrix.png", title)
    print(f"written to {output}: evaluation.json; precision_recall and confusion_matrix, .csv and .png")
    return 0


def _detect(arguments):
    from frcnn.config import load_run_config

    place = find_run(arguments.run)
    _, class_names = load_run_config(place, "detector")
    records = _read_records(arguments, class_names)

    from frcnn.inference import detect, load_detector

    detector = load_detector(place, weights=arguments.weights, overrides=arguments.overrides)
    found = detect(detector, [record.path for record in records])
    return records, found, class_names, place if place.is_dir() else place.parent


def _read_records(arguments, class_names):
    from frcnn.data.readers import find_format, read_records, split_names

    split = arguments.split
    if split is None and find_format(arguments.path) in ("voc", "yolo"):
        names = split_names(arguments.path)
        split = next((name for name in SPLITS if name in names), None)
        print(f"split: {split or 'none, every XML file'}")
    records, _ = read_records(arguments.path, arguments.parser, class_names, split, outside=arguments.outside)
    if not any((~record.difficult & ~record.crowd).any() for record in records):
        raise ValueError(f"{arguments.path} has no box that is scored, so that no score is possible: mark objects")
    return records


def _read_detections(arguments):
    if arguments.run or arguments.overrides:
        raise ValueError("--detections runs no detector: leave out --run and field=value")
    path = Path(arguments.detections)
    class_names, found = _load_detections(path)
    records = _read_records(arguments, class_names)
    matched = _match(records, found, path)
    if len(found) > len(records):
        print(f"{len(found) - len(records)} pictures of {path} are not annotated: left out")
    return records, matched, class_names, path.parent


def _load_detections(path):
    """The class names, and a dict from file name to Detections, of a detections.json and its detections.images.json."""
    import numpy as np

    from frcnn.records import Detections

    files = (path.with_suffix(".images.json"), path)
    try:
        listing, results = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        class_names = tuple(category["name"] for category in listing["categories"])
        labels = {category["id"]: label for label, category in enumerate(listing["categories"])}
        rows = {image["file_name"]: [] for image in listing["images"]}
        for entry in results:
            x, y, width, height = entry["bbox"]
            box = (x, y, x + width, y + height)
            rows[entry["file_name"]].append((entry["score"], labels[entry["category_id"]], *box))
        tables = {name: np.array(rows[name], np.float64).reshape(-1, 6) for name in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: it and {files[0].name} must be as `frcnn detect` writes them ({type(error).__name__}: {error})"
        ) from error
    return class_names, {
        name: Detections(table[:, 2:], table[:, 0], table[:, 1], class_names) for name, table in tables.items()
    }


def _match(records, found, path):
    """The detections of each record: those of the same path or, where the folder was another, of the same file name."""
    for key in (os.path.abspath, os.path.basename):
        keyed = {key(name): name for name in found}
        missing = [record.path for record in records if key(record.path) not in keyed]
        unique = len(keyed) == len(found) and len({key(record.path) for record in records}) == len(records)
        if unique and not missing:
            return [replace(found[keyed[key(record.path)]], path=record.path) for record in records]
    raise ValueError(
        f"{path} lacks {len(missing)} of the {len(records)} pictures, {missing[0]} for one: detect in all of them"
        if missing
        else f"{path} was written for other folders, and pictures in different ones have the same name: detect anew"
    )


def write_csv(path, header, rows):
    """Write a header and rows of plain values as a CSV file, whole or not at all."""
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
