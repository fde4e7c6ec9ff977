import numpy as np
import pytest
from keras import ops

from frcnn.ops import detections as module
from frcnn.ops.boxes import encode_boxes
from frcnn.ops.detections import select_detections
from tests.oracles import golden
from tests.oracles.tensors import array, bound, compiled, tensor

SIZE = [[100, 200]]  # height, width
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def detections(proposals, logits, deltas=None, sizes=SIZE, proposal_scores=None, **settings):
    """`select_detections` of arrays; the result's contract is asserted on the way."""
    batch, count, columns = np.shape(logits)
    deltas = np.zeros((batch, count, columns - 1, 4)) if deltas is None else deltas
    proposal_scores = np.ones((batch, count)) if proposal_scores is None else proposal_scores
    settings = {"max_detections": 5} | settings
    arguments = tensor(proposals), tensor(proposal_scores), tensor(logits), tensor(deltas), tensor(sizes, "int32")
    boxes, scores, labels = array(bound(select_detections, **settings)(*arguments))
    slots = (batch, settings["max_detections"])
    assert (boxes.shape, boxes.dtype) == ((*slots, 4), np.float32)
    assert (scores.shape, scores.dtype, labels.shape, labels.dtype) == (slots, np.float32, slots, np.int32)
    empty = labels == -1
    assert ((labels >= -1) & (labels < columns - 1)).all()
    assert not boxes[empty].any()
    assert not scores[empty].any()
    assert (scores[~empty] > settings.get("score_threshold", 0.05)).all()
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "best first, empty slots last"
    return boxes, scores, labels


def logits_of(*scores):
    """Logits whose softmax is these rows of scores, background last."""
    return np.log(np.maximum([scores], 1e-30))


def test_detections_equal_torchvision():
    """There the background is class 0; here it is the last one and classes start at 0."""
    case = golden.torchvision("postprocess_detections")
    count = len(case["proposals"])
    boxes, scores, labels = detections(
        [case["proposals"]],
        np.roll(case["class_logits"], -1, axis=1)[None],
        np.reshape(case["box_regression"], (1, count, 4, 4))[:, :, 1:],
        [case["image_hw"]],
        score_threshold=case["score_thresh"],
        nms_iou=case["nms_thresh"],
        max_detections=case["detections_per_img"],
        delta_weights=tuple(case["bbox_reg_weights"]),
    )
    assert (labels[0] + 1).tolist() == case["labels"]
    np.testing.assert_allclose(scores[0], case["scores"], rtol=1e-5)
    np.testing.assert_allclose(boxes[0], case["boxes"], atol=1e-3)


@pytest.mark.parametrize("threshold", golden.torchvision("nms")["batched_keep"])
def test_nms_is_class_by_class_as_torchvisions_batched_nms(threshold):
    case = golden.torchvision("nms")
    count, classes = len(case["boxes"]), np.asarray(case["classes"])
    scores = np.zeros((count, 5))
    scores[np.arange(count), classes] = case["scores"]
    scores[:, 4] = 1 - scores.sum(axis=1)
    boxes, found, labels = detections(
        [case["boxes"]],
        logits_of(*scores),
        sizes=[[1000, 1000]],
        max_detections=count,
        score_threshold=1e-6,
        nms_iou=float(threshold),
    )
    kept = case["batched_keep"][threshold]
    assert labels[0].tolist() == classes[kept].tolist() + [-1] * (count - len(kept))
    np.testing.assert_allclose(boxes[0, : len(kept)], np.asarray(case["boxes"])[kept], atol=1e-3)
    np.testing.assert_allclose(found[0, : len(kept)], np.asarray(case["scores"])[kept], rtol=1e-4)


