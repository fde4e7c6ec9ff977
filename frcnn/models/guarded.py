"""The model class of both trainable networks: a step with a loss or gradient that is not finite changes nothing."""

import keras
from keras import ops

from frcnn import backend


@keras.saving.register_keras_serializable("frcnn")
class GuardedModel(keras.Model):
    """A functional model whose `train_step` is Keras's own, but for steps that are not finite.

    Such a step leaves weights, momentum, moving statistics and metrics as they were, and `skipped_steps`, in the logs,
    counts it. The optimizer must be one of `frcnn.optimizer`.

    Attributes:
        skipped_steps: a metric, the number of such steps in the epoch so far.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.skipped_steps = keras.metrics.Sum(name="skipped_steps")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Keras's, () float32; one that is not finite gives gradients that are not finite either."""
        return nan_gradients_unless_finite(super().compute_loss(x, y, y_pred, sample_weight, training))

    def train_step(self, *arguments):
        """Keras's, of any backend; see `backend.step_or_nothing`."""
        return backend.step_or_nothing(self, super().train_step, arguments)


def nan_gradients_unless_finite(loss):
    """The loss, whose every gradient is NaN where it is not finite itself."""
    return loss * ops.where(ops.isfinite(loss), 1.0, float("nan"))
