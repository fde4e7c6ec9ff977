import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.evaluation import confusion_matrix
from frcnn.records import Detections, ImageRecord
from tests.oracles.confusion import confusion

NAMES = ("cat", "dog")
A, B, C, FAR = [[x, 0, x + 10, 10] for x in (0, 20, 40, 60)]


def matrix(truth, found, difficult=None, crowd=None, **thresholds):
    """Of one picture; truth is (box, label) rows, found (box, label, score) rows."""
    boxes, labels = [row[0] for row in truth], [row[1] for row in truth]
    record = ImageRecord("a.jpg", (100, 100), boxes, labels, difficult, crowd)
    detections = Detections([row[0] for row in found], [row[2] for row in found], [row[1] for row in found], NAMES)
    return confusion_matrix([record], [detections], NAMES, **thresholds).tolist()


def test_every_kind_of_cell():
    """A is a cat found as a cat, B a cat found as a dog, C a missed dog; a dog where there is nothing."""
    truth = [(A, 0), (B, 0), (C, 1)]
    found = [(A, 0, 0.9), (B, 1, 0.8), (FAR, 1, 0.7)]
    assert matrix(truth, found) == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_the_best_score_takes_the_box_whatever_its_class_and_order():
    found = [(A, 1, 0.6), (A, 0, 0.9), (A, 0, 0.7)]
    assert matrix([(A, 0)], found) == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_thresholds_are_reached_by_equality():
    """Half of A: IoU 50 / 100. A score of 0.5 counts, one just below does not."""
    half = [0, 0, 5, 10]
    assert matrix([(A, 0)], [(half, 0, 0.5)]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert matrix([(A, 0)], [(half, 0, 0.5)], iou_threshold=0.51) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert matrix([(A, 0)], [(A, 0, 0.49)]) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert matrix([(A, 0)], [(A, 0, 0.49)], score_threshold=0.49) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_difficult_boxes_count_neither_found_nor_missed():
    found = [(A, 0, 0.9), (A, 1, 0.8), (B, 0, 0.7)]
    assert matrix([(A, 0), (B, 0), (C, 1)], found, difficult=[True, False, True]) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_what_lies_in_a_crowd_is_left_out_but_not_what_finds_a_box_in_it():
    """The crowd spans A and B: A in it is found as ever, B lies in it, C does not; half of the last lies in it."""
    crowd = [0, 0, 30, 10]
    found = [(A, 0, 0.9), (B, 1, 0.8), (C, 1, 0.7), ([25, 0, 35, 10], 1, 0.6)]
    assert matrix([(crowd, 0), (A, 0)], found, crowd=[True, False]) == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert matrix([(A, 0)], found) == [[1, 0, 0], [0, 0, 0], [0, 3, 0]]


def test_nothing_gives_zeros():
    assert confusion_matrix([], [], NAMES).tolist() == [[0] * 3] * 3
    assert matrix([], []) == [[0] * 3] * 3
    assert matrix([(A, 1)], []) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix([], [(A, 1, 0.9)]) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    empty = [([5, 5, 5, 5], 0, 0.9)]  # a detection without area lies in no crowd
    assert matrix([(A, 0)], empty, crowd=[True]) == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("thresholds", [{"iou_threshold": 0}, {"iou_threshold": 50}, {"score_threshold": 1.5}])
def test_thresholds_out_of_range_are_named(thresholds):
    with pytest.raises(ValueError, match=r"iou_threshold is .*, score_threshold .*: both must be 0..1"):
        confusion_matrix([], [], NAMES, **thresholds)


def test_what_does_not_belong_together_is_named():
    with pytest.raises(ValueError, match="0 records but 1 detections"):
        confusion_matrix([], [Detections([], [], [], NAMES)], NAMES)


@st.composite
def pictures(draw):
    """Boxes on a coarse grid, so that overlaps, equal scores and thresholds met exactly all happen."""
    side = st.tuples(st.integers(0, 5), st.integers(1, 4)).map(lambda side: (side[0], side[0] + side[1]))
    box = st.tuples(side, side).map(lambda sides: [sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    label = st.integers(0, 1)
    truth = st.lists(st.tuples(box, label, st.booleans(), st.sampled_from([False, False, True])), max_size=4)
    found = st.lists(st.tuples(box, st.sampled_from([0.25, 0.5, 0.75, 1.0]), label), max_size=6)
    records, results = [], []
    for rows, hits in draw(st.lists(st.tuples(truth, found), max_size=3)):
        columns = ([row[i] for row in rows] for i in range(4))
        records.append(ImageRecord("a.jpg", (100, 100), *columns))
        results.append(Detections(*([hit[i] for hit in hits] for i in range(3)), NAMES))
    return records, results


@settings(max_examples=150, deadline=None)
@given(pictures(), st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.5]))
def test_equals_nested_loops(data, iou_threshold, score_threshold):
    records, found = data
    counts = confusion_matrix(records, found, NAMES, iou_threshold, score_threshold)
    rows, columns = (0, 1, "background"), (0, 1, "missed")
    expected = confusion(records, found, iou_threshold, score_threshold)
    assert counts.tolist() == [[expected[row, column] for column in columns] for row in rows]
