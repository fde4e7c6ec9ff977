"""The numbers by other programs under tests/golden/."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"


@functools.cache
def read_json(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def torchvision(case):
    """One case of detection_ops_torchvision.json, by torchvision 0.29.2."""
    return read_json("detection_ops_torchvision.json")[case]


def literal(kind, source):
    """The cases of literal_cases.json of one kind whose source begins with `source`, in the file's order."""
    return [case for case in read_json("literal_cases.json")["cases"][kind] if case["source"].startswith(source)]


def boxes_from_yxyx(boxes):
    """(..., 4) y1 x1 y2 x2 as other programs write them -> x1 y1 x2 y2, float32; deltas (dy, dx, dh, dw) likewise."""
    return np.asarray(boxes, np.float32)[..., [1, 0, 3, 2]]


def draw(key, shape, kind, a, b):
    """The rule that stands at the top of the golden files."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    values = {
        "normal": lambda: a + b * generator.standard_normal(shape),
        "uniform": lambda: generator.uniform(a, b, shape),
        "zeros": lambda: np.zeros(shape),
    }
    return np.asarray(values[kind](), np.float32)


@functools.cache
def golden(name):
    """An npz of tests/golden as a dict."""
    with np.load(FOLDER / name) as arrays:
        return dict(arrays)


@functools.cache
def torchvision_state(name):
    """The state dict of one of torchvision's networks, rebuilt."""
    return {row[0]: draw(*row) for row in read_json("torchvision_models_seed0.json")["models"][name]}
