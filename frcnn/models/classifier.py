"""Whole classification networks: ours, and the one of the ResNet tutorials with its two blocks.

The tutorials' functions are made of stock layers and keep their own argument and layer names (`X`, `f`, `s`,
`bn2a_branch2a`), the one exception to this library's naming, so that notebooks and their weight files fit.
"""

import sys
from contextlib import contextmanager

import keras
from keras import layers

from frcnn.models.detector import conventions_name, dtype_policy, normalisation
from frcnn.models.guarded import GuardedModel
from frcnn.models.layers import ImageNormalization
from frcnn.models.resnet import (
    CONVENTIONS,
    Conv2D,
    ResNetSpec,
    layer_seed,
    require_keras_settings,
    resnet_stage,
    resnet_stem,
)
from frcnn.records import require_class_names

SMALLEST_SIDE = 28  # pixels: one cell after the last stage


def build_resnet(spec, input_shape=(224, 224, 3), classes=None, activation="softmax"):
    """A ResNet for classification (He et al. 2015, table 1).

    Args:
        spec: `frcnn.models.resnet.ResNetSpec`.
        input_shape: (H, W, C) of the normalised images (see `Conventions`); H and W at least 28, or None for any.
        classes: K; None: without the last two layers.
        activation: of the last layer; None: logits.

    Returns:
        keras.Model, (B, H, W, C) -> (B, K) float32; without classes the last stage's features (B, h, w, C'). Its
        attribute `spec` is `spec`.

    Raises:
        ValueError: a side is too small, or classes is less than 1.
    """
    if len(input_shape) != 3 or any(side is not None and side < SMALLEST_SIDE for side in input_shape[:2]):
        raise ValueError(f"input_shape {input_shape} must be (H, W, C), H and W at least {SMALLEST_SIDE} or None")
    _check_classes(classes)
    images = keras.Input(input_shape, name="normalised_images")
    x = resnet_stem(images, spec)
    for stage in range(2, 2 + len(spec.stage_blocks)):
        x = resnet_stage(x, stage, spec)
    if classes is not None:
        x = layers.GlobalAveragePooling2D(name="avg_pool", dtype="float32")(x)
        initializer = keras.initializers.GlorotUniform(seed=layer_seed(spec, "fc"))
        x = layers.Dense(classes, activation, kernel_initializer=initializer, name="fc", dtype="float32")(x)
    with _recursion(10 * sum(spec.stage_blocks)):
        model = keras.Model(images, x, name="resnet")
    model.spec = spec
    return model


def build_classifier(config, class_names):
    """The detector's ResNet with global average pooling and softmax, for pictures as they come.

    With `model.conventions` "tutorial", depth 50 and pictures of 64 pixels it computes what `ResNet50` does.

    Args:
        config: `frcnn.Config`: `data.im_size`, `model.depth` (or `classify.blocks` and `classify.residual`),
            `model.conventions`, `model.norm`, `train.precision` and `train.seed` decide.
        class_names: K strings, distinct; their order is the order of the labels.

    Returns:
        keras.Model, uint8 RGB images (B, im_size, im_size, 3) -> probabilities (B, K) float32; not compiled. Its
        attributes: `config`, `class_names` and `spec`, the `ResNetSpec`.

    Raises:
        ValueError: no class, or one named twice.
    """
    class_names, blocks = require_class_names(class_names), config.classify.blocks
    conventions = CONVENTIONS[conventions_name(config.model.conventions)]
    depth, norm = None if blocks else config.model.depth, normalisation(config.model.norm)
    numbers = (norm, dtype_policy(config.train.precision), config.train.seed, conventions)
    spec = ResNetSpec(depth, *numbers, blocks=blocks, residual=config.classify.residual)
    shape = (config.data.im_size, config.data.im_size, 3)
    images = keras.Input(shape, dtype="uint8", name="images")
    pixels = {name: getattr(conventions, name) for name in ("channel_order", "mean", "deviation")}
    network = build_resnet(spec, shape, len(class_names))
    probabilities = network(ImageNormalization(name="normalize", **pixels)(images))
    classifier = GuardedModel(images, probabilities, name="classifier")
    classifier.config, classifier.class_names, classifier.spec = config, class_names, spec
    return classifier


