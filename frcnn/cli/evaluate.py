"""Score a trained detector on annotated pictures: average precision per class, as Pascal VOC defines it."""

import json
from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_override_argument, add_run_arguments, find_run
from frcnn.files import replacing

EXAMPLE = "frcnn evaluate -p test.txt --run runs/demo --metric voc12"


def add_arguments(parser):
    """The arguments of `frcnn evaluate`."""
    add_annotation_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument(
        "--metric", default="voc12", choices=["voc07", "voc12"], help="11 points or all points (default)"
    )
    parser.add_argument("--iou", type=float, default=0.5, metavar="IOU", help="overlap of a hit (default: 0.5)")
    parser.add_argument("--output", metavar="FILE", help="JSON to write (default: evaluation.json in the run folder)")
    add_override_argument(parser)


def run(arguments):
    """Detect in every annotated picture, print the table, write the JSON."""
    from frcnn.config import load_run_config
    from frcnn.data.readers import read_records
    from frcnn.evaluation import evaluate

    folder = find_run(arguments.run)
    _, class_names = load_run_config(folder)
    records, _ = read_records(arguments.path, arguments.parser, class_names)

    from frcnn.inference import detect, load_detector

    detector = load_detector(folder, weights=arguments.weights, overrides=arguments.overrides)
    found = detect(detector, [record.path for record in records])
    result = evaluate(records, found, class_names, metric=arguments.metric, iou_threshold=arguments.iou)
    print(result.to_table())
    output = Path(arguments.output or folder / "evaluation.json")
    with replacing(output) as file:
        file.write(json.dumps(result.to_dict(), indent=2) + "\n")
    print(f"written to {output}")
    return 0
