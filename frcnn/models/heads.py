"""The RPN head and the stage-5 RoI head, as models of their own that training and detection share."""

import keras

from frcnn.models.resnet import resnet_stage


def build_rpn_head(in_channels, channels, anchors_per_cell, dtype="float32", seed=0):
    """The region proposal network (Ren et al. 2015, section 3.1).

    Args:
        in_channels: of the feature map.
        channels: of the 3x3 convolution.
        anchors_per_cell: anchors at each place of the map.
        dtype: dtype policy of the 3x3 convolution; the outputs are float32.
        seed: of the initial weights, normal with deviation 0.01.

    Returns:
        keras.Model, features (B, h, w, C) -> rpn_logits (B, A), rpn_deltas (B, A, 4), A = h * w * anchors_per_cell.
    """
    features = keras.Input((None, None, in_channels), name="features")
    conv = _dense_or_conv(keras.layers.Conv2D, "rpn_conv1", channels, 0.01, dtype, seed, kernel_size=3, padding="same")
    x = keras.layers.ReLU(name="rpn_conv1_relu", dtype=dtype)(conv(features))
    one_by_one = {"dtype": "float32", "kernel_size": 1}
    logits = _dense_or_conv(keras.layers.Conv2D, "rpn_out_class", anchors_per_cell, 0.01, seed=seed + 1, **one_by_one)(
        x
    )
    deltas = _dense_or_conv(
        keras.layers.Conv2D, "rpn_out_regress", 4 * anchors_per_cell, 0.01, seed=seed + 2, **one_by_one
    )(x)
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
    dense, seed = keras.layers.Dense, spec.seed
    logits = _dense_or_conv(dense, "class_logits", num_classes + 1, 0.01, "float32", seed + 3)(x)
    deltas = _dense_or_conv(dense, "box_predictor", 4 * num_classes, 0.001, "float32", seed + 4)(x)
    deltas = keras.layers.Reshape((num_classes, 4), name="box_deltas", dtype="float32")(deltas)
    return keras.Model(pooled, [logits, deltas], name="roi_head")


def _dense_or_conv(layer, name, units, deviation, dtype, seed, **settings):
    initializer = keras.initializers.RandomNormal(stddev=deviation, seed=seed)
    return layer(units, kernel_initializer=initializer, name=name, dtype=dtype, **settings)
