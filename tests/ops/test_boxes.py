import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from frcnn.ops.boxes import box_area, box_iou, clip_boxes, decode_deltas, encode_boxes, generalised_iou
from tests.oracles import golden
from tests.oracles.boxes import encode, iou_table
from tests.oracles.tensors import array, gradient, tensor

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]
both_weights = pytest.mark.parametrize("weights", WEIGHTS, ids=["rpn", "roi"])


def random_boxes(seed, count, smallest=16):
    """Boxes of 16 to 800 px, so that no pair differs by more than the clamp of decoding, a factor of 62.5."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-100, 1000, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(smallest, 800, (count, 2))], axis=1).astype(np.float32)


def check_iou(boxes_a, boxes_b, expected, atol=1e-6):
    result = array(box_iou(tensor(np.reshape(boxes_a, (-1, 4))), tensor(np.reshape(boxes_b, (-1, 4)))))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=atol)


def test_area_is_width_times_height_without_plus_one():
    assert array(box_area(tensor([[0, 0, 2, 3], [1, 1, 1, 9], [5, 5, 3, 6]]))).tolist() == [6, 0, -2]


def test_iou_by_hand():
    square = [0, 0, 10, 10]
    others = [
        square,
        [0, 0, 10, 5],  # half of it: 50 / 100
        [5, 5, 15, 15],  # a corner: 25 / (100 + 100 - 25)
        [2, 2, 4, 4],  # inside: 4 / 100
        [10, 0, 20, 10],  # touching: half-open boxes share nothing
        [20, 20, 30, 30],
        [3, 3, 3, 9],  # without area
    ]
    check_iou([square], others, [[1, 0.5, 25 / 175, 0.04, 0, 0, 0]])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_iou_of_no_boxes_is_an_empty_table(shape):
    check_iou(np.zeros((shape[0], 4)), np.ones((shape[1], 4)), np.zeros(shape))


def test_iou_of_padding_is_zero_with_everything_itself_included():
    check_iou([[0, 0, 0, 0], [0, 0, 9, 9]], [[0, 0, 0, 0], [7, 7, 7, 7]], np.zeros((2, 2)))


def test_iou_broadcasts_batches():
    gt, anchors = random_boxes(1, 6).reshape(2, 3, 4), random_boxes(2, 5)
    result = array(box_iou(tensor(gt), tensor(anchors[None])))
    np.testing.assert_allclose(result, [iou_table(picture, anchors) for picture in gt], atol=1e-6)


def test_iou_equals_torchvision():
    case = golden.torchvision("iou")
    check_iou(case["a"], case["b"], case["out"])


@pytest.mark.parametrize("case", golden.literal("iou", ""), ids=lambda case: case["source"][:12])
def test_iou_of_other_programs(case):
    if "expected" in case:
        check_iou(case["a"], case["b"], case["expected"])
    else:
        check_iou(case["a"], case["b"], np.zeros(case["expected_shape"]))


@both_weights
def test_box_coder_equals_torchvision(weights):
    case = golden.torchvision("box_coder")["cases"][str(list(weights))]
    proposals = tensor(case["proposals"])
    encoded = array(encode_boxes(tensor(case["gt"]), proposals, weights))
    decoded = array(decode_deltas(tensor(case["deltas"]), proposals, weights))
    assert encoded.dtype == decoded.dtype == np.float32
    np.testing.assert_allclose(encoded, case["encoded"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decoded, case["decoded"], rtol=1e-5, atol=1e-3)
    assert np.max(case["deltas"]) > 4.135 * max(weights), "the clamp must be among the cases"


@both_weights
def test_encode_equals_the_formula(weights):
    boxes, anchors = random_boxes(3, 20), random_boxes(4, 20)
    expected = [encode(box, anchor, weights) for box, anchor in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(array(encode_boxes(tensor(boxes), tensor(anchors), weights)), expected, atol=1e-4)


# Left out: TF models' "very small width" adds 1e-8 to every side; here a side is at least 1e-6.
@pytest.mark.parametrize(
    ("case", "weights"),
    [
        (golden.literal("box_encode", "tensorflow")[0], (1, 1, 1, 1)),
        (golden.literal("box_encode", "tensorflow")[1], (3, 2, 5, 4)),  # theirs are in the order y, x, h, w
        (golden.literal("box_encode", "chainer")[0], (1, 1, 1, 1)),
    ],
    ids=["TF models", "TF models, scaled", "chainercv"],
)
def test_encode_of_programs_that_write_yxyx(case, weights):
    boxes, anchors, expected = (golden.boxes_from_yxyx(case[key]) for key in ("boxes", "anchors", "expected"))
    np.testing.assert_allclose(array(encode_boxes(tensor(boxes), tensor(anchors), weights)), expected, atol=1e-4)


def test_encode_of_keras_cv():
    (case,) = golden.literal("box_encode", "keras-team")
    boxes = np.asarray(case["gt"])[case["matched_gt"]]
    deltas = array(encode_boxes(tensor(boxes), tensor(case["anchors"]), (10, 10, 10, 10)))  # they divide by 0.1
    np.testing.assert_allclose(deltas, case["expected"], atol=1e-5)


def test_decode_of_mmdetection():
    (case,) = golden.literal("box_decode", "open-mmlab")
    boxes = decode_deltas(tensor(case["deltas"]), tensor(case["rois"]))
    clipped = array(clip_boxes(boxes[None], tensor([[32, 32]], "int32")))[0]
    np.testing.assert_allclose(clipped, case["expected"], atol=case["atol"])


@both_weights
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_decode_undoes_encode(weights, seed):
    boxes, anchors = random_boxes(seed, 16), random_boxes(seed + 1, 16)
    decoded = decode_deltas(encode_boxes(tensor(boxes), tensor(anchors), weights), tensor(anchors), weights)
    np.testing.assert_allclose(array(decoded), boxes, atol=1e-2 if weights[0] == 1 else 5e-3)


@both_weights
def test_zero_deltas_decode_to_the_anchors(weights):
    anchors = random_boxes(5, 10)
    np.testing.assert_allclose(
        array(decode_deltas(tensor(np.zeros((10, 4))), tensor(anchors), weights)), anchors, atol=1e-3
    )


@both_weights
def test_exponent_of_a_delta_is_bounded(weights):
    """A 16 px anchor grows to 1000 px at most, whatever the network says."""
    box = array(decode_deltas(tensor([[0, 0, 1e6, 1e30]]), tensor([[0, 0, 16, 16]]), weights))[0]
    np.testing.assert_allclose(box, [8 - 500, 8 - 500, 8 + 500, 8 + 500], rtol=1e-5)
    slope = gradient(lambda deltas: ops.sum(decode_deltas(deltas, tensor([[0, 0, 16, 16]]), weights)), [[0, 0, 1e6, 0]])
    assert np.isfinite(slope).all()


@settings(max_examples=30, deadline=None)
@given(sides=arrays(np.float32, (6, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_encode_is_finite_for_empty_and_inverted_boxes(sides):
    empty, anchors = tensor(np.zeros((6, 4))), tensor(random_boxes(6, 6))
    for boxes, against in [(tensor(sides), anchors), (anchors, tensor(sides)), (empty, anchors), (empty, empty)]:
        assert np.isfinite(array(encode_boxes(boxes, against))).all()


def test_clip_by_hand():
    sizes = tensor([[100, 200], [50, 60]], "int32")  # height first
    boxes = np.asarray([[[-5, -5, 205, 105], [1.25, 2.5, 199.75, 99.5], [300, 300, 400, 400]]] * 2)
    clipped = array(clip_boxes(tensor(boxes), sizes))
    assert clipped.dtype == np.float32
    assert clipped[0].tolist() == [[0, 0, 200, 100], [1.25, 2.5, 199.75, 99.5], [200, 100, 200, 100]]
    assert clipped[1].tolist() == [[0, 0, 60, 50], [1.25, 2.5, 60, 50], [60, 50, 60, 50]]
    per_class = array(clip_boxes(tensor(boxes[:, :, None]), sizes))
    assert (per_class[:, :, 0] == clipped).all()


def test_the_limit_is_that_of_the_field():
    assert math.isclose(math.exp(4.135166556742356), 1000 / 16)
    wide = array(decode_deltas(tensor([[0, 0, 4.0, 4.2]]), tensor([[0, 0, 1, 1]])))[0]
    np.testing.assert_allclose(wide[2:] - wide[:2], [math.exp(4), 62.5], rtol=1e-5)


def test_generalised_iou_by_hand():
    """Equal: 1. Half over half: IoU 1/3, nothing around them is free. Apart: 2 of 4 are free, then 5 of 8."""
    boxes_a = [[0, 0, 2, 1], [0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    boxes_b = [[0, 0, 2, 1], [1, 0, 3, 1], [3, 0, 4, 1], [2, 1, 4, 2]]
    expected = [1, 1 / 3, -2 / 4, -(8 - 3) / 8]
    np.testing.assert_allclose(array(generalised_iou(tensor(boxes_a), tensor(boxes_b))), expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_generalised_iou_is_symmetric_between_its_limits_and_the_same_for_stretched_boxes(seed):
    boxes_a, boxes_b = random_boxes(seed, 20, 1), random_boxes(seed + 1, 20, 1)
    found = array(generalised_iou(tensor(boxes_a), tensor(boxes_b)))
    plain = np.diag(array(box_iou(tensor(boxes_a), tensor(boxes_b))))
    assert (found > -1).all() and (found <= plain + 1e-5).all()
    stretch, move = np.array([2, 0.5, 2, 0.5]), np.array([7, -9, 7, -9])
    other = generalised_iou(tensor(boxes_b * stretch + move), tensor(boxes_a * stretch + move))
    np.testing.assert_allclose(array(other), found, atol=2e-4)


def test_boxes_apart_are_drawn_together():
    """IoU has no slope there; GIoU's moves the left box to the right."""
    right = tensor([[30.0, 0, 40, 10]])
    slope = gradient(lambda x: ops.sum(generalised_iou(x, right)), [[0.0, 0, 10, 10]])[0]
    assert slope[2] > 0 and not gradient(lambda x: ops.sum(box_iou(x, right)), [[0.0, 0, 10, 10]]).any()
