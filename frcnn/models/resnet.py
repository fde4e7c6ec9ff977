"""ResNet (He et al. 2015) with the convolution names of keras-frcnn (`conv1`, `res2a_branch2a`, ...).

The detector takes the network apart (stages 1 to 4 are its backbone, stage 5 its RoI head), so it is built by stages.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import keras
from keras import ops

from frcnn import backend

# Blocks of stages 2 to 5 (He et al. 2015, table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTH = 50  # from here on blocks are bottlenecks, below it basic ones
GROUPS = 32  # Wu and He 2018, section 4
MOMENTUM = 0.9  # of stored statistics: they follow within tens of steps, as torchvision's do
INITIALIZERS = {
    "he": partial(keras.initializers.VarianceScaling, 2.0, "fan_out", "untruncated_normal"),
    "glorot_uniform": keras.initializers.GlorotUniform,
}


@dataclass(frozen=True)
class Conventions:
    """What a file of weights takes for granted of the network that it is loaded into.

    Attributes:
        style: "v1": a bottleneck's stride is on its first 1x1 convolution; "v1.5": on its 3x3; "v2": there too, with
            normalisation and ReLU before the convolutions (He et al. 2016b) and a stage's stride in its last block,
            as in keras.applications.
        epsilon: added to the variance by every normalisation.
        use_bias: whether convolutions have a bias before their normalisation; those without one always have.
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
    # torchvision runs the first of its published COCO detectors without an epsilon: it was trained so.
    "torchvision_coco": Conventions("v1.5", epsilon=0.0),
    "keras": Conventions("v1", 1.001e-5, channel_order="BGR", **_CAFFE),
    "keras_v2": Conventions("v2", 1.001e-5, mean=(127.5,) * 3, deviation=(127.5,) * 3),
    "keras2016": Conventions("v1", 1e-3, padded_pool=False, channel_order="BGR", **_CAFFE),
    # The ResNet tutorials: pictures divided by 255, Keras's default epsilon.
    "tutorial": Conventions("v1", 1e-3, use_bias=True, padded_pool=False, mean=(0.0,) * 3, deviation=(255.0,) * 3),
    # keras-frcnn subtracts the blue mean from red and the red one from blue; its detectors have learned that.
    "keras_frcnn": Conventions("v1", 1e-3, padded_pool=False, channel_order="RGB", **_CAFFE),
}


