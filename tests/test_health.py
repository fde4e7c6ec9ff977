import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from frcnn.health import (
    HealthReport,
    is_settled,
    judge_anchors,
    judge_loss,
    judge_scores,
    judge_wait,
    look,
    open_twin,
)
from frcnn.models.detector import build_detector, detection_model
from frcnn.records import ImageRecord
from frcnn.training import train_model
from tests.oracles.tensors import array
from tests.oracles.tiny import CLASS_NAMES, tiny_batch, tiny_config, write_tiny_pictures


def keys(findings):
    return [key for key, _ in findings]


# ------------------------------------------------------------------------------------------------------- judging


def test_classes_without_a_positive_anchor_are_named():
    # tall: one box of three at 0.7, which is enough. wide: best 0.5, median of (0, 0.31, 0.5) 0.31, one on no anchor.
    labels, overlaps = np.array([0, 1, 0, 1, 0, 1]), np.array([0.1, 0.31, 0.7, 0.0, 0.2, 0.5], np.float32)
    ((key, text),) = judge_anchors(labels, overlaps, 0.7, CLASS_NAMES, lambda: "model.anchor_sizes=[9]")
    assert key == ("anchors", 1)
    assert "'wide'" in text and "any of the 3 boxes" in text and "positive_iou 0.7" in text
    assert "median IoU 0.31), 1 on none. Try model.anchor_sizes=[9]" in text


def test_anchors_that_fit_cost_no_search():
    def search():
        raise AssertionError("not needed")

    assert judge_anchors(np.array([0, 1]), np.array([0.7, 0.9], np.float32), 0.7, CLASS_NAMES, search) == []
    assert judge_anchors(np.zeros(0, int), np.zeros(0, np.float32), 0.7, CLASS_NAMES, search) == []


@pytest.mark.parametrize(
    ("recall", "score", "threshold", "expected"),
    [
        (0.49, 0.9, 0.05, [("recall",)]),
        (0.5, 0.9, 0.05, []),
        (float("nan"), 0.9, 0.05, []),  # no boxes to cover
        (0.9, 0.03, 0.05, [("score", "found")]),
        (0.9, 0.05, 0.05, [("score", "drawn")]),
        (0.9, 0.49, 0.05, [("score", "drawn")]),
        (0.9, 0.5, 0.05, []),
        (0.9, 0.6, 0.7, [("score", "found")]),
        (0.1, 0.03, 0.05, [("recall",), ("score", "found")]),
    ],
)
def test_low_recall_and_scores_that_no_threshold_lets_through(recall, score, threshold, expected):
    assert keys(judge_scores(recall, score, threshold)) == expected


def test_the_numbers_are_in_the_texts():
    (_, recall), (_, score) = judge_scores(0.123, 0.03, 0.05)
    assert "cover only 12% of the validation boxes" in recall
    assert "highest score" in score and "0.03, below detect.score_threshold 0.05: nothing would be found" in score
    assert "0.3, below --draw-score 0.5: nothing would be drawn" in judge_scores(0.9, 0.3, 0.05)[0][1]


@pytest.mark.parametrize(
    ("losses", "settled", "expected"),
    [
        ([2.0], True, []),
        ([2.0, 2.2, 1.95], True, [("loss", "flat")]),  # 1.95 is more than 0.95 * 2
        ([2.0, 2.2, 1.95], False, []),
        ([2.0, 1.89, 2.0, 2.1], True, []),  # one epoch was better than 1.9, and 2.1 < 1.2 * 1.89
        ([2.0, 2.2, 1.5, 1.2], True, []),
        ([1.0, 1.1, 1.2, 1.3], False, [("loss", "rises")]),
        ([1.0, 1.1, 1.15, 1.19], False, []),  # 1.19 times the lowest
        ([1.0, 1.15, 1.17, 1.2, 1.3], False, [("loss", "rises")]),  # 1.3 times the lowest, which is not of the four
        ([1.0, 1.5, 1.4, 1.6], False, []),  # not three times in turn
        ([9.0, 1.0, 1.1, 1.2, 1.3], True, [("loss", "rises")]),
    ],
)
def test_losses_that_do_not_fall(losses, settled, expected):
    assert keys(judge_loss(losses, settled)) == expected


