"""Greedy non-maximum suppression, one pair at a time."""

import numpy as np


def greedy_nms(boxes, scores, iou_threshold):
    """Indices that survive, best first; equal scores by index, scores of -inf never."""
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if scores[index] > -np.inf and all(pair_iou_32(boxes[index], boxes[i]) <= iou_threshold for i in kept):
            kept.append(index)
    return kept


def pair_iou_32(one, other):
    """In float32 like the subject: at an exact threshold the last bit decides."""
    x1, y1, x2, y2 = np.asarray(one, np.float32)
    u1, v1, u2, v2 = np.asarray(other, np.float32)
    zero = np.float32(0)
    shared = max(zero, min(x2, u2) - max(x1, u1)) * max(zero, min(y2, v2) - max(y1, v1))
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return shared / union if union > 0 else zero
