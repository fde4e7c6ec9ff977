import keras
import numpy as np
import pytest
from keras import ops

from frcnn import backend
from frcnn.ops.roi_align import pyramid_roi_align, roi_align, roi_levels
from tests.oracles import golden
from tests.oracles import roi_align as oracle
from tests.oracles.tensors import array, bound, compiled, gradient, tensor

NUMBERS = np.load(golden.FOLDER / "roi_ops_torchvision.npz")
# Left out: sampling ratio -1, which takes ceil(roi / cells) samples and so has no static shape, and RoI max pooling,
# RoIAlign's predecessor, which this library does not have.
CASES = [case for case in golden.read_json("roi_ops_torchvision.json")["cases"] if case.get("sampling_ratio", -1) > 0]
tensorflow_only = pytest.mark.skipif(not backend.is_tensorflow(), reason="the fast path is TensorFlow's")
threads_add = pytest.mark.skipif(keras.backend.backend() == "jax", reason="20 compilations, and no kernel of its own")
FAR = [-1e5, -1e5, -1e5 + 64, -1e5 + 64]  # pools zeros and gets no gradient


@pytest.fixture(
    params=[pytest.param("fast", marks=[pytest.mark.tensorflow, tensorflow_only]), "portable"],
)
def form(request, monkeypatch):
    """TensorFlow's fast path, and the form of the other backends: PyTorch's own there, elsewhere JAX's."""
    if request.param == "portable":
        monkeypatch.setattr(backend, "is_tensorflow", lambda: False)
    return request.param


def golden_inputs():
    """torchvision's NCHW map as (B, h, w, C), its (batch, xyxy) rows as (B, S, 4), and where each row went."""
    features = np.ascontiguousarray(NUMBERS["features_nchw"].transpose(0, 2, 3, 1))
    picture, boxes = NUMBERS["rois"][:, 0].astype(int), NUMBERS["rois"][:, 1:]
    slot = np.asarray([(picture[:row] == number).sum() for row, number in enumerate(picture)])
    rois = np.tile(np.asarray(FAR, np.float32), (2, slot.max() + 1, 1))
    rois[picture, slot] = boxes
    return features, rois, (picture, slot)


def settings(case):
    return {
        "output_size": tuple(case["output_size"]),
        "stride": 1 / case["spatial_scale"],
        "sampling_ratio": case["sampling_ratio"],
        "aligned": case["aligned"],
    }


def test_all_fixed_ratios_are_covered():
    assert len(CASES) == 18


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_roi_align_equals_torchvision(form, case):
    features, rois, places = golden_inputs()
    pooled = array(bound(roi_align, **settings(case))(tensor(features), tensor(rois)))
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled[places].transpose(0, 3, 1, 2), NUMBERS[case["key"]], atol=1e-5)


