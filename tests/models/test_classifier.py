import sys

import keras
import numpy as np
import pytest

import frcnn
from frcnn.config import load_config
from frcnn.models.classifier import ResNet50, build_resnet, convolutional_block, identity_block
from frcnn.models.detector import build_detector
from frcnn.models.resnet import BLOCKS, CONVENTIONS, ConvNorm, ResNetSpec
from frcnn.weights import flat_layers
from tests.oracles.golden import FOLDER, read_json
from tests.oracles.tensors import array, tensor

PUBLISHED = read_json("resnet_published.json")


def parameters(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def multiply_adds(model):
    """Each kernel weight is used once for every cell of its output."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(int(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1])) for layer in layers)


def small(blocks=(1, 1), input_shape=(32, 32, 3), classes=3, **settings):
    return build_resnet(ResNetSpec(blocks=blocks, width=8, **settings), input_shape, classes)


# ------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("name", PUBLISHED["keras_applications"]["models"])
def test_parameters_of_keras_applications(name):
    conventions = CONVENTIONS["keras_v2" if name.endswith("V2") else "keras"]
    spec = ResNetSpec(int(name[6:].removesuffix("V2")), conventions=conventions)
    model, published = build_resnet(spec, (224, 224, 3), 1000), PUBLISHED["keras_applications"]["models"][name]
    top = parameters(model.get_layer("fc").weights)
    assert model.count_params() == published["include_top"]["total"]
    assert model.count_params() - top == published["no_top"]["total"]
    stored = published["include_top"]["non_trainable"]
    assert parameters(model.non_trainable_weights) == stored == published["no_top"]["non_trainable"]
    if not spec.is_v2:  # the paper rounds, and counts no shortcut's convolution
        flops = PUBLISHED["paper_he2015_table1_flops"][f"ResNet-{spec.depth}"]
        assert multiply_adds(model) == pytest.approx(flops, rel=0.03)


@pytest.mark.parametrize("depth", BLOCKS)
def test_parameters_and_multiply_adds_of_torchvision(depth):
    """It does not count the stored statistics as parameters."""
    model = build_resnet(ResNetSpec(depth, conventions=CONVENTIONS["torchvision"]), (224, 224, 3), 1000)
    published = PUBLISHED["torchvision"]["models"][f"resnet{depth}"]["IMAGENET1K_V1"]
    assert parameters(model.trainable_weights) == published["num_params"]
    assert multiply_adds(model) / 1e9 == pytest.approx(published["GFLOPS"], abs=6e-4)


# ------------------------------------------------------------------------------------------------ our networks


@pytest.mark.parametrize("style", ["keras", "keras_v2"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_plain_network_has_all_weights_but_those_of_the_shortcuts(style, bottleneck):
    settings = {"blocks": (2, 3, 1), "bottleneck": bottleneck, "conventions": CONVENTIONS[style]}
    residual, plain = small(**settings), small(residual=False, **settings)
    shapes, plain_shapes = (
        {f"{layer.name}/{weight.name}": tuple(weight.shape) for layer in model.layers for weight in layer.weights}
        for model in (residual, plain)
    )
    shortcuts = {name for name in shapes if "_branch1/" in name}
    assert plain_shapes == {name: shape for name, shape in shapes.items() if name not in shortcuts}
    stages = {True: "234", False: "34"}[bottleneck]  # 8 filters stay 8 in stage 2 of basic blocks
    assert {name.partition("/")[0] for name in shortcuts} == {f"res{stage}a_branch1" for stage in stages}
    adds = [sum(isinstance(layer, keras.layers.Add) for layer in model.layers) for model in (residual, plain)]
    assert adds == [6, 0]


@pytest.mark.parametrize(("conventions", "norm"), [("frcnn", "batch"), ("keras_v2", "batch"), ("keras_v2", "group")])
def test_grey_pictures_of_28_pixels(conventions, norm):
    model = small((1, 1, 1, 1), (28, 28, 1), conventions=CONVENTIONS[conventions], norm=norm)
    x = tensor(np.random.default_rng(0).normal(0, 1, (2, 28, 28, 1)).astype(np.float32))
    for training in (False, True):
        found = array(model(x, training=training))
        assert found.shape == (2, 3)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_hundreds_of_layers_are_built_whatever_pythons_limit():
    """Keras's walk is 4 calls deep a block of a plain network, 2 of a residual one; Python allows 1,000."""
    limit = sys.getrecursionlimit()
    model = small((270,), classes=None, residual=False)
    assert sys.getrecursionlimit() == limit
    assert sum(isinstance(layer, ConvNorm) for layer in model.layers) == 1 + 270 * 2
    assert len({layer.name for layer in model.layers}) == len(model.layers)


def cells(model, name):
    return model.get_layer(name).output.shape[1]


def test_strides_of_the_stages():
    model = small((2, 2, 2, 2), (64, 64, 3), strides=(1, 1, 2, 2))
    assert [cells(model, f"res{stage}b_relu") for stage in (2, 3, 4, 5)] == [16, 16, 8, 4]
    model = small((2, 2, 2, 2), (64, 64, 3))
    assert [cells(model, f"res{stage}a_relu") for stage in (2, 3, 4, 5)] == [16, 8, 4, 2]


def test_style_v2_strides_in_the_last_block_of_a_stage_and_ends_in_a_norm():
    model = small((2, 2, 2, 2), (64, 64, 3), conventions=CONVENTIONS["keras_v2"])
    ends = [(cells(model, f"res{stage}a_add"), cells(model, f"res{stage}b_add")) for stage in (2, 3, 4, 5)]
    assert ends == [(16, 8), (8, 4), (4, 2), (2, 2)]
    assert [layer.name for layer in model.layers][-4:] == ["post_norm", "post_relu", "avg_pool", "fc"]
    frozen = small(conventions=CONVENTIONS["keras_v2"], norm="frozen")
    assert not {weight.name for weight in frozen.trainable_weights} - {"kernel", "bias"}


@pytest.mark.parametrize("conventions", ["frcnn", "keras_v2"])
def test_every_relu_is_leaky(conventions):
    model = small(negative_slope=0.25, conventions=CONVENTIONS[conventions])
    relus = [layer for layer in model.layers if isinstance(layer, keras.layers.ReLU)]
    assert {float(layer.negative_slope) for layer in relus} == {0.25} and len(relus) >= 5
    assert array(relus[0](tensor(np.float32([-4, 4])))).tolist() == [-1, 4]


@pytest.mark.parametrize("conventions", ["frcnn", "keras_v2"])
def test_glorot_uniform_of_a_seed(conventions):
    settings = {"conventions": CONVENTIONS[conventions], "initializer": "glorot_uniform"}
    kernels = [
        {
            layer.name: array(layer.kernel.value)
            for layer in small(seed=seed, **settings).layers
            if hasattr(layer, "kernel")
        }
        for seed in (1, 1, 2)
    ]
    assert all(np.array_equal(values, kernels[1][name]) for name, values in kernels[0].items())
    assert not any(np.array_equal(values, kernels[2][name]) for name, values in kernels[0].items())
    limit = np.sqrt(6 / (7 * 7 * 3 + 7 * 7 * 8))
    assert 0.98 * limit < np.abs(kernels[0]["conv1"]).max() <= limit


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, r"give either depth \(None\), one of 18, 34, 50, 101, 152, or blocks \(None\)"),
        ({"depth": 19}, r"give either depth \(19\)"),
        ({"depth": 18, "blocks": (2, 2)}, r"or blocks \(\(2, 2\)\)"),
        ({"blocks": ()}, "must be 1 to 4 counts of at least 1"),
        ({"blocks": (1, 0)}, r"blocks \(1, 0\) must be 1 to 4 counts of at least 1"),
        ({"blocks": (1,) * 5}, "must be 1 to 4 counts"),
        ({"blocks": (1, 1), "strides": (1,)}, r"strides \(1,\) must be one of at least 1 for each stage"),
        ({"blocks": (1, 1), "strides": (1, 0)}, "must be one of at least 1"),
        ({"depth": 18, "initializer": "zeros"}, "initializer 'zeros' must be one of he, glorot_uniform"),
    ],
)
def test_what_is_no_resnet(settings, expected):
    with pytest.raises(ValueError, match=expected):
        ResNetSpec(**settings)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: small(input_shape=(27, 28, 3)), r"\(27, 28, 3\) must be \(H, W, C\), H and W at least 28 or None"),
        (lambda: small(input_shape=(28, 28)), r"\(28, 28\) must be \(H, W, C\)"),
        (lambda: small(classes=0), r"classes \(0\) must be at least 1"),
        (lambda: ResNet50((36, 64, 3), 6), r"\(36, 64, 3\) must be \(H, W, C\), H and W at least 37"),
        (lambda: ResNet50((None, None, 3), 6), "must be"),
        (lambda: ResNet50((64, 64, 3), 0), r"classes \(0\) must be at least 1"),
        (lambda: identity_block(keras.Input((4, 4, 3)), 2, (2, 4, 6), 1, "a"), "1a: X has 3 channels, filters.2. is 6"),
    ],
)
def test_what_cannot_be_built(build, expected):
    with pytest.raises(ValueError, match=expected):
        build()


