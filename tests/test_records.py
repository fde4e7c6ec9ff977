import dataclasses

import numpy as np
import pytest

from frcnn.records import Detections, ImageRecord
from tests.contracts import assert_is_detections, assert_is_record


def test_a_record_takes_plain_lists():
    record = ImageRecord("a.png", [40, 60], [[0, 0, 60, 40], [1.5, 2, 3, 4]], [1, 0])
    assert_is_record(record, ("a", "b"))
    assert record.size == (40, 60)
    assert record.difficult.tolist() == [False, False]
    assert ImageRecord("a.png", (40, 60), [[0, 0, 1, 1]], [0], [True]).difficult.tolist() == [True]


def test_a_record_may_hold_no_box():
    assert_is_record(ImageRecord("a.png", (np.int64(40), 60), [], []))


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (5, 9, 8, 9),
        (6, 0, 5, 9),
        (-1, 0, 5, 5),
        (0, -1, 5, 5),
        (0, 0, 61, 5),
        (0, 0, 5, 41),
        (0, 0, np.nan, 5),
    ],
)
def test_a_box_must_lie_inside_its_picture(box):
    with pytest.raises(ValueError, match=r"a.png box 1: \(.*\) must satisfy 0 <= x1 < x2 <= 60 and 0 <= y1 < y2 <= 40"):
        ImageRecord("a.png", (40, 60), [(0, 0, 60, 40), box], [0, 0])


@pytest.mark.parametrize(("labels", "difficult"), [([0, 1], None), ([], None), ([0], [False, True])])
def test_lengths_of_a_record_must_agree(labels, difficult):
    with pytest.raises(ValueError, match=r"a.png: .*must have the same length"):
        ImageRecord("a.png", (40, 60), [(0, 0, 6, 4)], labels, difficult)


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ImageRecord("a.png", (40, 60), [], []).path = "b.png"


def test_detections_take_plain_lists():
    found = Detections([[0, 0, 6, 4], [1, 2, 3, 4]], [0.9, 0.5], [1, 0], ["a", "b"])
    assert_is_detections(found, ("a", "b"), size=(4, 6))
    assert (len(found), found.path) == (2, "")
    empty = Detections([], [], [], ["a"], "x.png")
    assert_is_detections(empty)
    assert len(empty) == 0


def test_above_keeps_the_score_itself_and_the_order():
    found = Detections([[0, 0, 6, 4], [1, 2, 3, 4], [0, 0, 1, 1]], [0.75, 0.5, 0.25], [1, 0, 1], ["a", "b"], "x.png")
    kept = found.above(0.5)
    assert_is_detections(kept, ("a", "b"))
    assert (kept.scores.tolist(), kept.labels.tolist(), kept.path) == ([0.75, 0.5], [1, 0], "x.png")
    assert kept.boxes.tolist() == found.boxes[:2].tolist()
    assert len(found.above(0.8)) == 0 and len(found) == 3


def test_lengths_of_detections_must_agree():
    with pytest.raises(ValueError, match=r"record: \{'boxes': 1, 'scores': 2, 'labels': 1\} must have the same length"):
        Detections([[0, 0, 6, 4]], [0.9, 0.8], [0], ["a"])
