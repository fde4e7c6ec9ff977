"""Box arithmetic one number at a time, in Python's double precision."""

import math


def pair_iou(one, other):
    x1, y1, x2, y2 = map(float, one)
    u1, v1, u2, v2 = map(float, other)
    shared = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return shared / union if union > 0 else 0.0


def iou_table(ones, others):
    return [[pair_iou(one, other) for other in others] for one in ones]


def encode(box, anchor, weights=(1, 1, 1, 1)):
    """Ren et al. 2015, eq. 2."""
    (x, y, w, h), (x_a, y_a, w_a, h_a) = centre_and_size(box), centre_and_size(anchor)
    deltas = (x - x_a) / w_a, (y - y_a) / h_a, math.log(w / w_a), math.log(h / h_a)
    return [delta * weight for delta, weight in zip(deltas, weights, strict=True)]


def centre_and_size(box):
    x1, y1, x2, y2 = map(float, box)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
