"""Box arithmetic: overlap, the regression code of Faster R-CNN, clipping."""

import math

from keras import ops

MAX_LOG_SCALE = math.log(
    1000.0 / 16
)  # a size delta above it would scale an anchor by more than 62: torchvision, Detectron2


def box_area(boxes):
    """Areas of boxes.

    Args:
        boxes: (..., 4) float32, xyxy pixels.

    Returns:
        (...) float32, square pixels; negative where exactly one side is inverted.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes_a, boxes_b):
    """Intersection over union of every pair, in continuous coordinates (no "+1"; torchvision's `box_iou`).

    Args:
        boxes_a: (..., N, 4) float32, xyxy pixels.
        boxes_b: (..., M, 4) float32, xyxy pixels; leading dimensions broadcast with those of `boxes_a`.

    Returns:
        (..., N, M) float32, 0..1; 0 where the union is empty.
    """
    a, b = ops.expand_dims(boxes_a, -2), ops.expand_dims(boxes_b, -3)
    width = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    height = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    intersection = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = box_area(a) + box_area(b) - intersection
    return ops.where(union > 0, intersection / ops.where(union > 0, union, 1.0), 0.0)


def generalised_iou(boxes_a, boxes_b):
    """Overlap of pairs that also tells how far apart two boxes are (Rezatofighi et al. 2019, algorithm 1).

    Moving or stretching both boxes of a pair alike changes nothing.

    Args:
        boxes_a, boxes_b: (..., 4) float32, xyxy, positive width and height.

    Returns:
        (...) float32, -1..1: IoU less the share of the smallest box around both that neither covers.
    """
    width, height = (
        ops.minimum(boxes_a[..., 2 + i], boxes_b[..., 2 + i]) - ops.maximum(boxes_a[..., i], boxes_b[..., i])
        for i in (0, 1)
    )
    intersection = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = box_area(boxes_a) + box_area(boxes_b) - intersection
    corners = ops.minimum(boxes_a[..., :2], boxes_b[..., :2]), ops.maximum(boxes_a[..., 2:], boxes_b[..., 2:])
    around = box_area(ops.concatenate(corners, axis=-1))
    return intersection / union - (around - union) / around


def encode_boxes(boxes, anchors, weights=(1.0, 1.0, 1.0, 1.0)):
    """Turn boxes into regression deltas against anchors (Ren et al. 2015, eq. 2).

    Args:
        boxes: (..., 4) float32, xyxy pixels. A box without area gives finite, meaningless deltas: mask them.
        anchors: (..., 4) float32, xyxy pixels, broadcast against `boxes`.
        weights: factors on (dx, dy, dw, dh).

    Returns:
        (..., 4) float32, (dx, dy, dw, dh).
    """
    x, y, width, height = _centre_and_size(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_size(anchors)
    deltas = (
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        ops.log(width / anchor_width),
        ops.log(height / anchor_height),
    )
    return ops.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)], axis=-1)


def decode_deltas(deltas, anchors, weights=(1.0, 1.0, 1.0, 1.0)):
    """Turn regression deltas into boxes (Ren et al. 2015, eq. 2, inverted).

    Args:
        deltas: (..., 4) float32, (dx, dy, dw, dh); dw and dh are clamped at log(1000 / 16).
        anchors: (..., 4) float32, xyxy pixels, broadcast against `deltas`.
        weights: what each delta was multiplied by when it was encoded.

    Returns:
        (..., 4) float32, xyxy pixels, not clipped to the image.
    """
    anchor_x1, anchor_y1 = anchors[..., 0], anchors[..., 1]
    anchor_width, anchor_height = anchors[..., 2] - anchor_x1, anchors[..., 3] - anchor_y1
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    x = dx * anchor_width + anchor_x1 + 0.5 * anchor_width
    y = dy * anchor_height + anchor_y1 + 0.5 * anchor_height
    half_width = 0.5 * ops.exp(ops.minimum(dw, MAX_LOG_SCALE)) * anchor_width
    half_height = 0.5 * ops.exp(ops.minimum(dh, MAX_LOG_SCALE)) * anchor_height
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def clip_boxes(boxes, image_sizes):
    """Move box corners that lie outside their picture onto its border.

    Args:
        boxes: (B, ..., 4) float32, xyxy pixels.
        image_sizes: (B, 2) int32, (height, width).

    Returns:
        (B, ..., 4) float32.
    """
    sizes = ops.cast(image_sizes, "float32")
    limits = ops.stack([sizes[:, 1], sizes[:, 0], sizes[:, 1], sizes[:, 0]], axis=-1)
    limits = ops.reshape(limits, (-1,) + (1,) * (len(boxes.shape) - 2) + (4,))
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def _centre_and_size(boxes):
    tiny = 1e-6  # keeps the logarithm of an empty padding slot finite, so that no NaN reaches a masked gradient
    width = ops.maximum(boxes[..., 2] - boxes[..., 0], tiny)
    height = ops.maximum(boxes[..., 3] - boxes[..., 1], tiny)
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height
