"""Pictures of two classes that a few steps can tell apart, for the tests of classifiers."""

import numpy as np

from frcnn.config import load_config
from frcnn.records import LabelledImage

SHAPES = ("tall", "wide")
SETTINGS = (
    "data.im_size=32",
    "data.workers=1",
    "train.batch_size=4",
    "train.learning_rate=0.02",
    "train.precision=float32",
    "classify.blocks=[1]",
)


def shapes_config(*overrides):
    return load_config(None, [*SETTINGS, *overrides])


def draw_shape(label, seed, side=32):
    """(side, side, 3) uint8: a bright bar on dark noise, upright for 0 and lying for 1."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 60, (side, side, 3), dtype=np.uint8)
    start = generator.integers(side // 8, side // 2)
    area = image[2:-2, start : start + side // 4]
    area[:] = 230
    return image.swapaxes(0, 1).copy() if label else image


def shape_records(count, first=0):
    return [LabelledImage(f"shape {i}", i % 2, draw_shape(i % 2, i)) for i in range(first, first + count)]
