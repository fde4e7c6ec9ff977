import numpy as np
import pytest
from keras import ops

from frcnn.ops.anchors import base_anchors, grid_anchors
from tests.oracles import golden
from tests.oracles.tensors import array, compiled, tensor

CASES = golden.torchvision("anchors")["cases"]


def levels(case):
    """(stride along y, along x, grid, sizes, ratios, base) of each level; torchvision's stride is image // grid."""
    for i, (rows, columns) in enumerate(case["grids"]):
        strides = case["image"][0] // rows, case["image"][1] // columns
        yield *strides, (rows, columns), case["sizes"][i], case["aspect_ratios"][i], case["base"][i]


@pytest.mark.parametrize("name", CASES)
def test_anchors_equal_torchvision(name):
    found = []
    for stride_y, stride_x, grid, sizes, ratios, base in levels(CASES[name]):
        np.testing.assert_array_equal(base_anchors(sizes, ratios), base)
        by_y, by_x = (array(grid_anchors(*grid, stride, sizes, ratios)) for stride in (stride_y, stride_x))
        # only the odd grid, 50x70 px as 4x5 cells, has two strides; one is all that a ResNet needs
        found.append(np.stack([by_x[:, 0], by_y[:, 1], by_x[:, 2], by_y[:, 3]], axis=1))
    anchors, expected = np.concatenate(found), CASES[name]["anchors"]
    assert anchors.dtype == np.float32
    if isinstance(expected, dict):
        assert len(anchors) == expected["count"]
        assert (anchors.sum(), np.abs(anchors).sum()) == (expected["sum"], expected["abs_sum"])
        np.testing.assert_array_equal(anchors[[*range(12), *range(-12, 0)]], expected["first"] + expected["last"])
    else:
        np.testing.assert_array_equal(anchors, expected)


def test_base_anchors_by_hand():
    """Area 64^2 and height / width 4: half as wide and twice as high. Ratios outside, sizes inside."""
    assert base_anchors([32, 64], [1, 4]).tolist() == [
        [-16, -16, 16, 16],
        [-32, -32, 32, 32],
        [-8, -32, 8, 32],
        [-16, -64, 16, 64],
    ]
    assert base_anchors([32, 64], [1, 4]).dtype == np.float32


def test_cells_are_centred_on_multiples_of_the_stride_rows_first():
    """keras-frcnn trained on 16 * (i + 0.5) and decoded on 16 * i: every box was off by 8 px."""
    anchors = array(grid_anchors(2, 3, 16, [10], [1.0]))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.tolist() == [[0, 0], [16, 0], [32, 0], [0, 16], [16, 16], [32, 16]]


def test_grid_of_a_traced_size_and_of_no_cells():
    sizes, ratios = [20.0, 33.0], [0.3, 1.0]
    traced = compiled(lambda x: grid_anchors(*ops.shape(x), 8, sizes, ratios), tensor(np.zeros((3, 4))))
    np.testing.assert_array_equal(traced, array(grid_anchors(3, 4, 8, sizes, ratios)))
    assert array(grid_anchors(0, 4, 8, sizes, ratios)).shape == (0, 4)


# Left out of literal_cases.json, whose convention is not ours: py-faster-rcnn ("+1", corners of a window from 0 to 15),
# Detectron2 "centered", keras-retinanet and KerasCV (centres at half a stride), TF models' grid (corners at halves of a
# pixel, not rounded), MMDetection (a stride for each axis).
def test_anchors_of_torchvisions_own_test():
    (case,) = golden.literal("anchors", "pytorch")
    anchors = grid_anchors(*case["grid_hw"], case["stride"], case["sizes"], case["ratios"])
    np.testing.assert_array_equal(array(anchors), case["expected"])


def test_anchors_of_detectron2_but_for_their_order():
    case = golden.literal("anchors", "facebookresearch")[0]
    anchors = array(grid_anchors(*case["grid_hw"], case["stride"], case["sizes"], case["ratios"]))
    theirs = np.reshape(case["expected"], (2, 2, 3, 4)).swapaxes(1, 2)  # sizes outside, ratios inside
    np.testing.assert_array_equal(anchors, theirs.reshape(-1, 4))


def test_anchors_of_chainercv_but_for_their_origin():
    """Theirs are yxyx around (8, 8). At ratios 1/4, 1 and 4 rounding changes nothing."""
    (case,) = golden.literal("anchors", "chainer")
    sizes = [case["base_size"] * scale for scale in case["scales"]]
    np.testing.assert_array_equal(base_anchors(sizes, case["ratios"]) + 8, golden.boxes_from_yxyx(case["expected"]))


def test_anchors_of_tf_models_whose_ratio_is_width_over_height():
    case = golden.literal("anchors", "tensorflow")[0]
    ratios = [1 / ratio for ratio in case["aspect_ratios"]]
    anchors = base_anchors([256 * scale for scale in case["scales"]], ratios)
    y, x = case["offset_yx"]
    np.testing.assert_array_equal(anchors + [x, y, x, y], golden.boxes_from_yxyx(case["expected"]))
