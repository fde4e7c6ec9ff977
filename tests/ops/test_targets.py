import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.ops.anchors import grid_anchors
from frcnn.ops.boxes import decode_deltas
from frcnn.ops.losses import roi_box_loss, rpn_box_loss
from frcnn.ops.targets import rpn_targets, sample_rois, take_boxes
from tests.oracles.boxes import iou_table
from tests.oracles.targets import answers
from tests.oracles.tensors import array, bound, compiled, tensor

ANCHORS = array(grid_anchors(8, 10, 16, [24, 48], [0.5, 1.0, 2.0]))  # 480 of them over 128x160 px
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def scene(seed, count, slots=None):
    """`count` objects of K = 5 classes on 128x160 px, padded to `slots`."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, [110, 80], (count, 2))
    boxes, labels = np.zeros((slots or count, 4), np.float32), np.full(slots or count, -1, np.int32)
    boxes[:count] = np.concatenate([corners, corners + rng.uniform(18, 48, (count, 2))], axis=1)
    labels[:count] = rng.integers(0, 5, count)
    return boxes, labels


def batch(*scenes):
    boxes, labels = zip(*scenes, strict=True)
    return np.stack(boxes), np.stack(labels)


def ask_rpn(truth, seeds=None, anchors=ANCHORS, samples=256, **settings):
    """`rpn_targets` of arrays; the result's contract is asserted on the way."""
    boxes, labels = truth
    seeds = np.arange(len(boxes)) if seeds is None else seeds
    arguments = tensor(anchors), tensor(boxes), tensor(labels, "int32"), tensor(seeds, "int32")
    indices, answer, deltas = array(bound(rpn_targets, samples=samples, **settings)(*arguments))
    shape = (len(boxes), samples)
    assert (indices.shape, indices.dtype, answer.shape, answer.dtype) == (shape, np.int32, shape, np.int32)
    assert (deltas.shape, deltas.dtype) == ((*shape, 4), np.float32)
    assert np.isfinite(deltas).all()
    return indices, answer, deltas


def ask_rois(proposals, truth, seeds=None, scores=None, samples=32, **settings):
    """`sample_rois` of arrays with K = 5; the result's contract is asserted on the way."""
    boxes, labels = truth
    seeds = np.arange(len(boxes)) if seeds is None else seeds
    scores = np.zeros(np.shape(proposals)[:2]) if scores is None else scores
    arguments = tensor(proposals), tensor(scores), tensor(boxes), tensor(labels, "int32"), tensor(seeds, "int32")
    rois, answer, deltas = array(bound(sample_rois, num_classes=5, samples=samples, **settings)(*arguments))
    shape = (len(boxes), samples)
    assert (rois.shape, rois.dtype, answer.shape, answer.dtype) == ((*shape, 4), np.float32, shape, np.int32)
    assert (deltas.shape, deltas.dtype) == ((*shape, 4), np.float32)
    assert np.isfinite(deltas).all()
    assert not rois[answer == -1].any()
    return rois, answer, deltas


def some_proposals(seed, count=60):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, [120, 90], (count, 2))
    return np.concatenate([corners, corners + rng.uniform(4, 50, (count, 2))], axis=1).astype(np.float32)


