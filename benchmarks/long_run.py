"""What a long run takes and gives back, in memory, file handles and threads: `python -m benchmarks.long_run`.

Three parts, in one process: one run of 5,000 steps, a row every 500, with the smallest detector on pictures of 64x64
pixels or, `--model classifier`, the smallest classifier on 32x32; runs of the detector that end in an exception of the
generator, because a picture vanished; short runs one after the other.
"""

import argparse
import gc
import os
import sys
import tempfile
from itertools import chain
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from frcnn import training
from frcnn.classification import train_classifier
from frcnn.data.batches import batch_files
from frcnn.models.classifier import build_classifier
from tests.oracles.shapes import SHAPES, shape_records, shapes_config
from tests.oracles.tiny import CLASS_NAMES, tiny_config, write_tiny_pictures

EVERY = 500  # steps, an epoch
SCENES = 4


def main():
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="of the long run, in hundreds of 5 (default: 5000)")
    parser.add_argument("--model", choices=("detector", "classifier"), default="detector", help="of the long run")
    parser.add_argument("--runs", type=int, default=8, help="short runs, good and broken (default: 8)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        long_run(folder, arguments.model, arguments.steps // EVERY)
        repeat("a picture vanishes", arguments.runs, lambda index: broken_run(folder / f"broken{index}"))
        repeat("short runs", arguments.runs, lambda index: short_run(folder / f"short{index}"))
    return 0


def long_run(folder, kind, epochs):
    """Train for so many epochs of 500 steps; print a row for each, and the growth from the first to the last."""
    rows = []

    class Census(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rows.append(census())
            print(row(f"step {(epoch + 1) * EVERY}", rows[-1]), flush=True)

    build, training.build_callbacks = training.build_callbacks, lambda *a, **k: [*build(*a, **k), Census()]
    try:
        print(row("before", census()))
        if kind == "classifier":
            config, records = shapes_config(f"train.epochs={epochs}", "train.batch_size=4"), shape_records(4 * EVERY)
            model = training.build_model(config, SHAPES, build_classifier)
            train_classifier(model, records, validation=shape_records(8), output=folder / "run", verbose=0)
        else:
            validation = write_tiny_pictures(folder / "validation")
            config = tiny_config(f"train.epochs={epochs}", "train.batch_size=1")
            parts = (write_tiny_pictures(folder / str(index)) for index in range(EVERY // SCENES))
            training.train(config, list(chain.from_iterable(parts)), validation=validation, **output(folder / "run"))
    finally:
        training.build_callbacks = build
    growth = rows[-1][0] / rows[0][0] - 1
    print(f"growth after the first {EVERY} steps: memory {growth:+.1%}, handles {rows[-1][1] - rows[0][1]:+}, ", end="")
    print(f"threads {rows[-1][2] - rows[0][2]:+}\n")


def repeat(name, times, run):
    """Call run(0), run(1), ... and print a row after each."""
    for index in range(times):
        run(index)
        gc.collect()
        print(row(f"{name}, {index + 1}", census()), flush=True)
    print()


def broken_run(folder):
    """A run one of whose pictures vanishes before its second epoch needs it."""
    records, config = write_tiny_pictures(folder), tiny_config("train.epochs=3")
    Path(batch_files(records, config, config.train.seed, 0, 1)[0]).unlink()
    try:
        training.train(config, records, validation=[], **output(folder / "run"))
    except ValueError:
        return
    raise AssertionError("a picture is missing and nobody noticed")


def short_run(folder):
    """A run of two epochs of two steps, with validation."""
    records = write_tiny_pictures(folder)
    training.train(tiny_config("train.epochs=2"), records, validation=records, **output(folder / "run"))


def output(folder):
    """The arguments that all runs have."""
    return {"class_names": CLASS_NAMES, "output": folder, "verbose": 0}


def census():
    """(MB of resident memory, open file handles, threads) of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, *(len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))


def row(name, numbers):
    """A line of the table."""
    memory, handles, tasks = numbers
    return f"{name:<24}{memory:8.0f} MB{handles:5} handles{tasks:5} threads"


if __name__ == "__main__":
    sys.exit(main())
