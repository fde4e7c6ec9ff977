"""Score a trained detector on annotated pictures: average precision as Pascal VOC or COCO defines it.

Writes evaluation.json, and as PNG and CSV the precision-recall curves at --iou and the confusion matrix."""

import json
import os
from dataclasses import replace
from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_override_argument, add_run_arguments, find_run
from frcnn.files import locked, read_at_most, reading, remove_drafts, replacing, require_room
from frcnn.outputs import write_rows

EXAMPLE = "frcnn evaluate -p test.txt --run runs/demo --metric coco"
FILES = (
    *("evaluation.json", "precision_recall.csv", "confusion_matrix.csv"),
    *("precision_recall.png", "confusion_matrix.png"),
)
MOST_COLUMNS = 2000  # of confusion_matrix.csv; no table program shows many more
MOST_BYTES, LARGEST = 1 << 30, 1e9  # of a detections.json; numbers in it, pixels
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
    output = _output(arguments)
    require_room(output, FILES)
    cure = "wait for that one, or name another --output"
    with locked(output / ".evaluate.lock", f"{output} is being evaluated into", cure):
        remove_drafts(output)
        return _run(arguments, output, thresholds)


def _output(arguments):
    if arguments.output:
        return Path(arguments.output)
    place = Path(arguments.detections) if arguments.detections else find_run(arguments.run)
    return place if place.is_dir() else place.parent


def _run(arguments, output, thresholds):
    from frcnn.evaluation import confusion_matrix, evaluate

    records, found, class_names = (_read_detections if arguments.detections else _detect)(arguments)
    result = evaluate(records, found, class_names, arguments.metric, arguments.iou)
    print(result.to_table())
    curves = evaluate(records, found, class_names) if arguments.metric == "coco" else result
    matrix = confusion_matrix(records, found, class_names, **thresholds)

    from frcnn.plots import plot_confusion_matrix, plot_precision_recall

    with replacing(output / "evaluation.json") as file:
        file.write(json.dumps(result.to_dict(), indent=2) + "\n")
    points = ((name, *point) for name, curve in zip(class_names, curves.curves) for point in curve.round(6).T.tolist())
    write_csv(output / "precision_recall.csv", ["class", "score", "precision", "recall"], points)
    names = ([*class_names, "background"], [*class_names, "missed"])
    write_confusion(output / "confusion_matrix.csv", matrix, *names)
    plot_precision_recall(curves, output / "precision_recall.png")
    title = f"Confusion matrix, IoU >= {arguments.iou:g}, score >= {arguments.confusion_score:g}"
    plot_confusion_matrix(matrix, class_names, output / "confusion_matrix.png", title)
    print(f"written to {output}: evaluation.json; precision_recall and confusion_matrix, .csv and .png")
    return 0


def _detect(arguments):
    from frcnn.config import load_run_config

    place = find_run(arguments.run, weights=arguments.weights)
    _, class_names = load_run_config(place, "detector")
    records = _read_records(arguments, class_names)

    from frcnn.inference import detect, load_detector

    detector = load_detector(place, weights=arguments.weights, overrides=arguments.overrides)
    found = detect(detector, [record.path for record in records])
    return records, found, class_names


def _read_records(arguments, class_names):
    from frcnn.data.readers import find_format, read_records, split_names

    split = arguments.split
    names = split_names(arguments.path, arguments.parser)
    if split is None and (names or find_format(arguments.path, arguments.parser) == "voc"):
        split = next((name for name in SPLITS if name in names), None)
        print(f"split: {split or 'none, every XML file'}")
    where = {"outside": arguments.outside, "images": arguments.images}
    records, _ = read_records(arguments.path, arguments.parser, class_names, split, **where)
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
    return records, matched, class_names


def _load_detections(path):
    """The class names, and a dict from file name to Detections, of a detections.json and its detections.images.json."""
    import numpy as np

    from frcnn.records import Detections

    listing_path = path.with_suffix(".images.json")
    listing, results = _read_json(listing_path, dict), _read_json(path, list)
    class_names = tuple(_texts(listing, "categories", "name", listing_path))
    labels = {category.get("id"): label for label, category in enumerate(listing["categories"])}
    rows = {name: [] for name in _texts(listing, "images", "file_name", listing_path)}
    with reading(path, "detections"):
        for index, entry in enumerate(results):
            row = _row(entry, index, labels, rows)
            rows[entry["file_name"]].append(row)
    tables = {name: np.array(rows[name], np.float64).reshape(-1, 6) for name in rows}
    return class_names, {
        name: Detections(table[:, 2:], table[:, 0], table[:, 1], class_names) for name, table in tables.items()
    }


def _read_json(path, kind):
    with reading(path, "detections as `frcnn detect` writes them"):
        data = read_at_most(path, MOST_BYTES)
        if data is None:
            raise ValueError(f"more than {MOST_BYTES >> 30} GiB is not read")
        content = json.loads(data)
        if not isinstance(content, kind):
            raise ValueError(f"not as `frcnn detect` writes it: expected a {kind.__name__}, got {content!r:.40}")
        return content


def _texts(listing, key, field, path):
    """The names in a list of detections.images.json."""
    entries = listing.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: not as `frcnn detect` writes it: expected a list {key!r}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
            raise ValueError(f"{path}: {key}[{index}] ({entry!r:.80}) has no {field}")
        if key == "categories" and type(entry.get("id")) is not int:
            raise ValueError(f"{path}: {key}[{index}] ({entry!r:.80}) has no id")
    return [entry[field] for entry in entries]


def _row(entry, index, labels, rows):
    """(score, label, x1, y1, x2, y2) of an entry of detections.json."""
    if not isinstance(entry, dict):
        raise ValueError(f"[{index}] ({entry!r:.80}) is no detection")
    box, score = entry.get("bbox"), entry.get("score")
    numbers = [*box, score] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers):
        raise ValueError(f"[{index}] needs a bbox of four numbers and a score, got {box!r:.80} and {score!r:.40}")
    category, name = entry.get("category_id"), entry.get("file_name")
    if type(category) is not int or category not in labels:
        raise ValueError(f"[{index}]: category_id {category!r:.40} is of no category in detections.images.json")
    if not isinstance(name, str) or name not in rows:
        raise ValueError(f"[{index}]: file_name {name!r:.80} is of no picture in detections.images.json")
    x, y, width, height = box
    return score, labels[category], x, y, x + width, y + height


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


def write_confusion(path, matrix, rows, columns):
    """Write a confusion matrix as a CSV file; of more than `MOST_COLUMNS` classes a row for each count above 0."""
    if len(columns) <= MOST_COLUMNS:
        write_csv(path, ["true class", *columns], ((name, *row.tolist()) for name, row in zip(rows, matrix)))
        return
    found = ((rows[row], columns[column], matrix[row, column]) for row, column in zip(*matrix.nonzero()))
    write_csv(path, ["true class", "taken for", "count"], found)


def write_csv(path, header, rows):
    """Write a header and rows of plain values as a CSV file, whole or not at all."""
    with replacing(path) as file:
        write_rows(file, [header])
        write_rows(file, rows)
