"""The losses of Faster R-CNN, each one number a picture.

Each gives the sum over a picture's samples, times B, divided by the samples of the whole batch: the mean over B is then
torchvision's loss (a mean over all samples of the batch), and a picture without objects adds exactly 0 to the box
losses. Each takes one tuple, because each is the function of a Lambda layer.
"""

import keras
from keras import ops

from frcnn.ops.boxes import decode_deltas, generalised_iou

GIOU_WEIGHT = 10.0  # of MMDetection's recipe: without, so few of the samples are objects that boxes hardly learn


def smooth_l1(errors, beta):
    """Huber's loss divided by beta (Girshick 2015, eq. 3): quadratic below `beta`, linear above.

    Args:
        errors: (...) float32.
        beta: greater than 0.

    Returns:
        (...) float32.
    """
    size = ops.abs(errors)
    return ops.where(size < beta, 0.5 * errors * errors / beta, size - 0.5 * beta)


@keras.saving.register_keras_serializable("frcnn")
def rpn_class_loss(inputs):
    """Binary cross-entropy of the sampled anchors (Ren et al. 2015, eq. 1, first term).

    Args:
        inputs: (logits, labels): (B, S) float32; (B, S) int32, 1 object, 0 background, -1 empty slot.

    Returns:
        (B,) float32.
    """
    logits, labels = inputs
    target = ops.cast(labels > 0, "float32")
    entropy = ops.softplus(logits) - logits * target
    return _per_picture(entropy, labels >= 0, labels)


@keras.saving.register_keras_serializable("frcnn")
def rpn_box_loss(inputs):
    """Smooth L1 (beta 1/9) of the deltas of anchors that are objects (Ren et al. 2015, eq. 1, second term).

    Args:
        inputs: (deltas, delta_targets, labels): (B, S, 4), (B, S, 4) float32; (B, S) int32 as above.

    Returns:
        (B,) float32.
    """
    deltas, targets, labels = inputs
    return _per_picture(ops.sum(smooth_l1(deltas - targets, 1.0 / 9), axis=-1), labels > 0, labels)


@keras.saving.register_keras_serializable("frcnn")
def roi_class_loss(inputs):
    """Cross-entropy of the sampled RoIs over K classes and background (Girshick 2015, eq. 1, first term).

    Args:
        inputs: (class_logits, roi_labels): (B, S, K + 1) float32; (B, S) int32, -1 in empty slots.

    Returns:
        (B,) float32.
    """
    logits, labels = inputs
    log_scores = ops.log_softmax(logits, axis=-1)
    entropy = -ops.take_along_axis(log_scores, ops.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return _per_picture(entropy, labels >= 0, labels)


@keras.saving.register_keras_serializable("frcnn")
def roi_box_loss(inputs):
    """Smooth L1 (beta 1/9) of the deltas that a RoI predicts for its own class (Girshick 2015, eq. 1, second term).

    Args:
        inputs: (box_deltas, roi_delta_targets, roi_labels): (B, S, K, 4), (B, S, 4) float32; (B, S) int32.

    Returns:
        (B,) float32.
    """
    deltas, targets, labels = inputs
    deltas, foreground = _of_own_class(deltas, labels)
    return _per_picture(ops.sum(smooth_l1(deltas - targets, 1.0 / 9), axis=-1), foreground, labels)


@keras.saving.register_keras_serializable("frcnn")
def roi_giou_loss(inputs, delta_weights=(10.0, 10.0, 5.0, 5.0)):
    """1 - GIoU of the box that a RoI predicts for its own class with its object's (Rezatofighi et al. 2019), times 10.

    GIoU is the same for the RoIs as they are and for all of them stretched to one square: deltas are enough.

    Args:
        inputs: as in `roi_box_loss`.
        delta_weights: what the targets were multiplied by.

    Returns:
        (B,) float32.
    """
    deltas, targets, labels = inputs
    deltas, foreground = _of_own_class(deltas, labels)
    square = ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0], "float32")
    # Empty slots may hold anything: none of it may reach an exponential, whose NaN would reach the gradient.
    both = (ops.where(foreground[..., None], codes, 0.0) for codes in (deltas, targets))
    boxes = (decode_deltas(codes, square, delta_weights) for codes in both)
    return _per_picture(GIOU_WEIGHT * (1.0 - generalised_iou(*boxes)), foreground, labels)


def _of_own_class(deltas, labels):
    """The deltas (B, S, 4) of each RoI's own class, and which RoIs (B, S) have one."""
    foreground = (labels >= 0) & (labels < deltas.shape[2])
    own_class = ops.where(foreground, labels, 0)[..., None, None]
    own_class = ops.broadcast_to(own_class, (*ops.shape(labels), 1, 4))
    return ops.take_along_axis(deltas, own_class, axis=2)[:, :, 0], foreground


def _per_picture(values, counted, labels):
    """Sum `values` (B, S) where `counted`, scaled by B over the samples (label >= 0) of the whole batch."""
    # where, not a product: a masked slot may hold inf, and inf * 0 is NaN
    total = ops.sum(ops.where(counted, values, 0.0), axis=1)
    samples = ops.sum(ops.cast(labels >= 0, "float32"))
    return total * ops.cast(ops.shape(labels)[0], "float32") / ops.maximum(samples, 1.0)
