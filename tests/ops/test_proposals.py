import numpy as np
import pytest

from frcnn.ops.anchors import grid_anchors
from frcnn.ops.boxes import encode_boxes
from frcnn.ops.proposals import gather_kept, select_level_proposals, select_proposals
from tests.oracles import golden
from tests.oracles.tensors import array, bound, compiled, tensor

SIZE = [[100, 200]]  # height, width


def proposals(logits, deltas, anchors, sizes=SIZE, **settings):
    """`select_proposals` of arrays; the result's contract is asserted on the way."""
    settings = {"pre_nms": 1000, "post_nms": 4} | settings
    logits = np.asarray(logits, np.float32)
    boxes, scores = array(
        bound(select_proposals, **settings)(tensor(logits), tensor(deltas), tensor(anchors), tensor(sizes, "int32"))
    )
    assert (boxes.shape, boxes.dtype) == ((len(logits), settings["post_nms"], 4), np.float32)
    assert (scores.shape, scores.dtype) == (boxes.shape[:2], np.float32)
    assert not boxes[scores == -np.inf].any()
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "best first, empty slots last"
    return boxes, scores


def test_proposals_equal_torchvision():
    """Its function starts from decoded boxes: here they are anchors with deltas of 0."""
    case = golden.torchvision("filter_proposals")
    count = len(case["proposals"])
    boxes, scores = proposals(
        [case["objectness_logits"]],
        np.zeros((1, count, 4)),
        case["proposals"],
        [case["image_hw"]],
        pre_nms=case["pre_nms_top_n"],
        post_nms=case["post_nms_top_n"],
        nms_iou=case["nms_thresh"],
        min_size=case["min_size"],
    )
    np.testing.assert_allclose(boxes[0], case["boxes"], atol=1e-4)
    np.testing.assert_allclose(scores[0], case["scores"], rtol=1e-5)


def test_proposals_by_hand():
    anchors = [[0, 0, 20, 10], [1, 0, 21, 10], [150, 50, 250, 150], [300, 300, 310, 310], [50, 50, 70, 60]]
    deltas = np.zeros((1, 5, 4))
    deltas[0, 4] = [0.5, -1, np.log(2), 0]  # centre (60, 55) -> (70, 45), 40 wide, 10 high
    boxes, scores = proposals([[2.0, 3.0, 1.0, 9.0, 0.0]], deltas, anchors)
    # anchor 3 lies outside and clips to nothing; anchor 1 beats anchor 0 (IoU 19 / 21); anchor 2 is clipped
    np.testing.assert_allclose(
        boxes[0], [[1, 0, 21, 10], [150, 50, 200, 100], [50, 40, 90, 50], [0, 0, 0, 0]], atol=1e-4
    )
    sigmoid = 1 / (1 + np.exp([-3.0, -1.0, 0.0]))
    np.testing.assert_allclose(scores[0], [*sigmoid, -np.inf], rtol=1e-6)


