"""ResNet (He et al. 2015), style v1, with the convolution names of keras-frcnn (`conv1`, `res2a_branch2a`, ...).

The detector takes the network apart (stages 1 to 4 are its backbone, stage 5 its RoI head), so it is built by stages.
"""

import zlib

import keras
from keras import ops

from frcnn import backend

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # of stages 2 to 5; 18 has basic blocks, 50 bottlenecks
GROUPS = 32  # Wu and He 2018, section 4


@keras.saving.register_keras_serializable("frcnn")
class ConvNorm(keras.layers.Layer):
    """One convolution without bias, followed by its normalisation: (B, h, w, C) -> (B, h', w', filters).

    Padding is symmetric, `kernel_size // 2` zeros on every side, as in torchvision: TensorFlow's "same" would shift
    the cells of strided layers by half a pixel.

    Args:
        filters: output channels.
        kernel_size, strides: of the square convolution.
        norm: `frozen`: stored statistics, never updated, folded into the kernel (exact, one pass less over the map);
            `batch`: batch statistics in training, stored ones, folded as well, in inference; `group`: group
            normalisation, independent of the batch size.
        epsilon: added to the variance.
        momentum: of the stored statistics; 0.9 follows within tens of steps, as torchvision's does.
        seed: of the initial kernel (He et al. 2015b, normal, fan out).
    """

    def __init__(self, filters, kernel_size, strides=1, norm="batch", epsilon=1e-5, momentum=0.9, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        self.norm, self.epsilon, self.momentum, self.seed = norm, epsilon, momentum, seed

    def build(self, input_shape):
        def weight(name, initializer, trainable, shape=(self.filters,)):
            # Weights stay float32 under mixed precision: they are folded in float32 and the product is cast.
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable, autocast=False)

        he_normal = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=self.seed)
        kernel_shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = weight("kernel", he_normal, True, kernel_shape)
        self.gamma = weight("gamma", "ones", self.norm != "frozen")
        self.beta = weight("beta", "zeros", self.norm != "frozen")
        if self.norm != "group":
            self.moving_mean = weight("moving_mean", "zeros", False)
            self.moving_variance = weight("moving_variance", "ones", False)

    def call(self, x, training=False):
        if self.norm == "group":
            return self._group_normalise(self._convolve(x, self.kernel))
        if self.norm == "batch" and training:
            return self._batch_normalise(self._convolve(x, self.kernel))
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        y = self._convolve(x, self.kernel * scale)
        return ops.add(y, ops.cast(self.beta - self.moving_mean * scale, y.dtype))

    def _convolve(self, x, kernel):
        kernel, pad = ops.cast(kernel, x.dtype), self.kernel_size // 2
        if self.strides == 1:
            return ops.conv(x, kernel, padding="same")
        # Padded by hand: TensorFlow's explicit padding of a strided convolution has a gradient 40 times slower.
        x = ops.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
        return ops.conv(x, kernel, self.strides, "valid")

    def _batch_normalise(self, x):
        y, mean, variance = backend.batch_normalise(x, self.gamma, self.beta, self.epsilon)
        for stored, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            stored.assign(stored * self.momentum + value * (1.0 - self.momentum))
        return y

    def _group_normalise(self, x):
        batch, height, width, channels = ops.shape(x)
        groups = min(GROUPS, channels)
        grouped = ops.reshape(ops.cast(x, "float32"), (batch, height, width, groups, channels // groups))
        mean, variance = ops.moments(grouped, axes=(1, 2, 4), keepdims=True)
        y = ops.reshape((grouped - mean) * ops.rsqrt(variance + self.epsilon), (batch, height, width, channels))
        return ops.cast(y * self.gamma + self.beta, x.dtype)

    def compute_output_shape(self, input_shape):
        batch, *sides, _ = input_shape
        return (batch, *(side if side is None else (side - 1) // self.strides + 1 for side in sides), self.filters)

    def get_config(self):
        names = ("filters", "kernel_size", "strides", "norm", "epsilon", "momentum", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def resnet_stem(images, conv_norm):
    """Stage 1: 7x7 convolution and max pooling.

    Args:
        images: (B, H, W, 3) normalised.
        conv_norm: makes a `ConvNorm` layer from (name, filters, kernel_size, strides); see `conv_norm_maker`.

    Returns:
        (B, H / 4, W / 4, 64).
    """
    x = _relu(conv_norm("conv1", 64, 7, 2)(images), "conv1_relu")
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad", dtype=x.dtype)(x)  # after ReLU, zeros never win the maximum
    return keras.layers.MaxPooling2D(3, 2, name="pool1", dtype=x.dtype)(x)


def resnet_stage(x, stage, depth, conv_norm, first_stride=None):
    """One of stages 2 to 5.

    Args:
        x: (B, h, w, C).
        stage: 2..5; 64, 128, 256 or 512 filters inside, four times as many outside for bottlenecks.
        depth: a key of `BLOCKS`.
        conv_norm: see `resnet_stem`.
        first_stride: of the first block; default 1 for stage 2, else 2.

    Returns:
        (B, h / first_stride, w / first_stride, C').
    """
    block = basic_block if depth < 50 else bottleneck_block
    stride = first_stride or (1 if stage == 2 else 2)
    for index in range(BLOCKS[depth][stage - 2]):
        name = f"res{stage}{chr(ord('a') + index)}"
        x = block(x, name, 64 << (stage - 2), stride if index == 0 else 1, conv_norm)
    return x


def basic_block(x, name, filters, stride, conv_norm):
    """Two 3x3 convolutions beside a shortcut: (B, h, w, C) -> (B, h / stride, w / stride, filters)."""
    y = _relu(conv_norm(f"{name}_branch2a", filters, 3, stride)(x), f"{name}_branch2a_relu")
    y = conv_norm(f"{name}_branch2b", filters, 3, 1)(y)
    return _join(x, y, name, filters, stride, conv_norm)


def bottleneck_block(x, name, filters, stride, conv_norm):
    """1x1 (strided: style v1), 3x3, 1x1 convolutions beside a shortcut: -> (B, h / stride, w / stride, 4 filters)."""
    y = _relu(conv_norm(f"{name}_branch2a", filters, 1, stride)(x), f"{name}_branch2a_relu")
    y = _relu(conv_norm(f"{name}_branch2b", filters, 3, 1)(y), f"{name}_branch2b_relu")
    y = conv_norm(f"{name}_branch2c", 4 * filters, 1, 1)(y)
    return _join(x, y, name, 4 * filters, stride, conv_norm)


def conv_norm_maker(norm, dtype, seed):
    """A function (name, filters, kernel_size, strides) -> `ConvNorm`, each with an initial kernel of its own.

    Args:
        norm: see `ConvNorm`.
        dtype: dtype policy, e.g. "mixed_bfloat16".
        seed: of the whole network.
    """

    def make(name, filters, kernel_size, strides):
        own_seed = zlib.crc32(f"{seed} {name}".encode()) & 0x7FFFFFFF
        return ConvNorm(filters, kernel_size, strides, norm, name=name, dtype=dtype, seed=own_seed)

    return make


def _join(x, y, name, filters, stride, conv_norm):
    """Add the shortcut, projected where its shape differs (He et al. 2015, option B)."""
    if stride != 1 or x.shape[-1] != filters:
        x = conv_norm(f"{name}_branch1", filters, 1, stride)(x)
    return _relu(keras.layers.Add(name=f"{name}_add", dtype=y.dtype)([x, y]), f"{name}_relu")


def _relu(x, name):
    return keras.layers.ReLU(name=name, dtype=x.dtype)(x)