@pytest.mark.parametrize("key", ["align_o7x7_s2_a0", "align_o7x7_s2_a1"])
def test_gradient_equals_torchvision(form, key):
    features, rois, _ = golden_inputs()
    (case,) = (case for case in CASES if case["key"] == key)
    slope = gradient(lambda x: ops.sum(ops.square(roi_align(x, tensor(rois), **settings(case)))), features)
    expected = NUMBERS[f"grad_of_sum_sq_{key}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(slope, expected, atol=1e-4, rtol=1e-4)


# Detectron2's cases have sampling ratio 0, which means ceil(2 px / 4 cells) = 1. Left out: its empty box, where 0 means
# no samples and therefore zeros; a fixed ratio samples the line.
@pytest.mark.parametrize(
    ("case", "sampling_ratio"),
    [(case, 1) for case in golden.literal("roi_align", "facebookresearch")[:2]]
    + [(case, 2) for case in golden.literal("roi_align", "open-mmlab")],
    ids=["detectron2", "detectron2 aligned", "mmcv 2x2", "mmcv 2x2 falling", "mmcv 4x4"],
)
def test_roi_align_of_other_programs(form, case, sampling_ratio):
    features, rois = np.asarray(case["input"], np.float32)[None, ..., None], tensor([[case["box"]]])

    def pool(x):
        return roi_align(x, rois, tuple(case["output_size"]), 1, sampling_ratio, case["aligned"])

    np.testing.assert_allclose(array(pool(tensor(features)))[0, 0, ..., 0], case["expected"], atol=1e-5)
    if "grad_of_sum" in case:
        slope = gradient(lambda x: ops.sum(pool(x)), features)
        np.testing.assert_allclose(slope[0, ..., 0], case["grad_of_sum"], atol=1e-5)


@pytest.mark.parametrize(("aligned", "shift"), [(False, 0), (True, 0.5)], ids=["plain", "aligned"])
def test_a_slope_is_pooled_to_its_values_at_the_cells_centres(form, aligned, shift):
    """f(y, x) = 10 y + x; the RoI covers x 1 to 3 and y 2 to 6 cells: centres x 1.5, 2.5 and y 3, 5."""
    y, x = np.mgrid[:8, :6]
    features = tensor((10.0 * y + x)[None, ..., None])
    pooled = array(roi_align(features, tensor([[[16, 32, 48, 96]]]), 2, 16, aligned=aligned))[0, 0, ..., 0]
    np.testing.assert_allclose(pooled, np.asarray([[31.5, 32.5], [51.5, 52.5]]) - 11 * shift, rtol=1e-5)


@pytest.mark.parametrize("aligned", [False, True], ids=["plain", "aligned"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_roi_align_equals_nested_loops(form, ratio, aligned):
    """RoIs inside, over every border, over the whole map, smaller than a cell, empty; each picture pools its map."""
    rng = np.random.default_rng(ratio)
    features = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    fixed = [[0, 0, 56, 40], [-20, -20, 80, 60], [-7, 10, 20, 47], [50, 30, 63, 47], [20, 20, 23, 21], [0, 0, 0, 0]]
    corners = rng.uniform(-10, 50, (2, 6, 2))
    random = np.concatenate([corners, corners + rng.uniform(1, 40, (2, 6, 2))], axis=-1)
    rois = np.concatenate([np.tile(fixed, (2, 1, 1)), random], axis=1).astype(np.float32)
    pool = bound(roi_align, output_size=(3, 4), stride=8, sampling_ratio=ratio, aligned=aligned)
    pooled = array(pool(tensor(features), tensor(rois)))
    for picture in (0, 1):
        for roi, found in zip(rois[picture], pooled[picture], strict=True):
            expected = oracle.roi_align(features[picture], roi, 3, 4, 8, ratio, aligned)
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("size", [6, 7])
def test_a_step_leaves_out_rows_and_columns_of_the_same_grid(form, size):
    rng = np.random.default_rng(size)
    features, slopes = rng.normal(size=(1, 6, 8, 2)).astype(np.float32), rng.normal(size=(1, 3, size, size, 2))
    rois = tensor([[[5, 3, 90, 70], [-20, -9, 40, 130], [30, 30, 33, 31]]])
    all_cells, some = (lambda x, step=step: roi_align(x, rois, size, 16, step=step) for step in (1, 2))
    np.testing.assert_allclose(
        array(some(tensor(features))), array(all_cells(tensor(features)))[:, :, ::2, ::2], atol=1e-5
    )
    slopes[:, :, 1::2], slopes[:, :, :, 1::2] = 0, 0
    found = gradient(lambda x: ops.sum(some(x) * tensor(slopes[:, :, ::2, ::2])), features)
    expected = gradient(lambda x: ops.sum(all_cells(x) * tensor(slopes)), features)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_samples_more_than_a_cell_outside_count_as_zero(form):
    features = tensor(np.ones((1, 4, 4, 1)))
    # 16 px cells: the RoI starts 3 cells left of the map and ends at its middle; the samples lie at -2.5 ... 1.5
    pooled = array(roi_align(features, tensor([[[-48, 0, 32, 64]]]), (4, 5), 16, 1))[0, 0, ..., 0]
    assert pooled[0].tolist() == [0, 0, 1, 1, 1]
    far = array(roi_align(features, tensor([[[-500, -500, -400, -400], [900, 900, 990, 990]]]), 2, 16))
    assert not far.any()


def test_a_roi_that_is_no_number_pools_none_and_spoils_no_other(form):
    """As weights that are no numbers give it: an index made of it lies outside every map."""
    features, rois = tensor(np.ones((1, 8, 8, 2))), tensor([[[np.nan] * 4, [0, 0, 20, 20], [-np.inf, 0, np.inf, 9]]])
    for pooled in (roi_align(features, rois, 2, 16), pyramid_roi_align([features, features], rois, 2, (4, 8))):
        assert np.isnan(array(pooled)[0, [0, 2]]).all()
        assert (array(pooled)[0, 1] == 1).all()


def test_whole_number_output_size_and_dtype_of_the_features(form):
    features = ops.cast(tensor(np.random.default_rng(0).normal(size=(1, 6, 6, 2))), "bfloat16")
    rois = tensor([[[599, 0, 607.5, 31], [0, 0, 96, 96]]])
    pooled = roi_align(features, rois, 7, 16)
    assert tuple(pooled.shape) == (1, 2, 7, 7, 2)
    assert keras.backend.standardize_dtype(pooled.dtype) == "bfloat16"
    wide = array(roi_align(ops.cast(features, "float32"), rois, 7, 16))
    np.testing.assert_allclose(array(ops.cast(pooled, "float32")), wide, atol=0.02)
    slope = gradient(
        lambda x: ops.sum(ops.cast(roi_align(ops.cast(x, "bfloat16"), rois, 7, 16), "float32")), wide[0, :1]
    )
    assert np.isfinite(slope).all()


def test_no_gradient_reaches_the_rois(form):
    features = tensor(np.random.default_rng(0).normal(size=(1, 6, 6, 2)))
    slope = gradient(lambda rois: ops.sum(roi_align(features, rois, 3, 16)), [[[10, 10, 60, 70]]])
    assert not slope.any()


def test_compiled_with_free_sizes(form):
    features, rois, _ = golden_inputs()
    expected = array(roi_align(tensor(features), tensor(rois), 7, 16))
    found = compiled(lambda *inputs: roi_align(*inputs, 7, 16), tensor(features), tensor(rois), free=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@threads_add
def test_twenty_gradients_are_equal_bit_by_bit():
    """All RoIs share the same cells: threads that add to these without a lock, or in any order, would show."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 38, 50, 64)).astype(np.float32)
    rois = tensor(np.tile([100, 100, 300, 300], (1, 128, 1)) + rng.uniform(-20, 20, (1, 128, 4)))
    weights = tensor(rng.normal(size=(1, 128, 7, 7, 64)))

    def slope():
        return gradient(lambda x: ops.sum(roi_align(x, rois, 7, 16) * weights), features)

    first = slope()
    assert np.abs(first).max() > 1
    assert all((slope() == first).all() for _ in range(19))


# -------------------------------------------------------------------------------------------------------- pyramids

STRIDES = (4, 8, 16, 32)


def test_levels_equal_torchvision():
    case = golden.torchvision("fpn_level_mapper")
    assert (case["k_min"], case["k_max"], case["canonical_scale"], case["canonical_level"]) == (2, 5, 224, 4)
    assert (array(roi_levels(tensor(case["boxes"]), 4)) + 2).tolist() == case["levels"]


def test_levels_by_hand():
    """A square of 112 is the first of P3, of 448 the first of P5; an empty slot has a level, too."""
    rois = [[0, 0, side, side] for side in (0, 10, 111.9, 112, 223.9, 224, 447.9, 448, 5000)]
    assert array(roi_levels(tensor([rois]), 4)).tolist() == [[0, 0, 0, 1, 1, 2, 2, 3, 3]]
    assert array(roi_levels(tensor([[50, 0, 50 + 56, 224]]), 4)).tolist() == [1], "of its area, not of its sides"


def pyramid(seed=0):
    """Maps of a picture of 320x256 px, and RoIs of every level: inside, over the borders, empty."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(2, 256 // stride, 320 // stride, 3)).astype(np.float32) for stride in STRIDES]
    sides = np.exp(rng.uniform(np.log(2), np.log(700), (2, 24, 2)))
    corners = rng.uniform(-20, [320, 256], (2, 24, 2))
    rois = np.concatenate([corners, corners + sides], axis=-1)
    rois[:, 0], rois[:, 1], rois[:, 2], rois[:, 3] = 0, [0, 0, 320, 256], [319, 255, 320, 256], [-99, -99, 420, 400]
    return maps, rois.astype(np.float32)


def test_each_roi_is_pooled_from_its_own_level(form):
    maps, rois = pyramid()
    levels = array(roi_levels(tensor(rois), 4))
    assert set(levels[0]) == set(levels[1]) == {0, 1, 2, 3}
    found = array(pyramid_roi_align(list(map(tensor, maps)), tensor(rois), 3, STRIDES))
    for picture in (0, 1):
        for roi, level, pooled in zip(rois[picture], levels[picture], found[picture]):
            expected = oracle.roi_align(maps[level][picture], roi, 3, 3, STRIDES[level], 2, False)
            np.testing.assert_allclose(pooled, expected, atol=1e-4)


def test_the_gradient_of_a_pyramid_is_that_of_its_levels(form):
    """A level without RoIs among them; pooling is linear, and so is its gradient."""
    maps, rois = pyramid(1)
    rois = rois[:, array(roi_levels(tensor(rois[:1]), 4))[0] != 2]
    levels, weights = (
        array(roi_levels(tensor(rois), 4)),
        np.random.default_rng(2).normal(size=(*rois.shape[:2], 3, 3, 3)),
    )
    for level, stride in enumerate(STRIDES):

        def total(one_map, level=level):
            every = [one_map if index == level else tensor(other) for index, other in enumerate(maps)]
            return ops.sum(pyramid_roi_align(every, tensor(rois), 3, STRIDES) * tensor(weights))

        def alone(one_map, level=level, stride=stride):
            own = tensor((levels == level)[..., None, None, None] * weights)
            return ops.sum(roi_align(one_map, tensor(rois), 3, stride) * own)

        np.testing.assert_allclose(gradient(total, maps[level]), gradient(alone, maps[level]), atol=1e-4)


def test_a_pyramid_compiles_with_free_sizes_and_keeps_its_dtype(form):
    maps, rois = pyramid()
    expected = array(pyramid_roi_align(list(map(tensor, maps)), tensor(rois), 7, STRIDES))
    found = compiled(lambda *inputs: pyramid_roi_align(inputs[:4], inputs[4], 7, STRIDES), *map(tensor, (*maps, rois)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    narrow = [ops.cast(tensor(one_map), "bfloat16") for one_map in maps]
    pooled = pyramid_roi_align(narrow, tensor(rois), 7, STRIDES)
    assert keras.backend.standardize_dtype(pooled.dtype) == "bfloat16"
    np.testing.assert_allclose(array(ops.cast(pooled, "float32")), expected, atol=0.05)


@threads_add
def test_twenty_gradients_of_a_pyramid_are_equal_bit_by_bit():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, 128 // stride, 160 // stride, 64)).astype(np.float32) for stride in STRIDES]
    rois = tensor(np.tile([40, 40, 120, 120], (1, 128, 1)) + rng.uniform(-9, 9, (1, 128, 4)))
    weights = tensor(rng.normal(size=(1, 128, 7, 7, 64)))

    def slope():
        rest = list(map(tensor, maps[1:]))
        return gradient(lambda x: ops.sum(pyramid_roi_align([x, *rest], rois, 7, STRIDES) * weights), maps[0])

    first = slope()
    assert np.abs(first).max() > 1
    assert all((slope() == first).all() for _ in range(19))
