import keras
import numpy as np
import pytest

from frcnn.models.detector import build_backbone
from frcnn.models.heads import build_stage5_head
from frcnn.models.resnet import (
    BLOCKS,
    CONVENTIONS,
    Conventions,
    ConvNorm,
    ResNetSpec,
    block_letter,
    resnet_stage,
    resnet_stem,
)
from tests.oracles.convolution import convolve, group_norm
from tests.oracles.tensors import array, gradient, tensor

EPSILON = 1e-3  # large enough that forgetting it shows


def noise(*shape, seed=0, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(shift, scale, shape)).astype(np.float32)


def conv_norm(norm="frozen", filters=6, channels=4, size=3, strides=1, **settings):
    """A built layer with weights that leave nothing at its neutral value."""
    layer = ConvNorm(filters, size, strides, norm, epsilon=EPSILON, name="conv", **settings)
    layer.build((None, None, None, channels))
    values = {
        "bias": noise(filters, seed=5),
        "gamma": noise(filters, seed=1, shift=1.5, scale=0.2),
        "beta": noise(filters, seed=2),
        "moving_mean": noise(filters, seed=3),
        "moving_variance": noise(filters, seed=4, scale=0.1, shift=2.0) ** 2,
    }
    for name, value in values.items():
        if isinstance(getattr(layer, name, None), keras.Variable):
            getattr(layer, name).assign(value)
    return layer


def weights(layer):
    return {weight.name: array(weight.value) for weight in layer.weights}


def normalised(x, layer):
    """The definition, with stored statistics: (x - mean) * gamma / sqrt(var + eps) + beta."""
    stored = weights(layer)
    scale = stored["gamma"] / np.sqrt(stored["moving_variance"] + EPSILON)
    return (x - stored["moving_mean"]) * scale + stored["beta"]