@dataclass(frozen=True)
class ResNetSpec:
    """What decides a ResNet's layers.

    Attributes:
        depth: a key of `BLOCKS`; None: as `blocks` and `bottleneck` say.
        norm: see `ConvNorm`.
        dtype: dtype policy, e.g. "mixed_bfloat16".
        seed: of the initial weights of the whole network.
        conventions: of the weights to be loaded.
        blocks: of each stage from the second on, 1 to 4 stages; None: those of `depth`.
        bottleneck: whether the blocks are bottlenecks or basic ones; None: as `depth` has it.
        strides: of each of these stages; None: 1, 2, 2, 2, and 2, 2, 2, 1 for style "v2".
        width: filters of the first two stages, doubled from stage to stage.
        residual: False: the plain network, without shortcuts.
        negative_slope: of the ReLUs; above 0 they are leaky.
        initializer: of the kernels: "he" (He et al. 2015b, normal, fan out) or "glorot_uniform".

    Raises:
        ValueError: depth is unknown, or the stages do not fit one another.
    """

    depth: int | None = None
    norm: str = "batch"
    dtype: str = "float32"
    seed: int = 0
    conventions: Conventions = CONVENTIONS["frcnn"]
    blocks: tuple[int, ...] | None = None
    bottleneck: bool | None = None
    strides: tuple[int, ...] | None = None
    width: int = 64
    residual: bool = True
    negative_slope: float = 0.0
    initializer: str = "he"

    def __post_init__(self):
        if (self.depth is None) == (self.blocks is None) or self.depth not in (None, *BLOCKS):
            known = ", ".join(map(str, BLOCKS))
            raise ValueError(f"ResNetSpec: give either depth ({self.depth}), one of {known}, or blocks ({self.blocks})")
        if not 1 <= len(self.stage_blocks) <= 4 or min(self.stage_blocks) < 1:
            raise ValueError(f"ResNetSpec: blocks {self.blocks} must be 1 to 4 counts of at least 1")
        if len(self.stage_strides) != len(self.stage_blocks) or min(self.stage_strides) < 1:
            raise ValueError(f"ResNetSpec: strides {self.strides} must be one of at least 1 for each stage of blocks")
        if self.initializer not in INITIALIZERS:
            raise ValueError(f"ResNetSpec: initializer {self.initializer!r} must be one of {', '.join(INITIALIZERS)}")

    @property
    def stage_blocks(self):
        """Blocks of each stage."""
        return self.blocks or BLOCKS.get(self.depth, ())

    @property
    def stage_strides(self):
        """Stride of each stage."""
        rest = (2,) * (len(self.stage_blocks) - 1)
        return self.strides or ((*rest, 1) if self.is_v2 else (1, *rest))

    @property
    def has_bottlenecks(self):
        """Whether its blocks are bottlenecks."""
        return bool(self.depth and self.depth >= BOTTLENECK_DEPTH) if self.bottleneck is None else self.bottleneck

    @property
    def is_v2(self):
        """Whether normalisation comes before the convolutions."""
        return self.conventions.style == "v2"


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
        momentum: of the stored statistics.
        seed: of the initial kernel.
        initializer: of it, a key of `INITIALIZERS`.
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
        momentum=MOMENTUM,
        seed=0,
        initializer="he",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides, self.norm = filters, kernel_size, strides, norm
        self.epsilon, self.use_bias, self.momentum = epsilon, use_bias, momentum
        self.seed, self.initializer = seed, initializer

    def build(self, input_shape):
        def weight(name, initializer, trainable, shape=(self.filters,)):
            # Weights stay float32 under mixed precision: they are folded in float32 and the product is cast.
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable, autocast=False)

        kernel_shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = weight("kernel", INITIALIZERS[self.initializer](seed=self.seed), True, kernel_shape)
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
            return backend.convolve(x, kernel)
        # Padded by hand: TensorFlow's explicit padding of a strided convolution has a gradient 40 times slower.
        x = ops.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
        return backend.convolve(x, kernel, self.strides, "valid")

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
        names = ("filters", "kernel_size", "strides", "norm", "epsilon", "use_bias", "momentum", "seed", "initializer")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("frcnn")
class Conv2D(keras.layers.Conv2D):
    """Keras's own, whose gradients are those of `backend.convolve`; for square kernels and strides."""

    def convolution_op(self, inputs, kernel):
        kernel = ops.cast(kernel, inputs.dtype)  # a variable is no tensor to a gradient of our own
        return backend.convolve(inputs, kernel, self.strides[0], self.padding)


def require_keras_settings():
    """Raise a ValueError unless Keras lays pictures out and counts as all layers here do."""
    found = keras.config.image_data_format(), keras.config.floatx()
    if found != ("channels_last", "float32"):
        raise ValueError(
            f"Keras is set to {' and '.join(found)}, by ~/.keras/keras.json perhaps: call "
            'keras.config.set_image_data_format("channels_last") and keras.config.set_floatx("float32") first'
        )


def resnet_stem(images, spec):
    """Stage 1: 7x7 convolution and max pooling.

    Args:
        images: (B, H, W, C) normalised.
        spec: `ResNetSpec`.

    Returns:
        (B, H / 4, W / 4, width); one cell fewer along a side where the pooling is not padded.

    Raises:
        ValueError: Keras is set to something else than channels_last and float32.
    """
    require_keras_settings()
    if spec.is_v2:
        x = _convolution(images, spec, "conv1", spec.width, 7, 2)
    else:
        x = _relu(_conv_norm(images, spec, "conv1", spec.width, 7, 2), "conv1_relu", spec)
    if spec.conventions.padded_pool:
        # After a ReLU zeros never win; in style v2 they can, in keras.applications as well.
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad", dtype=x.dtype)(x)
    return keras.layers.MaxPooling2D(3, 2, name="pool1", dtype=x.dtype)(x)


