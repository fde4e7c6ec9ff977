"""The RPN head and the RoI heads, as models of their own that training and detection share."""

import dataclasses

import keras

from frcnn import backend
from frcnn.models.resnet import ConvNorm, layer_seed, resnet_stage


@keras.saving.register_keras_serializable("frcnn")
class Conv(keras.layers.Conv2D):
    """A convolution of stride 1 with a bias, padded with zeros to keep the size, by `backend.convolve`.

    With `padding="valid"` in a call there is no padding: meant for maps of a few cells, by a matrix product.
    """

    def call(self, x, padding="same"):
        kernel = keras.ops.cast(self.kernel, x.dtype)
        y = backend.convolve(x, kernel) if padding == "same" else _convolve_small(x, kernel)
        return keras.ops.add(y, self.bias)

    def compute_output_spec(self, x, padding="same"):
        removed = 0 if padding == "same" else self.kernel_size[0] - 1
        sides = (side and side - removed for side in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *sides, self.filters), self.compute_dtype)


def _convolve_small(x, kernel):
    size, _, channels, filters = kernel.shape
    height, width = (side - size + 1 for side in x.shape[1:3])
    places = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return keras.ops.matmul(
        keras.ops.concatenate(places, axis=-1), keras.ops.reshape(kernel, (size * size * channels, filters))
    )


def build_rpn_head(in_channels, channels, anchors_per_cell, dtype="float32", seed=0, convolutions=1):
    """The region proposal network (Ren et al. 2015, section 3.1).

    Args:
        in_channels: of the feature map.
        channels: of the 3x3 convolutions.
        anchors_per_cell: anchors at each place of the map.
        dtype: dtype policy of the 3x3 convolutions; the outputs are float32.
        seed: of the initial weights, normal with deviation 0.01.
        convolutions: how many 3x3 convolutions there are.

    Returns:
        keras.Model, features (B, h, w, C) -> rpn_logits (B, A), rpn_deltas (B, A, 4), A = h * w * anchors_per_cell.
    """
    features = x = keras.Input((None, None, in_channels), name="features")
    three_by_three = {"kernel_size": 3, "padding": "same"}
    for number in range(1, convolutions + 1):
        own_seed = seed if number == 1 else seed + 3 + number  # those between are the predictors'
        x = _dense_or_conv(Conv, f"rpn_conv{number}", channels, 0.01, dtype, own_seed, **three_by_three)(x)
        x = keras.layers.ReLU(name=f"rpn_conv{number}_relu", dtype=dtype)(x)
    one_by_one = {"dtype": "float32", "kernel_size": 1}
    logits = _dense_or_conv(Conv, "rpn_out_class", anchors_per_cell, 0.01, seed=seed + 1, **one_by_one)(x)
    deltas = _dense_or_conv(Conv, "rpn_out_regress", 4 * anchors_per_cell, 0.01, seed=seed + 2, **one_by_one)(x)
    logits = keras.layers.Reshape((-1,), name="rpn_logits", dtype="float32")(logits)
    deltas = keras.layers.Reshape((-1, 4), name="rpn_deltas", dtype="float32")(deltas)
    return keras.Model(features, [logits, deltas], name="rpn")


@keras.saving.register_keras_serializable("frcnn")
class SampledRPN(keras.Model):
    """An RPN head on the surroundings of single cells; see `build_sampled_rpn`."""


def build_sampled_rpn(rpn):
    """What an RPN head answers at single cells, with its own layers, without a look at the rest of the map.

    Args:
        rpn: as `build_rpn_head` returns it.

    Returns:
        keras.Model, patches (N, s, s, C) and inside (N, s, s, 1) of `ops.patches.take_patches`, s = 1 + 2 for each 3x3
        convolution -> logits (N, a), deltas (N, a, 4), those of the a anchors of each cell.
    """
    layers = {layer.name: layer for layer in rpn.layers}
    convolutions = [layer for name, layer in layers.items() if name.startswith("rpn_conv") and hasattr(layer, "kernel")]
    side, dtype = 1 + 2 * len(convolutions), convolutions[0].compute_dtype
    patches = x = keras.Input((side, side, rpn.input_shape[-1]), dtype=dtype, name="patches")
    inside = is_cell = keras.Input((side, side, 1), dtype=dtype, name="inside")
    for convolution in convolutions:  # each sees zeros around the map, and not what the one before makes of them
        x = keras.layers.Multiply(name=f"{convolution.name}_inside", dtype=dtype)([x, is_cell])
        x = layers[f"{convolution.name}_relu"](convolution(x, padding="valid"))
        is_cell = keras.layers.Cropping2D(1, name=f"{convolution.name}_crop", dtype=dtype)(is_cell)
    anchors = layers["rpn_out_class"].filters
    logits, deltas = (layers[name](x, padding="valid") for name in ("rpn_out_class", "rpn_out_regress"))
    logits = keras.layers.Reshape((anchors,), name="sampled_logits", dtype="float32")(logits)
    deltas = keras.layers.Reshape((anchors, 4), name="sampled_deltas", dtype="float32")(deltas)
    return SampledRPN([patches, inside], [logits, deltas], name="sampled_rpn")


