"""The RPN head and the RoI heads, as models of their own that training and detection share."""

import keras

from frcnn import backend
from frcnn.models.resnet import ConvNorm, layer_seed, resnet_stage


@keras.saving.register_keras_serializable("frcnn")
class Conv(keras.layers.Conv2D):
    """A convolution of stride 1 with a bias, padded with zeros to keep the size, by `backend.convolve`."""

    def call(self, x):
        return keras.ops.add(backend.convolve(x, keras.ops.cast(self.kernel, x.dtype)), self.bias)


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


def build_stage5_head(in_channels, pool_size, num_classes, spec):
    """Stage 5 of the ResNet on pooled RoIs, then class scores and class-specific boxes (He et al. 2015, appendix A).

    Args:
        in_channels: of the feature map.
        pool_size: cells along a side of a pooled RoI.
        num_classes: K.
        spec: `ResNetSpec`; the outputs are float32, the initial deviation 0.01 for scores and 0.001 for boxes
            (Girshick 2015).

    Returns:
        keras.Model, (R, pool_size, pool_size, C) -> class_logits (R, K + 1), box_deltas (R, K, 4).
    """
    pooled = keras.Input((pool_size, pool_size, in_channels), name="pooled")
    x = resnet_stage(pooled, 5, spec)
    x = keras.layers.GlobalAveragePooling2D(name="roi_pool", dtype="float32")(x)
    return _with_predictors(pooled, x, num_classes, spec)


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
