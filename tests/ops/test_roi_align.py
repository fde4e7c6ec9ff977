import keras
import numpy as np
import pytest
from keras import ops

from frcnn import backend
from frcnn.ops.roi_align import roi_align
from tests.oracles import golden
from tests.oracles import roi_align as oracle
from tests.oracles.tensors import array, bound, compiled, gradient, tensor

NUMBERS = np.load(golden.FOLDER / "roi_ops_torchvision.npz")
# Left out: sampling ratio -1, which takes ceil(roi / cells) samples and so has no static shape, and RoI max pooling,
# RoIAlign's predecessor, which this library does not have.
CASES = [case for case in golden.read_json("roi_ops_torchvision.json")["cases"] if case.get("sampling_ratio", -1) > 0]
tensorflow_only = pytest.mark.skipif(not backend.is_tensorflow(), reason="the fast path is TensorFlow's")
FAR = [-1e5, -1e5, -1e5 + 64, -1e5 + 64]  # pools zeros and gets no gradient


@pytest.fixture(
    params=[pytest.param("fast", marks=[pytest.mark.tensorflow, tensorflow_only]), "portable"],
)
def form(request, monkeypatch):
    """TensorFlow's fast path, and the form that the other backends compile, on whatever backend this is."""
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


def test_samples_more_than_a_cell_outside_count_as_zero(form):
    features = tensor(np.ones((1, 4, 4, 1)))
    # 16 px cells: the RoI starts 3 cells left of the map and ends at its middle; the samples lie at -2.5 ... 1.5
    pooled = array(roi_align(features, tensor([[[-48, 0, 32, 64]]]), (4, 5), 16, 1))[0, 0, ..., 0]
    assert pooled[0].tolist() == [0, 0, 1, 1, 1]
    far = array(roi_align(features, tensor([[[-500, -500, -400, -400], [900, 900, 990, 990]]]), 2, 16))
    assert not far.any()


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


@pytest.mark.tensorflow
@tensorflow_only
def test_twenty_gradients_are_equal_bit_by_bit():
    """The CPU gradient of `crop_and_resize` adds from several threads without a lock: all RoIs share the same cells."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 38, 50, 64)).astype(np.float32)
    rois = tensor(np.tile([100, 100, 300, 300], (1, 128, 1)) + rng.uniform(-20, 20, (1, 128, 4)))
    weights = tensor(rng.normal(size=(1, 128, 7, 7, 64)))

    def slope():
        return gradient(lambda x: ops.sum(roi_align(x, rois, 7, 16) * weights), features)

    first = slope()
    assert np.abs(first).max() > 1
    assert all((slope() == first).all() for _ in range(19))