def test_rpn_targets_by_hand():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 6], [40, 40, 50, 50], [0, 0, 10, 5], [100, 0, 120, 10]]
    # box 0: IoU 1, 0.6, 0, 0.5, 0; box 1 touches anchor 4 alone: 10 * 10 / (200 + 150 - 100) = 0.4, its best
    boxes, labels = [[[0, 0, 10, 10], [110, 0, 125, 10]]], [[3, 0]]
    indices, answer, deltas = ask_rpn((boxes, labels), anchors=anchors, samples=6)
    assert answer[0].tolist() == [1, 1, 0, -1, -1, -1]
    assert (set(indices[0, :2]), indices[0, 2]) == ({0, 4}, 2), "anchors 1 and 3 lie between and are never drawn"
    slot = indices[0].tolist().index(4)
    # centre (110, 5) -> (117.5, 5), 20 wide -> 15
    np.testing.assert_allclose(deltas[0, slot], [7.5 / 20, 0, np.log(15 / 20), 0], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rpn_targets_equal_nested_loops(seed):
    boxes, labels = scene(seed, 3)
    expected = answers(ANCHORS, boxes, 0.7, 0.3, keep_best=True)
    indices, answer, deltas = ask_rpn(batch((boxes, labels)), [seed], samples=64)
    for index, found, delta in zip(indices[0], answer[0], deltas[0], strict=True):
        box, encoded = expected[index]
        if found == 1:
            assert box >= 0
            np.testing.assert_allclose(delta, encoded, atol=1e-4)
        else:
            assert (found, box) == (0, -1)
    positives = sum(box >= 0 for box, _ in expected)
    assert (answer == 1).sum() == min(positives, 32)
    assert (answer == 0).sum() == 64 - min(positives, 32)


def test_samples_are_256_in_all_and_not_one_to_one_with_the_positives():
    indices, answer, _ = ask_rpn(batch(scene(0, 2)))
    assert (answer == -1).sum() == 0
    assert (answer == 1).sum() < 30
    assert len(set(indices[0])) == 256


def test_more_than_128_positive_anchors_are_halved_not_dropped():
    """keras-frcnn left such pictures out without a word."""
    anchors = np.concatenate([np.tile([[10, 10, 60, 60]], (200, 1)), np.tile([[90, 90, 120, 120]], (300, 1))])
    indices, answer, _ = ask_rpn(([[[10, 10, 60, 60]]], [[0]]), anchors=anchors)
    assert [(answer == kind).sum() for kind in (1, 0, -1)] == [128, 128, 0]
    assert (indices[answer == 1] < 200).all()
    assert len(set(indices[0])) == 256


def test_a_box_that_no_anchor_touches_makes_no_anchor_positive():
    _, answer, _ = ask_rpn(([[[1000, 1000, 1040, 1040]]], [[2]]))
    assert (answer == 0).all()
    one, _ = batch(scene(1, 1))
    both = np.concatenate([one, [[[1000, 1000, 1040, 1040]]]], axis=1)
    for found, expected in zip(ask_rpn((both, [[0, 1]]), [7]), ask_rpn((one, [[0]]), [7]), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("slots", [1, 8])
def test_without_objects_all_samples_are_background(slots):
    truth = batch(scene(0, 0, slots))
    _, answer, targets = ask_rpn(truth)
    assert (answer == 0).all()
    assert array(rpn_box_loss((tensor(np.ones_like(targets)), tensor(targets), tensor(answer, "int32")))).tolist() == [
        0
    ]
    _, answer, targets = ask_rois(some_proposals(0)[None], truth)
    assert (answer == 5).all()
    deltas = np.ones((1, 32, 5, 4))
    assert array(roi_box_loss((tensor(deltas), tensor(targets), tensor(answer, "int32")))).tolist() == [0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 4), garbage=st.booleans())
def test_padding_slots_change_nothing(seed, count, garbage):
    """Not even when an empty slot holds a box: its label alone says that it is empty."""
    short, padded = scene(seed, count, 4), scene(seed, count, 8)
    if garbage:
        padded[0][count:] = [10, 10, 60, 60]
        short[0][count:] = 0
    proposals = some_proposals(seed)[None]
    for found, expected in [
        (ask_rpn(batch(padded), [seed]), ask_rpn(batch(short), [seed])),
        (ask_rois(proposals, batch(padded), [seed], samples=16), ask_rois(proposals, batch(short), [seed], samples=16)),
    ]:
        *_, labels, deltas = found
        foreground = (labels >= 0) & (labels < 5) if found[0].ndim == 3 else labels == 1
        np.testing.assert_array_equal(labels, expected[1])
        np.testing.assert_array_equal(deltas[foreground], expected[2][foreground])
        if found[0].ndim == 2:
            np.testing.assert_array_equal(found[0], expected[0])


def test_targets_and_decoding_share_one_grid():
    """keras-frcnn encoded on centres of 16 * (i + 0.5) and decoded on 16 * i: 8 px off, rounded to cells of 16."""
    boxes, labels = batch(scene(3, 4, 8), scene(4, 2, 8))
    indices, answer, deltas = ask_rpn((boxes, labels))
    decoded = array(decode_deltas(tensor(deltas), tensor(ANCHORS[indices])))
    for picture in (0, 1):
        positive = answer[picture] == 1
        distance = np.abs(decoded[picture, positive][:, None] - boxes[picture][None]).max(axis=-1)
        assert distance.min(axis=1).max() < 1e-3
        assert set(distance.argmin(axis=1)) == set(np.flatnonzero(labels[picture] >= 0)), "every object has an anchor"


def test_an_object_on_an_anchor_has_no_delta():
    """Cell (3, 4) of 8x10, second of three ratios, first of two sizes: centre (64, 48), 24 px."""
    index = (3 * 10 + 4) * 6 + 1 * 2
    indices, answer, deltas = ask_rpn(([[[52, 36, 76, 60]]], [[0]]))
    slot = indices[0, answer[0] == 1].tolist().index(index)
    assert deltas[0, slot].tolist() == [0, 0, 0, 0]


def test_rpn_delta_weights_multiply_the_targets():
    truth, weights = batch(scene(0, 3)), (1.0, 2.0, 3.0, 4.0)
    plain, weighted = ask_rpn(truth)[2], ask_rpn(truth, delta_weights=weights)[2]
    np.testing.assert_allclose(weighted, plain * np.float32(weights), rtol=1e-5, atol=1e-6)


def test_rois_by_hand():
    boxes, labels = [[[0, 0, 100, 100], [0, 0, 0, 0]]], [[3, -1]]
    proposals = [[[0, 0, 100, 50], [0, 0, 100, 49], [90, 90, 110, 110], [120, 0, 130, 9], [0, 0, 99, 99]]]
    scores = [[0.9, 0.8, 0.7, 0.6, -np.inf]]
    rois, answer, deltas = ask_rois(proposals, (boxes, labels), scores=scores, samples=8, positive_fraction=0.5)
    found = {tuple(roi): (label, delta) for roi, label, delta in zip(rois[0], answer[0], deltas[0], strict=True)}
    # IoU 0.5 is positive, 0.49 is not; 0.01 and 0 are background too; the last proposal is an empty slot
    assert {roi: label for roi, (label, _) in found.items()} == {
        (0, 0, 100, 50): 3,
        (0, 0, 100, 100): 3,
        (0, 0, 100, 49): 5,
        (90, 90, 110, 110): 5,
        (120, 0, 130, 9): 5,
        (0, 0, 0, 0): -1,
    }
    assert answer[0].tolist() == [3, 3, 5, 5, 5, -1, -1, -1]
    # centre (50, 25) -> (50, 50) over 50 px height, times 10; log of twice the height, times 5
    np.testing.assert_allclose(found[0, 0, 100, 50][1], [0, 5, 0, 5 * np.log(2)], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rois_equal_nested_loops(seed):
    boxes, labels = scene(seed, 3)
    candidates = np.concatenate([some_proposals(seed), boxes])
    expected = {
        tuple(roi): answer
        for roi, answer in zip(candidates, answers(candidates, boxes, 0.5, 0.5, False, WEIGHTS), strict=True)
    }
    rois, answer, deltas = ask_rois(some_proposals(seed)[None], batch((boxes, labels)), [seed], samples=24)
    for roi, label, delta in zip(rois[0], answer[0], deltas[0], strict=True):
        box, encoded = expected[tuple(roi)]
        assert label >= 0
        if label < 5:
            assert label == labels[box]
            np.testing.assert_allclose(delta, encoded, atol=1e-3)
        else:
            assert (label, box) == (5, -1)
    positives = sum(box >= 0 for box, _ in expected.values())
    assert (answer < 5).sum() == min(positives, 6)
    assert (answer == 5).sum() == 24 - min(positives, 6)


def test_the_ground_truth_is_among_the_rois():
    """So that the head has positives from the first step on, when the RPN proposes noise."""
    truth = batch(scene(5, 3, 8))
    rois, answer, deltas = ask_rois(np.tile([[0.0, 0, 5, 5]], (1, 20, 1)), truth)
    foreground = (answer[0] >= 0) & (answer[0] < 5)
    assert sorted(map(tuple, rois[0, foreground])) == sorted(map(tuple, truth[0][0, :3]))
    assert sorted(answer[0, foreground]) == sorted(truth[1][0, :3])
    assert not deltas[0, foreground].any()


def test_rois_that_touch_nothing_are_background():
    """keras-frcnn took only those of IoU 0.1 to 0.5, so that its head never saw plain background."""
    proposals = np.asarray([[[200.0 + 20 * i, 0, 210 + 20 * i, 10] for i in range(40)]])
    truth = batch(scene(6, 2))
    assert not np.any(iou_table(truth[0][0], proposals[0]))
    rois, answer, _ = ask_rois(proposals, truth)
    assert [((answer >= 0) & (answer < 5)).sum(), (answer == 5).sum()] == [2, 30]
    assert (rois[answer == 5][:, 0] >= 200).all()


def test_no_proposals_and_no_objects_give_empty_slots():
    rois, answer, _ = ask_rois(np.zeros((1, 6, 4)), batch(scene(0, 0, 2)), scores=np.full((1, 6), -np.inf))
    assert (answer == -1).all()
    assert not rois.any()


def test_seeds_decide_and_pictures_are_apart():
    truth = batch(scene(7, 3), scene(7, 3), scene(8, 3))
    proposals = np.stack([some_proposals(7), some_proposals(7), some_proposals(8)])
    for ask in (ask_rpn, lambda truth, seeds: ask_rois(proposals[: len(truth[0])], truth, seeds)):
        first = ask(truth, [1, 2, 1])
        assert (first[0][0] != first[0][1]).any()
        for found, expected in zip(ask(truth, [1, 1, 1]), first, strict=True):
            np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
            np.testing.assert_array_equal(found[0], found[1])


def test_compiled_with_free_sizes():
    truth, proposals = batch(scene(9, 2, 8), scene(10, 4, 8)), np.stack([some_proposals(1), some_proposals(2)])
    boxes, labels, seeds = tensor(truth[0]), tensor(truth[1], "int32"), tensor([0, 1], "int32")
    for found, expected in [
        (compiled(rpn_targets, tensor(ANCHORS), boxes, labels, seeds), ask_rpn(truth)),
        (
            compiled(
                lambda *inputs: sample_rois(*inputs, num_classes=5, samples=32),
                *(tensor(proposals), tensor(np.zeros((2, 60))), boxes, labels, seeds),
            ),
            ask_rois(proposals, truth),
        ),
    ]:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_take_boxes_picks_picture_by_picture():
    boxes = np.arange(24).reshape(2, 3, 4)
    found = array(take_boxes(tensor(boxes), tensor([[2, 2], [0, 1]], "int32")))
    assert found.tolist() == [boxes[0, [2, 2]].tolist(), boxes[1, [0, 1]].tolist()]
