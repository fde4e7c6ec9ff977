"""The detectors that torchvision publishes, trained on COCO: where they are, what they are called, their classes."""

import hashlib
import os
import socket
from pathlib import Path

import keras

URL = "https://download.pytorch.org/models/"
# Name of `model.weights` -> the file; the eight digits begin its SHA-256.
PUBLISHED = {
    "coco": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "coco-v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
}
TIMEOUT = 20  # seconds without a byte

_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, N/A, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, backpack, umbrella, N/A,
N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, dining table, N/A, N/A, toilet,
N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, N/A, book, clock,
vase, scissors, teddy bear, hair drier, toothbrush
"""
# The 91 entries of COCO but the background, in the order of its category numbers: entry i is category i + 1. Its ten
# gaps keep their places, and each has a name of its own.
COCO_NAMES = tuple(
    f"N/A {number}" if name == "N/A" else name for number, name in enumerate(" ".join(_NAMES.split()).split(", "), 1)
)


def fetch(name):
    """The file of published weights, downloaded if it is not in Keras's cache yet, and checked.

    Args:
        name: a key of `PUBLISHED`.

    Returns:
        Path.

    Raises:
        ValueError: it cannot be downloaded, or is not the file that was published; says where to put it by hand.
    """
    file = PUBLISHED[name]
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    home.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # Keras sets none: a silent network would hold the run for minutes
    try:
        path = Path(keras.utils.get_file(file, URL + file, cache_dir=home, cache_subdir="models"))
    except Exception as error:  # a bare Exception is what Keras raises for whatever goes wrong with a download
        raise ValueError(
            f"weights {name}: the download failed ({str(error).splitlines()[0]}); take {URL}{file} on another machine "
            f"and put it at {home / 'models' / file}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    if not is_file_of(path, name):
        raise ValueError(
            f"{path} is damaged: its SHA-256 does not begin with {_digits(name)}; delete it, and it is downloaded anew"
        )
    return path


def is_file_of(path, name):
    """Whether a file is the published one, by its SHA-256, whatever it is called."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(_digits(name))


def _digits(name):
    return PUBLISHED[name].rpartition("-")[2].removesuffix(".pth")
