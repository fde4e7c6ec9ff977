"""Which ground-truth box an anchor or a RoI stands for."""

from keras import ops

BELOW_LOW = -1
BETWEEN = -2
_TIE = 1e-5


def match_boxes(iou, high, low, keep_best=False):
    """Match every candidate with its best ground-truth box (Ren et al. 2015, section 3.1.2; torchvision's `Matcher`).

    Args:
        iou: (..., G, N) float32 overlap of ground-truth boxes and candidates; 0 in rows of empty slots.
        high: a candidate with at least this IoU gets its box's index.
        low: a candidate below it is `BELOW_LOW` (-1); in between it is `BETWEEN` (-2).
        keep_best: also match the best candidates of each box, whatever their IoU. Unlike torchvision and Detectron2, a
            box that no candidate touches claims none: there every candidate ties at 0 and all would become positive.

    Returns:
        (..., N) int32, an index 0..G-1, -1 or -2.
    """
    best_box = ops.cast(ops.argmax(iou, axis=-2), "int32")
    best_iou = ops.max(iou, axis=-2)
    matches = ops.where(best_iou >= high, best_box, ops.where(best_iou < low, BELOW_LOW, BETWEEN))
    if not keep_best:
        return matches
    best_of_box = ops.max(iou, axis=-1, keepdims=True)
    claimed = ops.any((iou >= best_of_box - _TIE) & (best_of_box > 0) & (iou > 0), axis=-2)
    return ops.where(claimed, best_box, matches)