def build_stage5_head(in_channels, pool_size, num_classes, spec):
    """Stage 5 of the ResNet on pooled RoIs, then class scores and class-specific boxes (He et al. 2015, appendix A).

    Args:
        in_channels: of the feature map.
        pool_size: cells along a side of a pooled RoI, those that `stage5_step` leaves out not among them.
        num_classes: K.
        spec: `ResNetSpec`; the outputs are float32, the initial deviation 0.01 for scores and 0.001 for boxes
            (Girshick 2015).

    Returns:
        keras.Model, (R, pool_size, pool_size, C) -> class_logits (R, K + 1), box_deltas (R, K, 4).
    """
    pooled = keras.Input((pool_size, pool_size, in_channels), name="pooled")
    if stage5_step(spec) > 1:
        spec = dataclasses.replace(spec, strides=(*spec.stage_strides[:-1], 1))
    x = resnet_stage(pooled, 5, spec)
    x = keras.layers.GlobalAveragePooling2D(name="roi_pool", dtype="float32")(x)
    return _with_predictors(pooled, x, num_classes, spec)


def stage5_step(spec):
    """2 where stage 5 reads but each second row and column of a pooled RoI, by 1x1 kernels of stride 2, else 1."""
    return spec.stage_strides[-1] if spec.has_bottlenecks and spec.conventions.style == "v1" else 1


def build_box_head(in_channels, pool_size, num_classes, spec, convolutions=0, dense=2):
    """Normalised 3x3 convolutions, then dense layers of 1024 units, on pooled RoIs (Lin et al. 2017, section 4.2).

    Args:
        in_channels, pool_size, num_classes, spec: as in `build_stage5_head`.
        convolutions: how many, of 256 channels.
        dense: how many.

    Returns:
        As `build_stage5_head`.
    """
    pooled = x = keras.Input((pool_size, pool_size, in_channels), name="pooled")
    for number in range(1, convolutions + 1):
        x = conv_or_conv_norm(x, f"box_conv{number}", 256, 3, spec, spec)
        x = keras.layers.ReLU(name=f"box_conv{number}_relu", dtype=spec.dtype)(x)
    x = keras.layers.Flatten(name="box_flatten", dtype=spec.dtype)(x)
    for number in range(1, dense + 1):
        name = f"box_dense{number}"
        initializer = _xavier(spec, name)
        x = keras.layers.Dense(1024, "relu", kernel_initializer=initializer, name=name, dtype=spec.dtype)(x)
    return _with_predictors(pooled, x, num_classes, spec)


def conv_or_conv_norm(x, name, filters, kernel_size, spec, norm_spec=None):
    """A convolution with a bias, or, where `norm_spec` says of which kind, with normalisation instead; no ReLU.

    Args:
        x: (B, h, w, C).
        name, filters, kernel_size: of the convolution.
        spec: `ResNetSpec`: dtype and seed.
        norm_spec: `ResNetSpec`: the kind of normalisation.

    Returns:
        (B, h, w, filters).
    """
    if norm_spec:
        seed = layer_seed(spec, name)
        return ConvNorm(filters, kernel_size, norm=norm_spec.norm, seed=seed, name=name, dtype=spec.dtype)(x)
    initializer = _xavier(spec, name)
    return Conv(filters, kernel_size, padding="same", kernel_initializer=initializer, name=name, dtype=spec.dtype)(x)


def _xavier(spec, name):
    """Uniform with variance 1 / fan in: torchvision's pyramid, Detectron2's dense layers."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "uniform", layer_seed(spec, name))


def _with_predictors(pooled, x, num_classes, spec):
    """The RoI head from `pooled` to class scores and class-specific boxes of the vectors x (R, C)."""
    dense, seed = keras.layers.Dense, spec.seed
    logits = _dense_or_conv(dense, "class_logits", num_classes + 1, 0.01, "float32", seed + 3)(x)
    deltas = _dense_or_conv(dense, "box_predictor", 4 * num_classes, 0.001, "float32", seed + 4)(x)
    deltas = keras.layers.Reshape((num_classes, 4), name="box_deltas", dtype="float32")(deltas)
    return keras.Model(pooled, [logits, deltas], name="roi_head")


def _dense_or_conv(layer, name, units, deviation, dtype, seed, **settings):
    initializer = keras.initializers.RandomNormal(stddev=deviation, seed=seed)
    return layer(units, kernel_initializer=initializer, name=name, dtype=dtype, **settings)