@contextmanager
def _recursion(depth):
    """Keras walks from the output to the input by recursion, one level a layer: more than 1,000 for 1,202 layers."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def identity_block(X, f, filters, stage, block):
    """The tutorials' bottleneck whose shortcut is the input itself.

    Args:
        X: (B, h, w, filters[2]).
        f: size of the middle convolution.
        filters: of the three convolutions.
        stage, block: of the layers' names: 2 and "a" for `res2a_branch2a`, `bn2a_branch2a`, ...

    Returns:
        (B, h, w, filters[2]).

    Raises:
        ValueError: X has other than filters[2] channels.
    """
    if X.shape[-1] != filters[2]:
        raise ValueError(f"identity_block {stage}{block}: X has {X.shape[-1]} channels, filters[2] is {filters[2]}")
    return _add(_tutorial_branch(X, f, filters, stage, block, 1), X, stage, block)


def convolutional_block(X, f, filters, stage, block, s=2):
    """The tutorials' bottleneck with a convolution in its shortcut.

    Args:
        X: (B, h, w, C).
        f, filters, stage, block: see `identity_block`.
        s: stride of the first convolution and of the shortcut's.

    Returns:
        (B, ceil(h / s), ceil(w / s), filters[2]).
    """
    branch = _tutorial_branch(X, f, filters, stage, block, s)
    return _add(branch, _tutorial_convolution(X, filters[2], 1, f"{stage}{block}_branch1", s), stage, block)


def ResNet50(input_shape=(64, 64, 3), classes=6, last_filters=(512, 512, 2048)):
    """The tutorials' 50-layer network: unpadded first pooling, 2x2 average pooling, Flatten, `fc{classes}`, softmax.

    Its kernels are glorot-uniform of seed 0, so that those of one shape begin alike.

    Args:
        input_shape: (H, W, C), H and W at least 37.
        classes: K.
        last_filters: of blocks 5b and 5c; some tutorials declare (256, 256, 2048).

    Returns:
        keras.Model, (B, H, W, C) -> (B, K) float32 probabilities.

    Raises:
        ValueError: a side is too small, or classes is less than 1.
    """
    if len(input_shape) != 3 or any(side is None or side < 37 for side in input_shape[:2]):
        raise ValueError(f"input_shape {input_shape} must be (H, W, C), H and W at least 37")
    _check_classes(classes)
    require_keras_settings()
    X_input = layers.Input(input_shape)
    X = layers.ZeroPadding2D(3)(X_input)
    X = Conv2D(64, 7, 2, kernel_initializer=_glorot_uniform(), name="conv1")(X)
    X = layers.Activation("relu")(layers.BatchNormalization(name="bn_conv1")(X))
    X = layers.MaxPooling2D(3, 2)(X)
    for stage, count in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        inner = 64 << (stage - 2)
        filters = (inner, inner, 4 * inner)
        X = convolutional_block(X, 3, filters, stage, "a", s=1 if stage == 2 else 2)
        for block in "bcdef"[: count - 1]:
            X = identity_block(X, 3, last_filters if stage == 5 else filters, stage, block)
    X = layers.Flatten()(layers.AveragePooling2D(2, name="avg_pool")(X))
    X = layers.Dense(classes, "softmax", kernel_initializer=_glorot_uniform(), name=f"fc{classes}")(X)
    return keras.Model(X_input, X, name="ResNet50")


def _tutorial_branch(X, f, filters, stage, block, s):
    base = f"{stage}{block}_branch2"
    X = layers.Activation("relu")(_tutorial_convolution(X, filters[0], 1, f"{base}a", s))
    X = layers.Activation("relu")(_tutorial_convolution(X, filters[1], f, f"{base}b"))
    return _tutorial_convolution(X, filters[2], 1, f"{base}c")


def _tutorial_convolution(X, filters, f, name, s=1):
    require_keras_settings()
    convolution = Conv2D(filters, f, s, "same", kernel_initializer=_glorot_uniform(), name=f"res{name}")
    return layers.BatchNormalization(name=f"bn{name}")(convolution(X))


def _add(branch, shortcut, stage, block):
    return layers.Activation("relu", name=f"res{stage}{block}_out")(layers.Add()([branch, shortcut]))


def _glorot_uniform():
    return keras.initializers.GlorotUniform(seed=0)


def _check_classes(classes):
    if classes is not None and classes < 1:
        raise ValueError(f"classes ({classes}) must be at least 1")
