"""Train a Faster R-CNN on annotated pictures and write a run folder: weights, config, split, curves."""

import sys
import time
from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_override_argument

EXAMPLE = "frcnn train -p annotations.txt --config config/resnet50_c4.yaml train.epochs=10"


def add_arguments(parser):
    """The arguments of `frcnn train`."""
    add_annotation_arguments(parser)
    parser.add_argument(
        "--validation", metavar="FILE", help="annotations to validate on (default: data.val_fraction of FILE)"
    )
    parser.add_argument("--config", metavar="YAML", help="a recipe (default: the defaults of `frcnn inspect config`)")
    parser.add_argument("--output", metavar="FOLDER", help="run folder to create (default: runs/<date>-<time>)")
    add_override_argument(parser)


def run(arguments):
    """Read, train, say where everything is."""
    from frcnn.config import load_config
    from frcnn.data.readers import read_records

    config = load_config(arguments.config, arguments.overrides)
    records, class_names = read_records(arguments.path, arguments.parser)
    validation = None
    if arguments.validation:
        validation, _ = read_records(arguments.validation, arguments.parser, class_names)
    output = Path(arguments.output or time.strftime("runs/%Y%m%d-%H%M%S"))
    boxes = sum(len(record.boxes) for record in records)
    print(f"{len(records)} pictures, {boxes} boxes, {len(class_names)} classes: {', '.join(class_names)}")

    from frcnn import backend, training
    from frcnn.models.detector import dtype_policy, normalisation

    numbers = f"{dtype_policy(config.train.precision)}, {normalisation(config.model.norm)} normalisation"
    print(f"{backend.start_device()}, {numbers}; run folder {output}", flush=True)
    start = time.perf_counter()
    verbose = 1 if sys.stdout.isatty() else 2
    history = training.train(
        config, records, class_names=class_names, validation=validation, output=output, verbose=verbose
    )
    _say_how_it_went(history.history, time.perf_counter() - start, output)
    return 0


def _say_how_it_went(history, seconds, output):
    print(f"{len(history['loss'])} epochs in {seconds / 60:.1f} minutes, loss {history['loss'][-1]:.3f}")
    if "val_map" in history:
        scores = history["val_map"]
        epoch = scores.index(max(scores)) + 1
        print(f"best validation mAP {max(scores):.3f} after epoch {epoch}, last {scores[-1]:.3f}")
    print(f"detect with: python test_frcnn.py -p FOLDER --run {output}")
