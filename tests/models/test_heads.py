import keras
import numpy as np
import pytest

from frcnn.models.heads import build_rpn_head, build_sampled_rpn, build_stage5_head
from frcnn.models.resnet import ResNetSpec
from frcnn.ops.patches import take_patches
from tests.oracles.tensors import array, gradient, tensor


def features(*shape, seed=0):
    return tensor(np.random.default_rng(seed).normal(size=shape))


def dtypes(outputs):
    return [keras.backend.standardize_dtype(output.dtype) for output in outputs]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_rpn_shapes_and_dtypes(dtype):
    head = build_rpn_head(8, 16, 9, dtype)
    logits, deltas = head(features(2, 3, 5, 8))
    assert (logits.shape, deltas.shape) == ((2, 3 * 5 * 9), (2, 3 * 5 * 9, 4))
    assert dtypes([logits, deltas]) == dtypes(head.outputs) == ["float32", "float32"]
    assert head.get_layer("rpn_conv1").compute_dtype == ("bfloat16" if "16" in dtype else "float32")


def test_rpn_orders_its_outputs_by_row_then_column_then_anchor():
    """The order of `ops.anchors.grid_anchors`: one cell's anchors, then the next cell of the row, then the next row."""
    head = build_rpn_head(4, 8, 3)
    for layer in head.layers:
        if layer.name == "rpn_conv1":  # passes the first channel on
            kernel = np.zeros(layer.kernel.shape, np.float32)
            kernel[1, 1, 0, 0] = 1
            layer.kernel.assign(kernel)
        if layer.name.startswith("rpn_out"):  # output = first channel + its own number / 100
            kernel = np.zeros(layer.kernel.shape, np.float32)
            kernel[0, 0, 0] = 1
            layer.kernel.assign(kernel)
            layer.bias.assign(np.arange(layer.bias.shape[0]) / 100)
    x = np.zeros((1, 2, 5, 4), np.float32)
    x[0, :, :, 0] = np.arange(10).reshape(2, 5)
    logits, deltas = (array(output)[0] for output in head(tensor(x)))
    cells = np.arange(10)[:, None]
    np.testing.assert_allclose(logits, (cells + np.arange(3) / 100).ravel(), atol=1e-5)
    np.testing.assert_allclose(deltas.reshape(10, 12), cells + np.arange(12) / 100, atol=1e-5)


@pytest.mark.parametrize(("depth", "norm"), [(18, "batch"), (50, "frozen")])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_stage5_head_shapes_and_dtypes(depth, norm, dtype):
    head = build_stage5_head(32, 7, 3, ResNetSpec(depth, norm, dtype))
    logits, deltas = head(features(5, 7, 7, 32))
    assert (logits.shape, deltas.shape) == ((5, 4), (5, 3, 4))
    assert dtypes([logits, deltas]) == dtypes(head.outputs) == ["float32", "float32"]
    assert head.get_layer("res5a_branch2a").compute_dtype == ("bfloat16" if "16" in dtype else "float32")


def test_stage5_head_treats_every_roi_alone():
    head, rois = build_stage5_head(16, 4, 2, ResNetSpec(18, "frozen")), features(3, 4, 4, 16)
    together, alone = head(rois), head(rois[1:2])
    for all_rois, one in zip(together, alone):
        np.testing.assert_allclose(array(all_rois)[1:2], array(one), rtol=1e-4, atol=1e-6)


def test_initial_predictors_have_the_deviations_of_the_paper_and_no_bias():
    rpn, head = build_rpn_head(64, 128, 9), build_stage5_head(64, 4, 20, ResNetSpec(18, "frozen"))
    expected = {
        (rpn, "rpn_conv1"): 0.01,
        (rpn, "rpn_out_class"): 0.01,
        (rpn, "rpn_out_regress"): 0.01,
        (head, "class_logits"): 0.01,
        (head, "box_predictor"): 0.001,
    }
    for (model, name), deviation in expected.items():
        layer = model.get_layer(name)
        assert array(layer.kernel.value).std() == pytest.approx(deviation, rel=0.1), name
        assert not array(layer.bias.value).any()


def test_the_seed_decides_the_weights():
    first, again, other = (build_rpn_head(8, 8, 3, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.get_weights(), again.get_weights(), other.get_weights()):
        assert np.array_equal(a, b)
        assert a.ndim == 1 or not np.array_equal(a, c)


@pytest.mark.parametrize("convolutions", [1, 2])
def test_the_sampled_rpn_answers_and_learns_as_the_rpn_on_whole_maps_does(convolutions):
    """At every cell, those at the border of the map included, and of maps smaller than what a cell sees."""
    rpn = build_rpn_head(4, 6, 3, convolutions=convolutions)
    generator = np.random.default_rng(0)
    for variable in rpn.weights:
        variable.assign(generator.normal(size=variable.shape))
    network, side = build_sampled_rpn(rpn), 1 + 2 * convolutions
    assert network.input_shape[0] == (None, side, side, 4)
    assert [id(weight) for weight in network.weights] == [id(weight) for weight in rpn.weights]
    maps = [generator.normal(size=(2, *shape, 4)).astype(np.float32) for shape in [(6, 5), (2, 3)]]
    cells = tensor([np.arange(36)] * 2, "int32")
    slopes = [tensor(generator.normal(size=(2, 36 * 3, *rest))) for rest in ((), (4,))]

    def on_whole_maps(maps):
        return [keras.ops.concatenate(levels, axis=1) for levels in zip(*map(rpn, maps))]

    def at_cells(maps):
        outputs = network(take_patches(maps, cells, side))
        return [keras.ops.reshape(x, slope.shape) for x, slope in zip(outputs, slopes)]

    def slope_of(function):
        def weighted(first):
            outputs = function([first, tensor(maps[1])])
            return sum(keras.ops.sum(x * slope) for x, slope in zip(outputs, slopes))

        return gradient(weighted, maps[0])

    tensors = list(map(tensor, maps))
    for expected, found in zip(on_whole_maps(tensors), at_cells(tensors)):
        np.testing.assert_allclose(array(found), array(expected), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope_of(at_cells), slope_of(on_whole_maps), rtol=1e-4, atol=1e-3)