def test_a_wait_of_a_fifth_is_no_wait():
    assert keys(judge_wait(0.2)) == [] and keys(judge_wait(0.21)) == [("wait",)]
    assert judge_wait(0.37)[0][1].startswith("37% of the time")


@pytest.mark.parametrize(
    ("epochs", "steps", "total", "expected"),
    [
        (3, 1000, 20, False),  # fewer than 4 epochs
        (4, 1000, 20, True),
        (4, 50, 100, False),  # 200 steps of 400: twice the warm-up of 200
        (8, 50, 100, True),
        (5, 1, 40, False),  # of 40 steps 10 are warm-up
        (20, 1, 40, True),
        (1, 1, 1, True),  # the end
    ],
)
def test_when_a_run_has_settled(epochs, steps, total, expected):
    assert is_settled(epochs, steps, tiny_config(f"train.epochs={total}")) is expected


# ------------------------------------------------------------------------------------------------------- looking


def records_of(*boxes, size=(64, 128)):
    return [ImageRecord(f"{index}.png", size, box, [0] * len(box)) for index, box in enumerate(boxes)]


def test_what_is_seen_by_hand(monkeypatch):
    """Three pictures in batches of two, twice as large as the network sees them; the last batch ends in a copy."""
    monkeypatch.setattr("frcnn.inference.read_image", lambda *_: np.zeros((64, 128, 3), np.uint8))
    records = records_of([[0, 0, 40, 40], [60, 0, 120, 60]], [[0, 0, 20, 20]], [])
    records[1] = ImageRecord("1.png", (64, 128), [[0, 0, 20, 20], [80, 0, 100, 20]], [0, 1], [0, 1])  # a difficult one
    # In the network's pixels the boxes are (0, 0, 20, 20), (30, 0, 60, 30), (0, 0, 10, 10).
    # IoU (0, 0, 20, 10) with the first: 200 / 400 = 0.5, found; (30, 0, 59, 15) with the second: 435 / 900, not found.
    proposals = np.zeros((4, 3, 4), np.float32)
    proposals[0, :2] = (30, 0, 59, 15), (0, 0, 20, 10)
    proposals[3, 0] = (0, 0, 10, 10)  # of the copy: must not count for anything
    scores = np.full((4, 3), -np.inf, np.float32)
    scores[0, :2], scores[1, 0], scores[3, 0] = 0.9, 0.8, 0.9
    logits = np.zeros((4, 3, 3), np.float32)  # two classes and background
    logits[0, 0] = np.log([0.1, 0.3, 0.6])
    logits[1, 0] = np.log([0.4, 0.1, 0.5])
    logits[1, 1] = np.log([0.9, 0.05, 0.05])  # an empty slot
    logits[0, 1] = np.log([0.05, 0.05, 0.9])
    logits[3] = np.log([0.98, 0.01, 0.01])
    found = {"boxes": np.zeros((2, 1, 4)), "scores": np.zeros((2, 1)), "labels": np.full((2, 1), -1)}
    turns = itertools.count()

    def predict_on_batch(inputs):
        part = slice(2 * next(turns), None)
        return found | {
            name: values[part][:2]
            for name, values in (("proposals", proposals), ("proposal_scores", scores), ("class_logits", logits))
        }

    config = tiny_config("data.im_size=32", "detect.batch_size=2")
    twin = SimpleNamespace(config=config, class_names=CLASS_NAMES, predict_on_batch=predict_on_batch)
    detections, recall, best = look(twin, records)
    assert [len(found) for found in detections] == [0, 0, 0]
    assert recall == pytest.approx(1 / 3)
    assert best == pytest.approx(0.4)


