"""What every anchor or proposal may be asked to answer, before the random choice among them."""

from tests.oracles.boxes import encode, iou_table
from tests.oracles.matching import match


def answers(candidates, gt_boxes, high, low, keep_best, weights=(1, 1, 1, 1)):
    """One (match, deltas) a candidate: index of its box, -1 background, -2 never drawn; deltas None without a box."""
    if len(gt_boxes) == 0:
        return [(-1, None)] * len(candidates)
    matches = match(iou_table(gt_boxes, candidates), high, low, keep_best)
    return [
        (box, encode(gt_boxes[box], candidate, weights) if box >= 0 else None)
        for box, candidate in zip(matches, candidates, strict=True)
    ]