def test_detections_by_hand():
    proposals = [[[0, 0, 40, 40], [2, 0, 42, 40], [100, 50, 160, 90]]]
    logits = logits_of([0.6, 0.3, 0.1], [0.7, 0.04, 0.26], [0.05, 0.15, 0.8])
    deltas = np.zeros((1, 3, 2, 4))
    deltas[0, 2, 1] = [5, 0, 5 * np.log(2), 0]  # weights 10 and 5: centre (130, 70) -> (160, 70), 120 wide
    boxes, scores, labels = detections(proposals, logits, deltas)
    # Class 0: proposal 1 suppresses proposal 0 (IoU 38 / 42). Class 1 of proposal 0 lives on. Proposal 2's class 0 has
    # exactly the threshold, proposal 1's class 1 less. The last box, x 100 to 220, is clipped at 200.
    assert labels[0].tolist() == [0, 1, 1, -1, -1]
    np.testing.assert_allclose(scores[0], [0.7, 0.3, 0.15, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(boxes[0, :3], [[2, 0, 42, 40], [0, 0, 40, 40], [100, 50, 200, 90]], atol=1e-4)


def test_the_score_threshold_is_the_callers():
    """keras-frcnn fixed it at 0.8."""
    proposals, logits = [[[0, 0, 10, 10], [50, 50, 60, 60]]], logits_of([0.5, 0.5], [0.1, 0.9])
    for threshold, count in [(0.05, 2), (0.2, 1), (0.6, 0)]:
        assert (detections(proposals, logits, score_threshold=threshold)[2] >= 0).sum() == count


def test_empty_slots_and_small_boxes_detect_nothing():
    proposals = [[[0, 0, 10, 10], [30, 30, 30, 60], [300, 0, 400, 50], [0, 0, 0, 0]]]
    logits = logits_of(*[[0.9, 0.1]] * 4)
    assert detections(proposals, logits)[2].tolist() == [[0, -1, -1, -1, -1]]
    assert (detections(proposals, logits, proposal_scores=np.full((1, 4), -np.inf))[2] == -1).all()
    assert (detections(proposals, logits, min_size=20.0)[2] == -1).all()


def test_the_best_of_many_are_kept():
    proposals = [[[10 * i, 0, 10 * i + 8, 8] for i in range(12)]]
    scores = np.linspace(0.3, 0.9, 12)
    boxes, found, _ = detections(proposals, logits_of(*np.stack([scores, 1 - scores], axis=1)), max_detections=3)
    np.testing.assert_allclose(found[0], scores[:-4:-1], rtol=1e-5)
    np.testing.assert_allclose(boxes[0, :, 0], [110, 100, 90], atol=1e-4)


def test_pictures_of_a_batch_are_apart():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (2, 20, 2))
    proposals = np.concatenate([corners, corners + rng.uniform(10, 40, (2, 20, 2))], axis=-1)
    logits, deltas, sizes = rng.normal(0, 3, (2, 20, 4)), rng.normal(size=(2, 20, 3, 4)), [[100, 200], [45, 60]]
    together = detections(proposals, logits, deltas, sizes, max_detections=30)
    for row in (0, 1):
        picture = slice(row, row + 1)
        alone = detections(proposals[picture], logits[picture], deltas[picture], sizes[picture], max_detections=30)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[row], other[0], atol=1e-4)
    assert (together[0][1][:, 2:] <= [60, 45]).all()


def test_a_perfect_head_gives_the_objects_back_unrounded():
    """keras-frcnn rounded final boxes to cells of 16 px: perfect heads reached IoU 0.75 on half of 64 px objects."""
    truth = np.asarray([[13.37, 21.5, 77.7, 83.25], [100.1, 4.9, 163.3, 90.6]])
    proposals = np.asarray([[20.0, 20, 80, 90], [90, 0, 170, 80]])
    deltas = np.zeros((1, 2, 2, 4))
    for row, label in enumerate([1, 0]):
        deltas[0, row, label] = array(encode_boxes(tensor(truth[row]), tensor(proposals[row]), WEIGHTS))
    boxes, _, labels = detections(proposals[None], logits_of([0.02, 0.97, 0.01], [0.9, 0.02, 0.08]), deltas)
    assert labels[0].tolist() == [1, 0, -1, -1, -1]
    np.testing.assert_allclose(boxes[0, :2], truth, atol=1e-3)


def test_wild_deltas_stay_inside_the_picture():
    deltas = np.random.default_rng(0).normal(0, 1e4, (1, 30, 2, 4))
    boxes, _, _ = detections(np.tile([50.0, 50, 66, 66], (1, 30, 1)), np.zeros((1, 30, 3)), deltas, max_detections=60)
    assert np.isfinite(boxes).all()
    assert boxes.min() >= 0
    assert (boxes[..., 2:] <= [200, 100]).all()


def test_compiled_with_any_batch():
    rng = np.random.default_rng(1)
    proposals = np.tile([10.0, 10, 60, 60], (2, 8, 1)) + rng.uniform(0, 30, (2, 8, 4))
    logits, deltas, sizes = rng.normal(0, 2, (2, 8, 4)), rng.normal(size=(2, 8, 3, 4)), [[100, 200], [90, 80]]
    arguments = *map(tensor, (proposals, np.ones((2, 8)), logits, deltas)), tensor(sizes, "int32")
    found = compiled(lambda *inputs: select_detections(*inputs, max_detections=6), *arguments, free=1)
    for one, other in zip(found, detections(proposals, logits, deltas, sizes, max_detections=6), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_scores_are_softmax_over_classes_and_background():
    _, scores, _ = detections(np.tile([0.0, 0, 50, 50], (1, 1, 1)), [[[1.0, 1.5, 2.0, 2.5]]], max_detections=3)
    expected = array(ops.softmax(tensor([1.0, 1.5, 2.0, 2.5])))
    np.testing.assert_allclose(scores[0], expected[2::-1], rtol=1e-5)


def test_of_too_many_candidates_the_best_enter_nms(monkeypatch):
    """Of 3 x 4 the best 5: class and box still belong together, in both pictures; the sixth is lost, as it says."""
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 60, (2, 3, 2))
    boxes, logits = np.concatenate([corners, corners + 30], axis=-1), rng.normal(0, 2, (2, 3, 5))
    deltas = rng.normal(0, 1, (2, 3, 4, 4))
    settings = {"score_threshold": 0.0, "nms_iou": 1.0, "max_detections": 8, "sizes": SIZE * 2}
    expected = detections(boxes, logits, deltas, **settings)
    assert (expected[2] >= 0).all()
    monkeypatch.setattr(module, "MOST_CANDIDATES", 5)
    bound.cache_clear()
    found = detections(boxes, logits, deltas, **settings)
    bound.cache_clear()
    for few, many in zip(found, expected):
        np.testing.assert_allclose(few[:, :5], many[:, :5], atol=1e-4)
    assert (found[2][:, 5:] == -1).all()