# --------------------------------------------------------------------------------------------------- tutorials


@pytest.mark.parametrize("block", [identity_block, convolutional_block])
def test_the_blocks_of_the_tutorials(block):
    with np.load(FOLDER / "resnet_blocks.npz") as arrays:
        golden = dict(arrays)
    X = keras.Input((4, 4, 6))
    model = keras.Model(X, block(X, f=2, filters=[2, 4, 6], stage=1, block="a"))
    names = ("2a", "2b", "2c", "1") if block is convolutional_block else ("2a", "2b", "2c")
    for name in names:
        layer = model.get_layer(f"res1a_branch{name}")
        layer.set_weights([golden[f"w{name}"], np.zeros(layer.bias.shape)])
        assert model.get_layer(f"bn1a_branch{name}").get_weights()
    kind = block.__name__.removesuffix("_block")
    for training, suffix in ((False, ""), (True, "_training")):
        found = array(model(tensor(golden["X"]), training=training))
        np.testing.assert_allclose(found, golden[f"{kind}_out{suffix}"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def tutorial():
    return ResNet50(input_shape=(64, 64, 3), classes=6)


def test_the_network_of_the_tutorials(tutorial):
    published = PUBLISHED["coursera_signs_resnet50_64x64x3_6classes"]
    assert tutorial.count_params() == published["total"]
    assert parameters(tutorial.trainable_weights) == published["trainable"]
    names = PUBLISHED["keras_frcnn_layer_names"]
    expected = {*names["base_conv1_to_res4f"], *names["head_timedistributed"], "fc6"}
    assert {layer.name for layer in tutorial.layers if layer.weights} == expected
    for kind, name in ((keras.layers.Conv2D, "conv"), (keras.layers.BatchNormalization, "bn")):
        count = sum(isinstance(layer, kind) for layer in tutorial.layers)
        assert count == PUBLISHED["resnet50_bn_conv_layer_count"][name]
    # 64 -> 32 by conv1, 15 by the unpadded pooling, 15, 8, 4, 2 by the stages, 1 by the average of 2x2.
    names = ("conv1", "res2c_out", "res3d_out", "res4f_out", "res5c_out")
    assert [cells(tutorial, name) for name in names] == [32, 15, 8, 4, 2]
    assert tutorial.get_layer("avg_pool").output.shape == (None, 1, 1, 2048)
    kernel, limit = array(tutorial.get_layer("res2a_branch2b").kernel.value), np.sqrt(6 / (2 * 9 * 64))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_array_equal(kernel, keras.initializers.GlorotUniform(seed=0)((3, 3, 64, 64)))


def test_the_tutorials_network_with_narrow_last_blocks():
    model = ResNet50((64, 64, 3), 6, last_filters=(256, 256, 2048))
    filters = [model.get_layer(f"res5{block}_branch2{end}").filters for block in "abc" for end in "abc"]
    assert filters == [512, 512, 2048, 256, 256, 2048, 256, 256, 2048]

    def block(inner):  # kernels, biases, 4 values a normalised channel
        return 2048 * inner + 9 * inner * inner + inner * 2048 + 5 * (2 * inner + 2048)

    assert model.count_params() == 23_600_006 - 2 * (block(512) - block(256))


def test_public_names():
    for name in ("ResNet50", "build_resnet", "convolutional_block", "identity_block"):
        assert getattr(frcnn, name) is globals()[name]
    assert frcnn.ResNetSpec is ResNetSpec


# ----------------------------------------------------------------------------------------------- build_classifier


def test_a_classifier_takes_pictures_as_they_come():
    """uint8 in, probabilities out: those of the ResNet of its spec on (x - mean) / deviation."""
    config = load_config(None, ["data.im_size=32", "classify.blocks=[1,1]", "train.precision=float32", "train.seed=3"])
    model = frcnn.build_classifier(config, ["a", "b", "c"])
    assert (model.class_names, model.spec.blocks, model.spec.depth) == (("a", "b", "c"), (1, 1), None)
    assert (model.input_shape, model.output_shape, model.inputs[0].dtype) == ((None, 32, 32, 3), (None, 3), "uint8")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = model.predict_on_batch(images)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    network = build_resnet(model.spec, (32, 32, 3), 3)  # the same seed: the same weights
    x = ((images - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]).astype(np.float32)
    np.testing.assert_allclose(found, network.predict_on_batch(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_plain_and_residual_classifiers_of_any_blocks(residual):
    settings = ["data.im_size=28", "classify.blocks=[3,2]", f"classify.residual={residual}", "model.norm=group"]
    model = frcnn.build_classifier(load_config(None, settings), ["a", "b"])
    names = {layer.name for layer in model.get_layer("resnet").layers}
    assert {"res2c_branch2b", "res3b_branch2b"} <= names and not {"res2d_branch2a", "res4a_branch2a"} & names
    assert ("res3a_branch1" in names) == residual


@pytest.mark.parametrize("depth", [18, 50])
def test_a_classifier_has_the_layers_of_the_detector(depth):
    config = load_config(None, ["data.im_size=32", f"model.depth={depth}"])
    model, detector = frcnn.build_classifier(config, ["a", "b"]), build_detector(config, ["a", "b"])
    shapes, theirs = (
        {f"{layer.name}/{weight.name}": tuple(weight.shape) for layer in flat_layers(x) for weight in layer.weights}
        for x in (model, detector)
    )
    own = {"fc/kernel", "fc/bias"}
    assert own < shapes.keys() and shapes.keys() - own <= theirs.keys()
    assert all(theirs[name] == shapes[name] for name in shapes.keys() - own)


@pytest.mark.parametrize(("names", "shown"), [([], r"\(\)"), (["a", "a"], r"\('a', 'a'\)")])
def test_classifiers_need_distinct_names(names, shown):
    with pytest.raises(ValueError, match=f"class_names {shown} must be one or more distinct names"):
        frcnn.build_classifier(load_config(), names)