@pytest.mark.tensorflow
def test_the_open_twin_detects_as_the_closed_one_does():
    model = build_detector(tiny_config(), CLASS_NAMES)
    batch = {name: values for name, values in tiny_batch().items() if name in ("images", "image_sizes")}
    closed, opened = (twin.predict_on_batch(batch) for twin in (detection_model(model), open_twin(model)))
    assert set(closed) == {"boxes", "scores", "labels"}
    assert set(opened) == {*closed, "proposals", "proposal_scores", "class_logits"}
    assert all(np.array_equal(array(closed[name]), array(opened[name])) for name in closed)
    assert opened["proposals"].shape == (2, 16, 4) and opened["class_logits"].shape == (2, 16, 3)
    chances = np.exp(opened["class_logits"]) / np.exp(opened["class_logits"]).sum(-1, keepdims=True)
    assert opened["scores"].max() == pytest.approx(chances[..., :2].max(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ reporting


def report_epochs(report, *logs):
    """What each epoch, from the second on, begins with, and what the end says."""
    said = []
    for epoch, of_epoch in enumerate([*logs, None]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report.on_train_end() if of_epoch is None else report.on_epoch_begin(epoch)
        said.append([str(warning.message) for warning in caught])
        if of_epoch is not None:
            report.on_epoch_end(epoch, {"loss": 1.0 / (epoch + 1), "data_wait": 0.0} | of_epoch)
    return said[1:]


def test_each_finding_is_said_once_when_the_next_epoch_begins():
    report = HealthReport([], tiny_config("train.epochs=9"), 100)
    report.set_model(SimpleNamespace(class_names=CLASS_NAMES))
    scores = {"val_rpn_recall": 0.9, "val_best_score": 0.04}
    said = report_epochs(
        report, {"data_wait": 0.3}, {"data_wait": 0.4}, {}, scores, scores | {"val_best_score": 0.2}, {"data_wait": 0.5}
    )
    assert [len(texts) for texts in said] == [1, 0, 0, 1, 1, 0]
    assert said[0][0].startswith("epoch 1: 30% of the time")
    assert "nothing would be found" in said[3][0] and "nothing would be drawn" in said[4][0]
    assert list(report.model.findings) == [text for texts in said for text in texts]


def test_the_boxes_of_the_batches_are_compared_with_the_anchors():
    """Anchors of 20 and 36 px; a box of 4x4 on a grid point has IoU 16 / 400 = 0.04 with the smaller one."""
    report = HealthReport([], tiny_config("model.anchor_ratios=[1.0]"), 1)
    batch = tiny_batch(1)
    batch["gt_boxes"][0, :2], batch["gt_labels"][0, :3] = [(14, 14, 18, 18), (16, 16, 36, 36)], (0, 1, -1)
    passed = list(report.watch(iter_closing([(batch,)])))
    assert passed == [(batch,)]
    ((labels, overlaps),) = report._boxes
    assert labels.tolist() == [0, 1]
    assert overlaps[0] == pytest.approx(0.04, abs=1e-6)


def iter_closing(items):
    yield from items


@pytest.mark.tensorflow
def test_a_run_says_what_stands_in_its_way(tmp_path):
    """Anchors ten times too large, and a learning rate that changes nothing."""
    records = write_tiny_pictures(tmp_path / "a")
    config = tiny_config("model.anchor_sizes=[300,400]", "train.learning_rate=1e-9", "train.epochs=2")
    model = build_detector(config, CLASS_NAMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train_model(model, records, validation=records, output=tmp_path / "run", verbose=0).history
    texts = "\n".join(str(warning.message) for warning in caught)
    assert "'tall'" in texts and "'wide'" in texts and "Try model.anchor_sizes=[" in texts
    assert "epoch 2: the loss is flat" in texts
    assert all(text in texts for text in model.findings) and len(model.findings) >= 3
    assert len(history["val_rpn_recall"]) == 2 and all(0 <= share <= 1 for share in history["val_rpn_recall"])
    assert 0 < history["val_best_score"][0] < 1
