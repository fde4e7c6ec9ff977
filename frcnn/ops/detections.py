"""From the RoI head's outputs to detections."""

from keras import ops

from frcnn import backend
from frcnn.ops.boxes import clip_boxes, decode_deltas
from frcnn.ops.nms import non_max_suppression
from frcnn.ops.proposals import gather_kept
from frcnn.ops.targets import take_boxes

MOST_CANDIDATES = 10_000


def select_detections(
    proposals,
    proposal_scores,
    class_logits,
    box_deltas,
    image_sizes,
    *,
    score_threshold=0.05,
    nms_iou=0.5,
    max_detections=100,
    delta_weights=(10.0, 10.0, 5.0, 5.0),
    min_size=1e-2,
):
    """Decode every class of every proposal and apply NMS class by class (torchvision's `postprocess_detections`).

    Of more than 10,000 candidates (1000 proposals with COCO's classes are 90,000) the best 10,000 enter NMS: seldom are
    more than 1,000 above the threshold, and without TensorFlow's kernel NMS takes time and room for all.

    Args:
        proposals, proposal_scores: (B, P, 4), (B, P) float32; empty slots score -inf.
        class_logits, box_deltas: (B, P, K + 1), (B, P, K, 4) float32; background last.
        image_sizes: (B, 2) int32, (height, width).
        score_threshold, nms_iou, max_detections: see `DetectConfig`; a detection must score more than the threshold.
        delta_weights: what the head's targets were multiplied by.
        min_size: detections with a shorter side are dropped, pixels.

    Returns:
        boxes: (B, D, 4) float32, xyxy pixels, clipped, best first.
        scores: (B, D) float32, 0..1; 0 in empty slots.
        labels: (B, D) int32, 0..K-1; -1 in empty slots.
    """
    num_classes, count = box_deltas.shape[2], proposals.shape[1] * box_deltas.shape[2]
    boxes = clip_boxes(decode_deltas(box_deltas, proposals[:, :, None], delta_weights), image_sizes)
    scores = ops.softmax(class_logits, axis=-1)[..., :num_classes]
    sides = boxes[..., 2:] - boxes[..., :2]
    keep = (scores > score_threshold) & ops.all(sides >= min_size, axis=-1)
    scores = ops.where(keep & (proposal_scores > float("-inf"))[..., None], scores, float("-inf"))
    boxes, scores = ops.reshape(boxes, (-1, count, 4)), ops.reshape(scores, (-1, count))
    best = ops.broadcast_to(ops.arange(count, dtype="int32"), ops.shape(scores))
    if count > MOST_CANDIDATES:
        scores, best = backend.top_k(scores, MOST_CANDIDATES)
        boxes = take_boxes(boxes, best)
    labels = best % num_classes
    kept = non_max_suppression(_apart_by_class(boxes, labels), scores, nms_iou, max_detections)
    boxes, scores = gather_kept(boxes, scores, kept)
    found = kept >= 0
    labels = ops.take_along_axis(labels, ops.maximum(kept, 0), axis=1)
    return boxes, ops.where(found, scores, 0.0), ops.where(found, labels, -1)


def _apart_by_class(boxes, labels):
    """Shift each class (B, N) to a place of its own, so that one NMS over (B, N, 4) boxes keeps classes apart."""
    return boxes + (ops.cast(labels, "float32") * (ops.max(boxes) + 1.0))[..., None]
