"""Greedy non-maximum suppression."""

from keras import ops

from frcnn import backend
from frcnn.ops.boxes import box_iou

_BLOCK = 2000


def non_max_suppression(boxes, scores, iou_threshold, max_outputs):
    """Keep the best boxes; drop each that overlaps a better kept one by more than the threshold.

    Kept at IoU <= threshold, as in torchvision; of equal scores the lower index goes first.

    Args:
        boxes: (B, N, 4) float32, xyxy pixels.
        scores: (B, N) float32; -inf marks an empty slot, which is never kept.
        iou_threshold: 0..1.
        max_outputs: M, int.

    Returns:
        (B, M) int32 indices by decreasing score; -1 in empty slots.
    """
    if backend.is_tensorflow():
        return backend.tensorflow_nms(boxes, scores, iou_threshold, max_outputs)
    return portable_nms(boxes, scores, iou_threshold, max_outputs)


def portable_nms(boxes, scores, iou_threshold, max_outputs):
    """`non_max_suppression` in `keras.ops`: exact greedy NMS by fixed-point iteration on IoU matrices.

    Candidates go through in blocks of 2000, best first, so that 12000 of them need 100 MB a picture and not 600.
    """
    count = scores.shape[1]
    order = ops.argsort(-scores, axis=1)  # stable; PyTorch's top_k is not, and would break ties anyhow
    sorted_scores = ops.take_along_axis(scores, order, axis=1)
    boxes = ops.take_along_axis(boxes, order[..., None], axis=1)
    candidate = sorted_scores > float("-inf")
    keep = ops.zeros_like(candidate[:, :0])
    for start in range(0, count, _BLOCK):
        block = boxes[:, start : start + _BLOCK]
        alive = candidate[:, start : start + _BLOCK]
        if start:
            suppressed = (box_iou(boxes[:, :start], block) > iou_threshold) & keep[..., None]
            alive = alive & ~ops.any(suppressed, axis=1)
        keep = ops.concatenate([keep, _nms_of_block(block, alive, iou_threshold)], axis=1)
    return _first_kept(order, keep, max_outputs)


def _nms_of_block(boxes, alive, iou_threshold):
    """Which of the boxes (B, N, 4), best first, survive among themselves."""
    position = ops.arange(boxes.shape[1])
    better = position[:, None] < position[None, :]
    overlaps = (box_iou(boxes, boxes) > iou_threshold) & better

    def step(keep, _):
        return alive & ~ops.any(overlaps & keep[..., None], axis=1), keep

    # The n-th box is right after n steps at the latest; once a step changes nothing, all are.
    keep, _ = ops.while_loop(
        lambda new, old: ops.any(new != old), step, step(alive, alive), maximum_iterations=boxes.shape[1]
    )
    return keep


def _first_kept(order, keep, max_outputs):
    """Indices of the first `max_outputs` kept boxes of each row, -1 where there are fewer."""
    count = keep.shape[1]
    rank = ops.where(keep, ops.cast(count - ops.arange(count), "float32")[None, :], 0.0)
    rank = ops.pad(rank, [[0, 0], [0, max(max_outputs - count, 0)]])
    rank, position = ops.top_k(rank, max_outputs)
    position = ops.minimum(ops.cast(position, "int32"), count - 1)
    return ops.where(rank > 0, ops.cast(ops.take_along_axis(order, position, axis=1), "int32"), -1)