def resnet_stage(x, stage, spec):
    """One of stages 2 to 5; with style v2 the last one ends in normalisation and ReLU.

    Args:
        x: (B, h, w, C).
        stage: 2..5; `spec.width` filters inside, doubled from stage to stage, four times as many outside for
            bottlenecks.
        spec: `ResNetSpec`.

    Returns:
        (B, h / stride, w / stride, C').
    """
    block = bottleneck_block if spec.has_bottlenecks else basic_block
    count, stride = spec.stage_blocks[stage - 2], spec.stage_strides[stage - 2]
    strided = count - 1 if spec.is_v2 else 0
    for index in range(count):
        name = f"res{stage}{block_letter(index)}"
        x = block(x, name, spec.width << (stage - 2), stride if index == strided else 1, spec)
    is_end = spec.is_v2 and stage == len(spec.stage_blocks) + 1
    return _relu(_normalisation(x, spec, "post_norm"), "post_relu", spec) if is_end else x


def block_letter(index):
    """The name of a stage's block: a, b, ... z, aa, ab, ... (ResNet-152 has 36 in a stage)."""
    return "a" * (index // 26) + chr(ord("a") + index % 26)


def basic_block(x, name, filters, stride, spec):
    """Two 3x3 convolutions beside a shortcut: (B, h, w, C) -> (B, h / stride, w / stride, filters)."""
    return _block(x, name, [(filters, 3, stride), (filters, 3, 1)], spec)


def bottleneck_block(x, name, filters, stride, spec):
    """1x1, 3x3, 1x1 convolutions, one of the first two strided, beside a shortcut: -> (B, h', w', 4 filters)."""
    first, second = (stride, 1) if spec.conventions.style == "v1" else (1, stride)
    return _block(x, name, [(filters, 1, first), (filters, 3, second), (4 * filters, 1, 1)], spec)


def _block(x, name, convolutions, spec):
    """Convolutions (filters, kernel size, stride) beside a shortcut."""
    y = _relu(_normalisation(x, spec, f"{name}_preact"), f"{name}_preact_relu", spec) if spec.is_v2 else x
    activated = y
    for letter, convolution in zip("ab", convolutions[:-1]):
        branch = f"{name}_branch2{letter}"
        y = _relu(_conv_norm(y, spec, branch, *convolution), f"{branch}_relu", spec)
    last = _convolution if spec.is_v2 else _conv_norm
    y = last(y, spec, f"{name}_branch2{'abc'[len(convolutions) - 1]}", *convolutions[-1])
    if spec.residual:
        stride = max(stride for _, _, stride in convolutions)
        # Projected where its shape differs (He et al. 2015, option B); style v2 only drops cells where it can.
        if x.shape[-1] != y.shape[-1] or (stride != 1 and not spec.is_v2):
            x = last(activated, spec, f"{name}_branch1", y.shape[-1], 1, stride)
        elif stride != 1:
            x = keras.layers.MaxPooling2D(1, stride, name=f"{name}_shortcut", dtype=x.dtype)(x)
        y = keras.layers.Add(name=f"{name}_add", dtype=y.dtype)([x, y])
    return y if spec.is_v2 else _relu(y, f"{name}_relu", spec)


def layer_seed(spec, name):
    """The seed of a layer's initial kernel: each has one of its own."""
    return zlib.crc32(f"{spec.seed} {name}".encode()) & 0x7FFFFFFF


def _conv_norm(x, spec, name, filters, kernel_size, strides=1):
    return ConvNorm(
        filters,
        kernel_size,
        strides,
        spec.norm,
        epsilon=spec.conventions.epsilon,
        use_bias=spec.conventions.use_bias,
        seed=layer_seed(spec, name),
        initializer=spec.initializer,
        name=name,
        dtype=spec.dtype,
    )(x)


def _convolution(x, spec, name, filters, kernel_size, strides=1):
    """One without normalisation, with a bias; padded as `ConvNorm` is."""
    if kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad", dtype=x.dtype)(x)
    initializer = INITIALIZERS[spec.initializer](seed=layer_seed(spec, name))
    return Conv2D(filters, kernel_size, strides, kernel_initializer=initializer, name=name, dtype=spec.dtype)(x)


def _normalisation(x, spec, name):
    """One without a convolution before it."""
    epsilon = spec.conventions.epsilon
    if spec.norm == "group":
        groups = min(GROUPS, x.shape[-1])
        return keras.layers.GroupNormalization(groups, epsilon=epsilon, name=name, dtype=spec.dtype)(x)
    is_trained = spec.norm == "batch"
    return keras.layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=epsilon, trainable=is_trained, name=name, dtype=spec.dtype
    )(x)


def _relu(x, name, spec):
    return keras.layers.ReLU(negative_slope=spec.negative_slope, name=name, dtype=x.dtype)(x)
