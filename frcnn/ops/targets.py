"""What the RPN and the RoI head are asked to answer."""

from keras import ops

from frcnn.ops.boxes import box_iou, encode_boxes
from frcnn.ops.matching import BELOW_LOW, match_boxes
from frcnn.ops.sampling import sample_indices


def rpn_targets(
    anchors,
    gt_boxes,
    gt_labels,
    seeds,
    *,
    positive_iou=0.7,
    negative_iou=0.3,
    samples=256,
    positive_fraction=0.5,
    delta_weights=(1.0, 1.0, 1.0, 1.0),
):
    """Sample the anchors of the RPN's losses and say what each should answer (Ren et al. 2015, section 3.1.2-3).

    Args:
        anchors: (A, 4) float32, xyxy pixels.
        gt_boxes, gt_labels: (B, G, 4) float32, (B, G) int32, label -1 in empty slots.
        seeds: (B,) int32.
        positive_iou, negative_iou, samples, positive_fraction, delta_weights: see `RPNConfig`.

    Returns:
        indices: (B, S) int32 into the anchors.
        labels: (B, S) int32: 1 object, 0 background, -1 empty slot.
        delta_targets: (B, S, 4) float32; meaningful where the label is 1.
    """
    matches = match_anchors(anchors, gt_boxes, gt_labels, positive_iou, negative_iou)
    indices, valid = sample_indices(matches >= 0, matches == BELOW_LOW, seeds, samples, positive_fraction)
    matched = ops.take_along_axis(matches, indices, axis=1)
    labels = ops.where(valid, ops.cast(matched >= 0, "int32"), -1)
    boxes = take_boxes(gt_boxes, ops.maximum(matched, 0))
    return indices, labels, encode_boxes(boxes, ops.take(anchors, indices, axis=0), delta_weights)


def match_anchors(anchors, gt_boxes, gt_labels, positive_iou, negative_iou):
    """Say which box each anchor stands for; the best anchors of each box stand for it whatever their IoU.

    Args:
        anchors, gt_boxes, gt_labels, positive_iou, negative_iou: see `rpn_targets`.

    Returns:
        (B, A) int32: index of a box, -1 background, -2 in between, which no loss sees.
    """
    return match_boxes(_iou_with_truth(gt_boxes, gt_labels, anchors[None]), positive_iou, negative_iou, True)


def sample_rois(
    proposals,
    proposal_scores,
    gt_boxes,
    gt_labels,
    seeds,
    *,
    num_classes,
    samples=128,
    positive_fraction=0.25,
    positive_iou=0.5,
    delta_weights=(10.0, 10.0, 5.0, 5.0),
):
    """Sample the RoIs of the head's losses from the proposals and the ground truth (Girshick 2015, section 2.3).

    Background is everything below `positive_iou`, down to 0, as in Detectron2.

    Args:
        proposals, proposal_scores: (B, P, 4), (B, P) float32; empty slots score -inf.
        gt_boxes, gt_labels: (B, G, 4) float32, (B, G) int32, label -1 in empty slots.
        seeds: (B,) int32.
        num_classes: K; the background's label.
        samples, positive_fraction, positive_iou, delta_weights: see `RoIConfig`.

    Returns:
        rois: (B, S, 4) float32, xyxy pixels; zeros in empty slots.
        roi_labels: (B, S) int32: 0..K-1, K background, -1 empty slot.
        roi_delta_targets: (B, S, 4) float32; meaningful where the label is a class.
    """
    candidates = ops.concatenate([proposals, gt_boxes], axis=1)
    exists = ops.concatenate([proposal_scores > float("-inf"), gt_labels >= 0], axis=1)
    matches = match_boxes(_iou_with_truth(gt_boxes, gt_labels, candidates), positive_iou, positive_iou)
    indices, valid = sample_indices(
        exists & (matches >= 0), exists & (matches == BELOW_LOW), seeds, samples, positive_fraction
    )
    rois = ops.where(valid[..., None], take_boxes(candidates, indices), 0.0)
    matched = ops.take_along_axis(matches, indices, axis=1)
    box_of_roi = ops.maximum(matched, 0)
    labels = ops.where(matched >= 0, ops.take_along_axis(gt_labels, box_of_roi, axis=1), num_classes)
    deltas = encode_boxes(take_boxes(gt_boxes, box_of_roi), rois, delta_weights)
    return rois, ops.where(valid, labels, -1), deltas


def take_boxes(boxes, indices):
    """Pick boxes by index, picture by picture.

    Args:
        boxes: (B, N, 4) float32.
        indices: (B, M) int32, 0..N-1.

    Returns:
        (B, M, 4) float32.
    """
    batch, count = ops.shape(boxes)[:2]
    first = count * ops.arange(batch, dtype="int32")[:, None]
    return ops.take(ops.reshape(boxes, (-1, 4)), first + indices, axis=0)  # half of `take_along_axis`'s operations


def _iou_with_truth(gt_boxes, gt_labels, candidates):
    """(B, G, N) overlap, 0 in the rows of empty slots."""
    return box_iou(gt_boxes, candidates) * ops.cast(gt_labels >= 0, "float32")[..., None]
