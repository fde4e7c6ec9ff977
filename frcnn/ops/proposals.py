"""From the RPN's outputs to proposals."""

from keras import ops

from frcnn import backend
from frcnn.ops.boxes import clip_boxes, decode_deltas
from frcnn.ops.nms import non_max_suppression
from frcnn.ops.targets import take_boxes


def select_proposals(
    rpn_logits,
    rpn_deltas,
    anchors,
    image_sizes,
    *,
    pre_nms,
    post_nms,
    nms_iou=0.7,
    delta_weights=(1.0, 1.0, 1.0, 1.0),
    min_size=1e-3,
):
    """Decode the best anchors, clip them, drop empty ones, apply NMS (torchvision's `filter_proposals`).

    Args:
        rpn_logits, rpn_deltas: (B, A), (B, A, 4) float32.
        anchors: (A, 4) float32, xyxy pixels.
        image_sizes: (B, 2) int32, (height, width).
        pre_nms: anchors that enter NMS; all when there are fewer.
        post_nms: P, slots of the result.
        nms_iou: threshold of the NMS.
        delta_weights: what the RPN's targets were multiplied by.
        min_size: proposals with a shorter side are dropped, pixels.

    Returns:
        proposals: (B, P, 4) float32, clipped, best first; zeros in empty slots.
        scores: (B, P) float32, sigmoid of the logits; -inf in empty slots.
    """
    logits, best = _top_k_at_most(rpn_logits, pre_nms)
    boxes = decode_deltas(take_boxes(rpn_deltas, best), ops.take(anchors, best, axis=0), delta_weights)
    boxes = clip_boxes(boxes, image_sizes)
    large = (boxes[..., 2] - boxes[..., 0] >= min_size) & (boxes[..., 3] - boxes[..., 1] >= min_size)
    scores = ops.where(large, ops.sigmoid(logits), float("-inf"))
    return gather_kept(boxes, scores, non_max_suppression(boxes, scores, nms_iou, post_nms))


def select_level_proposals(rpn_logits, rpn_deltas, anchors, image_sizes, *, post_nms, **settings):
    """`select_proposals` on each feature map alone, then the best of them all (Lin et al. 2017, section 4.1).

    A box is never suppressed by one of another level, as in torchvision.

    Args:
        rpn_logits, rpn_deltas, anchors: lists of as many maps, of what `select_proposals` takes.
        image_sizes, post_nms, settings: as there; `pre_nms` counts for each map.

    Returns:
        As `select_proposals`.
    """
    levels = zip(rpn_logits, rpn_deltas, anchors, strict=True)
    found = [select_proposals(*level, image_sizes, post_nms=post_nms, **settings) for level in levels]
    if len(found) == 1:
        return found[0]
    boxes, scores = (ops.concatenate(parts, axis=1) for parts in zip(*found))
    scores, best = backend.top_k(scores, post_nms)
    return take_boxes(boxes, best), scores


def gather_kept(boxes, scores, keep):
    """Boxes and scores of NMS's survivors.

    Args:
        boxes, scores: (B, N, 4), (B, N) float32.
        keep: (B, M) int32, -1 in empty slots.

    Returns:
        (B, M, 4) float32, zeros in empty slots; (B, M) float32, -inf in empty slots.
    """
    filled, keep = keep >= 0, ops.maximum(keep, 0)
    kept_boxes = ops.where(filled[..., None], take_boxes(boxes, keep), 0.0)
    return kept_boxes, ops.where(filled, ops.take_along_axis(scores, keep, axis=1), float("-inf"))


def _top_k_at_most(scores, k):
    count = ops.shape(scores)[1]
    return backend.top_k(scores, min(k, count) if isinstance(count, int) else ops.minimum(k, count))