@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("sides", [(8, 10), (7, 9)], ids=["even", "odd"])
def test_folding_the_frozen_norm_is_exact_and_padding_symmetric(size, strides, sides):
    layer, x = conv_norm(size=size, strides=strides), noise(2, *sides, 4)
    expected = normalised(convolve(x, weights(layer)["kernel"], strides), layer)
    found = array(layer(tensor(x), training=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == layer.compute_output_shape(x.shape) == (2, *(-(-side // strides) for side in sides), 6)


def test_the_first_cell_of_a_strided_convolution_is_centred_on_the_first_pixel():
    # A kernel that copies its centre: symmetric padding reads pixels 0, 2, 4, 6; "same" of TensorFlow 1, 3, 5, 7.
    layer = ConvNorm(1, 3, 2, "frozen", epsilon=0.0)
    layer.build((None, None, None, 1))
    layer.kernel.assign(np.float32([[0, 0, 0], [0, 1, 0], [0, 0, 0]]).reshape(3, 3, 1, 1))
    x = np.tile(np.arange(8, dtype=np.float32), (8, 1))[None, :, :, None]
    assert array(layer(tensor(x)))[0, 0, :, 0].tolist() == [0, 2, 4, 6]


@pytest.mark.tensorflow
def test_tensorflows_same_padding_is_another_one():
    layer, x = conv_norm(strides=2), noise(1, 8, 8, 4)
    same = array(keras.ops.conv(tensor(x), layer.kernel, 2, "same"))
    symmetric = convolve(x, weights(layer)["kernel"], 2)
    assert same.shape == symmetric.shape
    assert np.abs(same - symmetric).max() > 0.1


@pytest.mark.parametrize(
    ("norm", "trained"), [("frozen", "kernel"), ("batch", "kernel gamma beta"), ("group", "kernel gamma beta")]
)
def test_what_is_trained(norm, trained):
    layer = conv_norm(norm)
    assert " ".join(weight.name for weight in layer.trainable_weights) == trained
    assert len(layer.weights) == (3 if norm == "group" else 5)


def test_gradient_reaches_the_kernel_through_the_scale_and_no_statistic_moves():
    layer, x = conv_norm(size=1), noise(2, 5, 5, 4)
    before = weights(layer)

    frozen = [weight.value for weight in layer.non_trainable_weights]

    def total(kernel):
        return keras.ops.sum(layer.stateless_call([kernel], frozen, tensor(x), training=True)[0])

    # d/dkernel[c, f] of a 1x1 convolution's sum is sum(x[..., c]) * scale[f].
    scale = before["gamma"] / np.sqrt(before["moving_variance"] + EPSILON)
    expected = np.outer(x.sum(axis=(0, 1, 2)), scale).reshape(1, 1, 4, 6)
    np.testing.assert_allclose(gradient(total, before["kernel"]), expected, rtol=1e-4, atol=1e-3)
    layer(tensor(x), training=True)
    assert all(np.array_equal(value, before[name]) for name, value in weights(layer).items())


@pytest.fixture(params=["fused", "portable"])
def batch_path(request, monkeypatch):
    """Both forms of `backend.batch_normalise`, where there are two."""
    if request.param == "fused" and keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's kernel")
    if request.param == "portable":
        monkeypatch.setattr("frcnn.backend.is_tensorflow", lambda: False)


@pytest.mark.usefixtures("batch_path")
def test_batch_norm_in_training_normalises_and_stores_the_unbiased_variance():
    layer, x = conv_norm("batch", size=1), noise(3, 4, 5, 4, scale=3.0, shift=1.0)
    before = weights(layer)
    y = convolve(x, before["kernel"], 1)
    mean, variance = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
    found = array(layer(tensor(x), training=True))
    expected = (y - mean) / np.sqrt(variance + EPSILON) * before["gamma"] + before["beta"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    count = 3 * 4 * 5
    after = weights(layer)
    np.testing.assert_allclose(after["moving_mean"], 0.9 * before["moving_mean"] + 0.1 * mean, rtol=1e-4, atol=1e-5)
    unbiased = variance * count / (count - 1)  # 1.7 % more: well above the tolerance
    np.testing.assert_allclose(after["moving_variance"], 0.9 * before["moving_variance"] + 0.1 * unbiased, rtol=1e-4)


def test_a_bias_is_added_before_the_normalisation():
    """Folded when the statistics are stored; added when they are those of the batch or of the groups."""
    x = noise(2, 5, 6, 4)
    layer = conv_norm("frozen", use_bias=True)
    stored = weights(layer)
    expected = normalised(convolve(x, stored["kernel"], 1) + stored["bias"], layer)
    np.testing.assert_allclose(array(layer(tensor(x), training=True)), expected, rtol=1e-5, atol=1e-5)
    assert " ".join(weight.name for weight in layer.trainable_weights) == "kernel bias"

    layer = conv_norm("group", filters=64, use_bias=True)
    stored = weights(layer)
    expected = group_norm(convolve(x, stored["kernel"], 1) + stored["bias"], 32, EPSILON)
    found = array(layer(tensor(x)))
    np.testing.assert_allclose(found, expected * stored["gamma"] + stored["beta"], rtol=1e-4, atol=1e-4)

    layer = conv_norm("batch", use_bias=True)
    stored = weights(layer)
    layer(tensor(x), training=True)
    mean = (convolve(x, stored["kernel"], 1) + stored["bias"]).mean(axis=(0, 1, 2))
    moved = 0.9 * stored["moving_mean"] + 0.1 * mean
    np.testing.assert_allclose(weights(layer)["moving_mean"], moved, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_trainable_keeps_its_statistics():
    layer, x = conv_norm("batch"), tensor(noise(2, 5, 5, 4))
    expected, before = array(layer(x, training=False)), weights(layer)
    layer.trainable = False
    np.testing.assert_array_equal(array(layer(x, training=True)), expected)
    assert all(np.array_equal(value, before[name]) for name, value in weights(layer).items())


def test_batch_norm_in_inference_is_the_frozen_one():
    batch, frozen = conv_norm("batch"), conv_norm("frozen")
    frozen.set_weights([weights(batch)[weight.name] for weight in frozen.weights])
    x, before = tensor(noise(2, 6, 6, 4)), weights(batch)
    np.testing.assert_array_equal(array(batch(x, training=False)), array(frozen(x)))
    assert all(np.array_equal(value, before[name]) for name, value in weights(batch).items())


def test_group_norm_is_the_definition_and_ignores_the_other_pictures():
    layer, x = conv_norm("group", filters=64), noise(3, 5, 7, 4)  # 32 groups of 2 channels
    stored = weights(layer)
    expected = group_norm(convolve(x, stored["kernel"], 1), 32, EPSILON) * stored["gamma"] + stored["beta"]
    found = array(layer(tensor(x), training=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(layer(tensor(x[1:2]), training=True)), found[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_mixed_precision_keeps_the_weights_in_float32(norm):
    layer = conv_norm(norm, dtype="mixed_bfloat16")
    x = tensor(noise(2, 6, 6, 4))
    for training in (False, True):
        result = layer(x, training=training)
        assert keras.backend.standardize_dtype(result.dtype) == "bfloat16"
        assert {weight.dtype for weight in layer.weights} == {"float32"}
        exact = array(conv_norm(norm)(x, training=training))
        np.testing.assert_allclose(array(keras.ops.cast(result, "float32")), exact, rtol=0.05, atol=0.05)


def test_config_round_trip():
    settings = {"epsilon": 0.5, "use_bias": True, "momentum": 0.7, "seed": 9}
    layer = ConvNorm(8, 3, 2, "group", name="res3a_branch2a", dtype="mixed_bfloat16", **settings)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(twin, ConvNorm)
    assert twin.get_config() == layer.get_config()
    assert [getattr(twin, name) for name in ("filters", "kernel_size", "strides", "norm")] == [8, 3, 2, "group"]
    assert {name: getattr(twin, name) for name in settings} == settings and twin.name == "res3a_branch2a"


# ------------------------------------------------------------------------------------------------ the network


def convolutions(*models):
    return {layer.name: layer for model in models for layer in model.layers if isinstance(layer, ConvNorm)}


def expected_names(depth):
    """keras-frcnn's names: a branch1 where a shortcut changes shape."""
    ends = "ab" if depth < 50 else "abc"
    names = {"conv1"}
    for stage, blocks in zip((2, 3, 4, 5), BLOCKS[depth]):
        for block in map(block_letter, range(blocks)):
            names |= {f"res{stage}{block}_branch2{end}" for end in ends}
        if depth >= 50 or stage > 2:
            names.add(f"res{stage}a_branch1")
    return names


@pytest.mark.parametrize("depth", [18, 50])
def test_the_network_has_the_convolutions_of_the_paper(depth):
    spec = ResNetSpec(depth, "frozen")
    backbone = build_backbone(spec)
    channels = {18: 256, 50: 1024}[depth]
    head = build_stage5_head(channels, 7, 2, spec)
    found = convolutions(backbone, head)
    assert set(found) == expected_names(depth)
    assert len(found) == {18: 20, 50: 53}[depth]  # 17 + 3 and 49 + 4: without the last layer, with the shortcuts
    kernels = sum(int(np.prod(layer.kernel.shape)) for layer in found.values())
    assert kernels == {18: kernels_18(), 50: kernels_50()}[depth]
    # ResNet-50 has 25,557,032 parameters, 2,049,000 of them in its last layer and 2 * 26,560 in its norms.
    assert kernels_50() == 25_557_032 - 2_049_000 - 53_120
    assert backbone.output_shape == (None, None, None, channels)


def kernels_18():
    total = 7 * 7 * 3 * 64 + 4 * 9 * 64 * 64
    for wide in (128, 256, 512):
        total += 9 * wide // 2 * wide + 3 * 9 * wide * wide + wide // 2 * wide
    return total


def kernels_50():
    total, channels = 7 * 7 * 3 * 64, 64
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        total += channels * 4 * inner  # branch1
        for _ in range(blocks):
            total += channels * inner + 9 * inner * inner + inner * 4 * inner
            channels = 4 * inner
    return total


def test_stage_4_has_stride_16():
    backbone = build_backbone(ResNetSpec(18, "frozen"))
    for height, width in ((64, 96), (65, 97)):  # an odd rest is one cell more, at every halving
        found = array(backbone(tensor(noise(1, height, width, 3))))
        assert found.shape == (1, -(-height // 16), -(-width // 16), 256)


def test_the_seed_decides_the_weights_and_each_layer_has_its_own():
    first, again, other = (build_backbone(ResNetSpec(18, "frozen", seed=seed)) for seed in (3, 3, 4))
    kernels = [[array(layer.kernel.value) for layer in convolutions(model).values()] for model in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[1]))
    assert not any(np.array_equal(a, b) for a, b in zip(kernels[0], kernels[2]))
    named = {name: array(layer.kernel.value) for name, layer in convolutions(first).items()}
    assert not np.array_equal(named["res2a_branch2a"], named["res2a_branch2b"])
    deviation = named["res4b_branch2b"].std()
    assert deviation == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)  # He et al. 2015b, fan out


def test_a_block_adds_its_shortcut():
    """With the last convolution of every block at zero, stage 2 of an 18-layer network is the identity."""
    inputs = keras.Input((None, None, 64))
    model = keras.Model(inputs, resnet_stage(inputs, 2, ResNetSpec(18, "frozen")))
    for name in ("res2a_branch2b", "res2b_branch2b"):
        layer = model.get_layer(name)
        layer.kernel.assign(np.zeros(layer.kernel.shape, np.float32))
    x = np.abs(noise(1, 4, 4, 64))
    np.testing.assert_allclose(array(model(tensor(x))), x, rtol=1e-6)


@pytest.mark.parametrize(("depth", "layers"), [(34, 34), (101, 101), (152, 152)])
def test_the_deeper_networks_have_as_many_layers_as_their_name_says(depth, layers):
    """Depth counts the last layer and no shortcut; names stay distinct beyond the alphabet."""
    names = expected_names(depth)
    assert len([name for name in names if not name.endswith("branch1")]) + 1 == layers
    assert [block_letter(index) for index in (0, 25, 26, 35)] == ["a", "z", "aa", "aj"]


def test_a_stage_of_resnet_152_is_built_by_the_table():
    inputs = keras.Input((None, None, 256))
    model = keras.Model(inputs, resnet_stage(inputs, 3, ResNetSpec(152, "frozen")))
    assert set(convolutions(model)) == {name for name in expected_names(152) if name.startswith("res3")}


@pytest.mark.parametrize(("style", "strides"), [("v1", [2, 1, 1, 2]), ("v1.5", [1, 2, 1, 2])])
def test_the_style_is_the_place_of_the_stride(style, strides):
    inputs = keras.Input((None, None, 256))
    stage = resnet_stage(inputs, 3, ResNetSpec(50, "frozen", conventions=Conventions(style)))
    found = convolutions(keras.Model(inputs, stage))
    assert [found[f"res3a_{name}"].strides for name in ("branch2a", "branch2b", "branch2c", "branch1")] == strides
    assert {layer.strides for name, layer in found.items() if not name.startswith("res3a")} == {1}


@pytest.mark.parametrize(("padded", "side"), [(True, 16), (False, 15)])
def test_the_first_pooling_is_padded_or_not(padded, side):
    """64 pixels are 32 cells after conv1: windows of 3 at stride 2 fit 15 times, padded by a cell 16 times."""
    images = keras.Input((None, None, 3))
    spec = ResNetSpec(18, "frozen", conventions=Conventions(padded_pool=padded))
    model = keras.Model(images, resnet_stem(images, spec))
    x = noise(1, 64, 64, 3)
    cells = array(keras.Model(images, model.get_layer("conv1_relu").output)(tensor(x)))
    first = cells[0, :2, :2] if padded else cells[0, :3, :3]
    found = array(model(tensor(x)))
    assert found.shape == (1, side, side, 64)
    np.testing.assert_allclose(found[0, 0, 0], first.max(axis=(0, 1)))


def test_conventions_reach_every_layer():
    conventions = CONVENTIONS["keras2016"]
    backbone = build_backbone(ResNetSpec(18, "batch", conventions=conventions))
    found = convolutions(backbone).values()
    assert {(layer.epsilon, layer.use_bias, layer.norm) for layer in found} == {(1e-3, True, "batch")}
