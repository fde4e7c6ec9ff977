"""The optimizers of training, as the field has them: warm-up, decay, coupled weight decay, clipping.

They refuse gradients that are not finite: then weights, momentum and the count of steps stay as they are.
"""

import functools

import keras
from keras import ops

from frcnn import backend


@keras.saving.register_keras_serializable("frcnn")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 (Goyal et al. 2017), then a cosine to 0 or steps of a tenth at 2/3 and 8/9 of the way.

    Args:
        peak: highest learning rate.
        warmup_steps, total_steps: in optimizer steps.
        schedule: "cosine" or "step".
    """

    def __init__(self, peak, warmup_steps, total_steps, schedule):
        self.peak, self.warmup_steps = peak, warmup_steps
        self.total_steps, self.schedule = total_steps, schedule

    def __call__(self, step):
        step = ops.cast(step, "float32")
        progress = ops.minimum(step / self.total_steps, 1.0)
        if self.schedule == "cosine":
            factor = 0.5 * (1.0 + ops.cos(3.14159265 * progress))
        else:
            passed = ops.cast(progress >= 2 / 3, "float32") + ops.cast(progress >= 8 / 9, "float32")
            factor = ops.power(0.1, passed)
        return self.peak * factor * ops.minimum((step + 1.0) / (self.warmup_steps + 1.0), 1.0)

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "total_steps", "schedule")}


class _FiniteOnly:
    """Comes before an optimizer's class and keeps gradients from it that are not finite."""

    def apply(self, grads, trainable_variables=None):
        squares = [ops.sum(ops.square(ops.cast(grad, "float32"))) for grad in grads if grad is not None]
        update = functools.partial(super().apply, grads, trainable_variables)
        backend.assign_if(ops.isfinite(sum(squares)), update, [*self._trainable_variables, *self.variables])


@keras.saving.register_keras_serializable("frcnn")
class AdamW(_FiniteOnly, keras.optimizers.AdamW):
    """Keras's AdamW, which refuses gradients that are not finite."""


@keras.saving.register_keras_serializable("frcnn")
class CoupledSGD(_FiniteOnly, keras.optimizers.SGD):
    """SGD whose weight decay is the field's: `decay * kernel` joins the gradient, after clipping, before momentum.

    So do torch and Detectron2; Keras's own `weight_decay` is decoupled (AdamW's). Only variables named `kernel` decay.
    """

    def __init__(self, *args, kernel_decay=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernel_decay = kernel_decay

    def build(self, variables):
        super().build(variables)
        self._decays = [self.kernel_decay if variable.name == "kernel" else 0.0 for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        # By index: on TensorFlow `variable` is the bare tf.Variable, which does not know what its layer called it.
        decay = self._decays[self._get_variable_index(variable)]
        if decay:
            gradient = ops.add(gradient, ops.multiply(ops.cast(variable, gradient.dtype), decay))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "kernel_decay": self.kernel_decay}


def warmup_steps(settings, total_steps):
    """`TrainConfig.warmup_steps`, but at most a quarter of the run: a short one must not end before its warm-up."""
    return min(settings.warmup_steps, total_steps // 4)


def build_optimizer(settings, total_steps):
    """Momentum SGD or AdamW with warm-up, decay, weight decay of kernels and global clipping.

    Args:
        settings: `TrainConfig`.
        total_steps: of the whole run.
    """
    warmup = warmup_steps(settings, total_steps)
    schedule = WarmupDecay(settings.learning_rate, warmup, total_steps, settings.schedule)
    decay, clip = settings.weight_decay, {"global_clipnorm": settings.clip_norm}
    if settings.optimizer == "sgd":
        return CoupledSGD(schedule, settings.momentum, kernel_decay=decay, **clip)
    adam = AdamW(schedule, weight_decay=decay, beta_1=settings.momentum, **clip)
    adam.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return adam