def test_delta_weights_are_divided_out():
    anchors, deltas = [[20, 20, 40, 30]], np.array([[[0.5, -1.0, 0.2, 0.1]]])
    weights = (1.0, 2.0, 3.0, 4.0)
    expected, _ = proposals([[1.0]], deltas, anchors)
    found, _ = proposals([[1.0]], deltas * weights, anchors, delta_weights=weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_only_the_best_anchors_enter_nms():
    """Anchor 2 is apart from the others and would survive, were it among the two best."""
    anchors = [[0, 0, 20, 10], [0, 0, 20, 10], [50, 50, 70, 60]]
    for pre_nms, kept in [(2, 1), (3, 2), (1000, 2)]:
        _, scores = proposals([[2.0, 3.0, 1.0]], np.zeros((1, 3, 4)), anchors, pre_nms=pre_nms)
        assert np.isfinite(scores).sum() == kept


def test_order_is_that_of_the_logits_where_the_score_is_one():
    """sigmoid(20) and sigmoid(30) are both 1.0 in float32; the more confident of two overlapping anchors must win."""
    anchors = [[0, 0, 20, 10], [1, 0, 21, 10]]
    boxes, scores = proposals([[20.0, 30.0]], np.zeros((1, 2, 4)), anchors)
    assert boxes[0, 0].tolist() == [1, 0, 21, 10]
    assert scores[0].tolist() == [1, -np.inf, -np.inf, -np.inf]


@pytest.mark.parametrize("min_size", [1e-3, 5.0])
def test_small_boxes_are_dropped(min_size):
    anchors = [[0, 0, 40, 4], [50, 0, 54, 40], [100, 0, 105, 5], [20, 20, 20, 40]]
    _, scores = proposals([[4.0, 3.0, 2.0, 1.0]], np.zeros((1, 4, 4)), anchors, min_size=min_size)
    assert np.isfinite(scores).sum() == (3 if min_size < 1 else 1)


def test_no_anchor_survives():
    _, scores = proposals(np.zeros((1, 3)), np.zeros((1, 3, 4)), [[500, 500, 600, 600]] * 3)
    assert (scores == -np.inf).all()


def test_each_picture_has_its_own_size_and_scores():
    anchors = np.asarray([[0, 0, 100, 50], [10, 40, 60, 90]])
    logits, deltas, sizes = [[1.0, 2.0], [2.0, 1.0]], np.zeros((2, 2, 4)), [[100, 200], [45, 30]]
    boxes, scores = proposals(logits, deltas, anchors, sizes)
    for row in (0, 1):
        alone = proposals(logits[row : row + 1], deltas[:1], anchors, sizes[row : row + 1])
        assert (boxes[row] == alone[0]).all()
        assert (scores[row] == alone[1]).all()
    np.testing.assert_allclose(boxes[1, :2], [[0, 0, 30, 45], [10, 40, 30, 45]], atol=1e-5)


def test_a_perfect_network_gives_the_objects_back_unrounded():
    """keras-frcnn decoded half a cell beside the grid that it trained on, and rounded boxes to cells of 16 px."""
    truth = np.asarray([[13.37, 21.5, 77.7, 83.25], [100.1, 4.9, 163.3, 90.6]], np.float32)
    anchors = array(grid_anchors(7, 13, 16, [32, 64], [0.5, 1.0, 2.0]))
    best = [44, 47]  # any anchors will do
    logits, deltas = np.full((1, len(anchors)), -9.0), np.zeros((1, len(anchors), 4))
    logits[0, best] = [5, 6]
    deltas[0, best] = array(encode_boxes(tensor(truth), tensor(anchors[best])))
    boxes, scores = proposals(logits, deltas, anchors)
    np.testing.assert_allclose(boxes[0, :2], truth[::-1], atol=1e-3)
    assert (scores[0, :2] > 0.99).all()


def test_wild_deltas_stay_inside_the_picture():
    deltas = np.random.default_rng(0).normal(0, 1e4, (1, 50, 4))
    boxes, _ = proposals(np.zeros((1, 50)), deltas, np.tile([[0, 0, 16, 16]], (50, 1)), post_nms=50)
    assert np.isfinite(boxes).all()
    assert boxes.min() >= 0
    assert (boxes[..., 2:] <= [200, 100]).all()


def test_compiled_with_free_sizes():
    rng = np.random.default_rng(1)
    arguments = rng.normal(size=(2, 60)), rng.normal(size=(2, 60, 4)), rng.uniform(0, 50, (60, 4)).cumsum(1)
    sizes = [[100, 200], [90, 150]]
    expected = proposals(*arguments, sizes, pre_nms=50, post_nms=20)
    found = compiled(
        lambda *inputs: select_proposals(*inputs, pre_nms=50, post_nms=20),
        *map(tensor, arguments),
        tensor(sizes, "int32"),
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_gather_kept_empties_what_nms_left_empty():
    boxes, scores = np.arange(12).reshape(1, 3, 4), [[0.1, 0.2, 0.3]]
    found = array(gather_kept(tensor(boxes), tensor(scores), tensor([[2, 0, -1, -1]], "int32")))
    assert found[0].tolist() == [[[8, 9, 10, 11], [0, 1, 2, 3], [0] * 4, [0] * 4]]
    np.testing.assert_allclose(found[1], [[0.3, 0.1, -np.inf, -np.inf]])


def test_boxes_of_different_levels_do_not_suppress_each_other_and_the_best_of_all_are_kept():
    """Level 0: 0.9 suppresses 0.8 (IoU 19 / 21); level 1 has the same box, and its two best of 3."""
    anchors = [[[0, 0, 20, 10], [1, 0, 21, 10]], [[0, 0, 20, 10], [50, 50, 70, 60], [100, 20, 120, 40]]]
    logits = [[[2.0, 1.0]], [[1.5, -1.0, 0.0]]]
    inputs = [list(map(tensor, logits)), [tensor(np.zeros((1, n, 4))) for n in (2, 3)], list(map(tensor, anchors))]
    boxes, scores = array(select_level_proposals(*inputs, tensor(SIZE, "int32"), pre_nms=2, post_nms=4))
    assert boxes[0].tolist() == [[0, 0, 20, 10], [0, 0, 20, 10], [100, 20, 120, 40], [0, 0, 0, 0]]
    np.testing.assert_allclose(scores[0], [*(1 / (1 + np.exp([-2.0, -1.5, 0.0]))), -np.inf], rtol=1e-6)
    best, _ = array(select_level_proposals(*inputs, tensor(SIZE, "int32"), pre_nms=2, post_nms=2))
    assert np.array_equal(best, boxes[:, :2])
    one = [part[:1] for part in inputs]
    alone = array(select_level_proposals(*one, tensor(SIZE, "int32"), pre_nms=2, post_nms=4))
    assert np.array_equal(alone[0], proposals(*(array(part[0]) for part in one), pre_nms=2)[0])
