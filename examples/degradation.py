"""Does a deeper plain network learn worse than a shallower one, and do shortcuts mend it?

He et al. 2015, section 4.2, in small: plain and residual networks of 20 and 56 layers, which differ in nothing else,
are trained side by side on the pictures of a tutorial, hand signs in two HDF5 files, made 32x32 pixels. The chart shows
training and test error after each epoch. Without a path the files are looked for in the folder `signs` of `FRCNN_DATA`.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import h5py
import keras
import numpy as np
from matplotlib.figure import Figure

import frcnn


def read_signs(folder, part, side):
    """Read `train_signs.h5` or `test_signs.h5`.

    Returns:
        (N, side, side, 3) float32 pictures with mean 0 and deviation 1 or so, (N,) int labels.
    """
    with h5py.File(Path(folder, f"{part}_signs.h5")) as file:
        pictures, labels = file[f"{part}_set_x"][:], file[f"{part}_set_y"][:].ravel()
    pictures = [cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pictures]
    return (np.array(pictures, np.float32) - 127.5) / 64, labels


def train(blocks, residual, data, arguments):
    """Train one network with the optimizer of the paper: SGD with momentum, the learning rate divided by 10 twice.

    Args:
        blocks: of each of the three stages; the network has 6 x blocks + 2 layers with weights.
        residual: with shortcuts.
        data: pictures and labels of training, pictures and labels of testing.

    Returns:
        dict: name, parameters, and per epoch the training and test error in per cent.
    """
    pictures, labels, *test = data
    spec = frcnn.ResNetSpec(blocks=(blocks,) * 3, width=arguments.width, residual=residual, seed=arguments.seed)
    keras.utils.set_random_seed(arguments.seed)  # the order of the pictures
    model = frcnn.build_resnet(spec, pictures.shape[1:], classes=int(labels.max()) + 1)
    steps = -(-len(pictures) // arguments.batch) * arguments.epochs
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([steps // 2, steps * 3 // 4], [0.05, 0.005, 0.0005])
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    settings = {"batch_size": arguments.batch, "epochs": arguments.epochs, "verbose": 0}
    history = model.fit(pictures, labels, validation_data=tuple(test), **settings).history
    name = f"{'residual' if residual else 'plain'}-{6 * blocks + 2}"
    train_error, test_error = (100 - 100 * np.array(history[key]) for key in ("accuracy", "val_accuracy"))
    return {"name": name, "parameters": model.count_params(), "train": train_error, "test": test_error}


def plot(runs, path):
    """Draw the errors: plain networks at the left, residual ones at the right, as in the paper's figure 4."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("plain", "residual")):
        for colour, run in zip(("C0", "C3"), (run for run in runs if run["name"].startswith(kind))):
            epochs = np.arange(1, 1 + len(run["train"]))
            axes.plot(epochs, run["train"], "--", color=colour, linewidth=1, label=f"{run['name']}, training")
            axes.plot(epochs, run["test"], color=colour, linewidth=2, label=f"{run['name']}, test")
        axes.set(title=kind, xlabel="epoch", ylabel="error, %" if kind == "plain" else None, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv=None):
    """Train the four networks, print their errors, draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="example: python %(prog)s signs/")
    data = Path(os.environ.get("FRCNN_DATA", "."), "signs")
    parser.add_argument("folder", nargs="?", default=data, help="with train_signs.h5 and test_signs.h5 (%(default)s)")
    parser.add_argument("--output", default="degradation.png", help="chart to write (default: %(default)s)")
    parser.add_argument("--blocks", type=int, nargs=2, default=[3, 9], help="a stage, n for 6n + 2 layers: 3 9")
    for name, default in (("epochs", 40), ("side", 32), ("width", 16), ("batch", 32), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    data = [array for part in ("train", "test") for array in read_signs(arguments.folder, part, arguments.side)]
    runs = []
    for residual in (False, True):
        for blocks in arguments.blocks:
            start = time.perf_counter()
            runs.append(run := train(blocks, residual, data, arguments))
            errors = f"training error {run['train'][-1]:5.1f} %, test error {run['test'][-1]:5.1f} %"
            seconds = time.perf_counter() - start
            print(f"{run['name']:<11}  {run['parameters']:>9,} parameters  {errors}  {seconds:.0f} s", flush=True)
    plot(runs, arguments.output)
    print(f"chart: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
