"""The four losses of Faster R-CNN, each one number a picture.

Each gives the sum over a picture's samples, times B, divided by the samples of the whole batch: the mean over B is then
torchvision's loss (a mean over all samples of the batch), and a picture without objects adds exactly 0 to the box
losses. Each takes one tuple, because each is the function of a Lambda layer.
"""

import keras
from keras import ops


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
    num_classes = deltas.shape[2]
    foreground = (labels >= 0) & (labels < num_classes)
    own_class = ops.where(foreground, labels, 0)[..., None, None]
    deltas = ops.take_along_axis(deltas, ops.broadcast_to(own_class, (*ops.shape(labels), 1, 4)), axis=2)[:, :, 0]
    return _per_picture(ops.sum(smooth_l1(deltas - targets, 1.0 / 9), axis=-1), foreground, labels)


def _per_picture(values, counted, labels):
    """Sum `values` (B, S) where `counted`, scaled by B over the samples (label >= 0) of the whole batch."""
    # where, not a product: a masked slot may hold inf, and inf * 0 is NaN
    total = ops.sum(ops.where(counted, values, 0.0), axis=1)
    samples = ops.sum(ops.cast(labels >= 0, "float32"))
    return total * ops.cast(ops.shape(labels)[0], "float32") / ops.maximum(samples, 1.0)
