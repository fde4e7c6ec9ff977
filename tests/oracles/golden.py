"""The numbers by other programs under tests/golden/."""

import functools
import json
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
