"""ResNet (He et al. 2015) with the convolution names of keras-frcnn (`conv1`, `res2a_branch2a`, ...).

The detector takes the network apart (stages 1 to 4 are its backbone, stage 5 its RoI head), so it is built by stages.
"""

import zlib
from dataclasses import dataclass

import keras
from keras import ops

from frcnn import backend

# Blocks of stages 2 to 5 (He et al. 2015, table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTH = 50  # from here on blocks are bottlenecks, below it basic ones
GROUPS = 32  # Wu and He 2018, section 4


@dataclass(frozen=True)
class Conventions:
    """What a file of weights takes for granted of the network that it is loaded into.

    Attributes:
        style: "v1": a bottleneck's stride is on its first 1x1 convolution; "v1.5": on its 3x3.
        epsilon: added to the variance by every normalisation.
        use_bias: whether convolutions have a bias before their normalisation.
        padded_pool: whether the first max pooling is padded by one cell.
        channel_order: "RGB" or "BGR", what the first convolution sees.
        mean, deviation: of the channels, in that order, 0-255: the input is (x - mean) / deviation.
    """

    style: str = "v1"
    epsilon: float = 1e-5
    use_bias: bool = False
    padded_pool: bool = True
    channel_order: str = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # torchvision's
    deviation: tuple[float, float, float] = (58.395, 57.12, 57.375)


_CAFFE = {"use_bias": True, "mean": (103.939, 116.779, 123.68), "deviation": (1.0, 1.0, 1.0)}
CONVENTIONS = {
    "frcnn": Conventions(),
    "torchvision": Conventions("v1.5"),
    "keras": Conventions("v1", 1.001e-5, channel_order="BGR", **_CAFFE),
    "keras2016": Conventions("v1", 1e-3, padded_pool=False, channel_order="BGR", **_CAFFE),
    # keras-frcnn subtracts the blue mean from red and the red one from blue; its detectors have learned that.
    "keras_frcnn": Conventions("v1", 1e-3, padded_pool=False, channel_order="RGB", **_CAFFE),
}


@dataclass(frozen=True)
class ResNetSpec:
    """What decides a ResNet's layers.

    Attributes:
        depth: a key of `BLOCKS`.
        norm: see `ConvNorm`.
        dtype: dtype policy, e.g. "mixed_bfloat16".
        seed: of the initial weights of the whole network.
        conventions: of the weights to be loaded.
    """

    depth: int
    norm: str = "batch"
    dtype: str = "float32"
    seed: int = 0
    conventions: Conventions = CONVENTIONS["frcnn"]


@keras.saving.register_keras_serializable("frcnn")
class ConvNorm(keras.layers.Layer):
    """One convolution followed by its normalisation: (B, h, w, C) -> (B, h', w', filters).

    Padding is symmetric, `kernel_size // 2` zeros on every side, as in torchvision: TensorFlow's "same" would shift
    the cells of strided layers by half a pixel.

    Args:
        filters: output channels.
        kernel_size, strides: of the square convolution.
        norm: `frozen`: stored statistics, never updated, folded into the kernel (exact, one pass less over the map);
            `batch`: batch statistics in training, stored ones, folded as well, in inference and where the layer is
            not trainable; `group`: group normalisation, independent of the batch size.
        epsilon: added to the variance.
        use_bias: whether the convolution has a bias.
        momentum: of the stored statistics; 0.9 follows within tens of steps, as torchvision's does.
        seed: of the initial kernel (He et al. 2015b, normal, fan out).
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        norm="batch",
        *,
        epsilon=1e-5,
        use_bias=False,
        momentum=0.9,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides, self.norm = filters, kernel_size, strides, norm
        self.epsilon, self.use_bias, self.momentum, self.seed = epsilon, use_bias, momentum, seed

    def build(self, input_shape):
        def weight(name, initializer, trainable, shape=(self.filters,)):
            # Weights stay float32 under mixed precision: they are folded in float32 and the product is cast.
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable, autocast=False)

        he_normal = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal", seed=self.seed)
        kernel_shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = weight("kernel", he_normal, True, kernel_shape)
        self.bias = weight("bias", "zeros", True) if self.use_bias else None
        self.gamma = weight("gamma", "ones", self.norm != "frozen")
        self.beta = weight("beta", "zeros", self.norm != "frozen")
        if self.norm != "group":
            self.moving_mean = weight("moving_mean", "zeros", False)
            self.moving_variance = weight("moving_variance", "ones", False)

    def call(self, x, training=False):
        if self.norm == "group":
            return self._group_normalise(self._add_bias(self._convolve(x, self.kernel)))
        if self.norm == "batch" and training and self.trainable:
            return self._batch_normalise(self._add_bias(self._convolve(x, self.kernel)))
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        y = self._convolve(x, self.kernel * scale)
        mean = self.moving_mean - self.bias if self.use_bias else self.moving_mean
        return ops.add(y, ops.cast(self.beta - mean * scale, y.dtype))

    def _add_bias(self, x):
        return ops.add(x, ops.cast(self.bias, x.dtype)) if self.use_bias else x

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
        names = ("filters", "kernel_size", "strides", "norm", "epsilon", "use_bias", "momentum", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def resnet_stem(images, spec):
    """Stage 1: 7x7 convolution and max pooling.

    Args:
        images: (B, H, W, 3) normalised.
        spec: `ResNetSpec`.

    Returns:
        (B, H / 4, W / 4, 64); one cell fewer along a side where the pooling is not padded.
    """
    x = _relu(_conv_norm(images, spec, "conv1", 64, 7, 2), "conv1_relu")
    if spec.conventions.padded_pool:
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad", dtype=x.dtype)(x)  # after ReLU, zeros never win
    return keras.layers.MaxPooling2D(3, 2, name="pool1", dtype=x.dtype)(x)


def resnet_stage(x, stage, spec, first_stride=None):
    """One of stages 2 to 5.

    Args:
        x: (B, h, w, C).
        stage: 2..5; 64, 128, 256 or 512 filters inside, four times as many outside for bottlenecks.
        spec: `ResNetSpec`.
        first_stride: of the first block; default 1 for stage 2, else 2.

    Returns:
        (B, h / first_stride, w / first_stride, C').
    """
    block = bottleneck_block if spec.depth >= BOTTLENECK_DEPTH else basic_block
    stride = first_stride or (1 if stage == 2 else 2)
    for index in range(BLOCKS[spec.depth][stage - 2]):
        x = block(x, f"res{stage}{block_letter(index)}", 64 << (stage - 2), stride if index == 0 else 1, spec)
    return x


def block_letter(index):
    """The name of a stage's block: a, b, ... z, aa, ab, ... (ResNet-152 has 36 in a stage)."""
    return "a" * (index // 26) + chr(ord("a") + index % 26)


def basic_block(x, name, filters, stride, spec):
    """Two 3x3 convolutions beside a shortcut: (B, h, w, C) -> (B, h / stride, w / stride, filters)."""
    y = _relu(_conv_norm(x, spec, f"{name}_branch2a", filters, 3, stride), f"{name}_branch2a_relu")
    y = _conv_norm(y, spec, f"{name}_branch2b", filters, 3)
    return _join(x, y, name, filters, stride, spec)


def bottleneck_block(x, name, filters, stride, spec):
    """1x1, 3x3, 1x1 convolutions, one of the first two strided, beside a shortcut: -> (B, h', w', 4 filters)."""
    first, second = (stride, 1) if spec.conventions.style == "v1" else (1, stride)
    y = _relu(_conv_norm(x, spec, f"{name}_branch2a", filters, 1, first), f"{name}_branch2a_relu")
    y = _relu(_conv_norm(y, spec, f"{name}_branch2b", filters, 3, second), f"{name}_branch2b_relu")
    y = _conv_norm(y, spec, f"{name}_branch2c", 4 * filters, 1)
    return _join(x, y, name, 4 * filters, stride, spec)


def _conv_norm(x, spec, name, filters, kernel_size, strides=1):
    return ConvNorm(
        filters,
        kernel_size,
        strides,
        spec.norm,
        epsilon=spec.conventions.epsilon,
        use_bias=spec.conventions.use_bias,
        seed=zlib.crc32(f"{spec.seed} {name}".encode()) & 0x7FFFFFFF,  # each layer has an initial kernel of its own
        name=name,
        dtype=spec.dtype,
    )(x)


def _join(x, y, name, filters, stride, spec):
    """Add the shortcut, projected where its shape differs (He et al. 2015, option B)."""
    if stride != 1 or x.shape[-1] != filters:
        x = _conv_norm(x, spec, f"{name}_branch1", filters, 1, stride)
    return _relu(keras.layers.Add(name=f"{name}_add", dtype=y.dtype)([x, y]), f"{name}_relu")


def _relu(x, name):
    return keras.layers.ReLU(name=name, dtype=x.dtype)(x)
