import dataclasses

import cv2
import numpy as np
import pytest

from frcnn.outputs import write_csv
from frcnn.records import Detections, ImageRecord, LabelledImage, require_class_names, require_labels
from frcnn.visualize import draw_detections
from tests.contracts import assert_is_detections, assert_is_record


def test_a_record_takes_plain_lists():
    record = ImageRecord("a.png", [40, 60], [[0, 0, 60, 40], [1.5, 2, 3, 4]], [1, 0])
    assert_is_record(record, ("a", "b"))
    assert record.size == (40, 60)
    assert record.difficult.tolist() == record.crowd.tolist() == [False, False]
    flagged = ImageRecord("a.png", (40, 60), [[0, 0, 1, 1]], [0], [True], crowd=[True])
    assert flagged.difficult.tolist() == flagged.crowd.tolist() == [True]


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
    with pytest.raises(ValueError, match="must have the same length"):
        ImageRecord("a.png", (40, 60), [(0, 0, 6, 4)], [0], crowd=[False, True])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": [0.5]}, r"a.png: labels must be \(G,\) integers .* from 0, not \(1,\) with 0.5 in it"),
        ({"labels": ["cat"]}, r"a.png: labels must be .* with 'cat' in it"),
        ({"labels": [2**40]}, r"a.png: labels must be .* with 1099511627776 in it"),
        ({"labels": 0}, r"a.png: labels must be .* not \(\) with 0 in it"),
        ({"boxes": [[0, 0, 5]]}, r"a.png: boxes must be \(G, 4\) numbers, .* not \(1, 3\)"),
        ({"boxes": [[0, 0], [5, 5]]}, r"a.png: boxes must be .* not \(2, 2\)"),
        ({"boxes": [0, 0, 5, 5]}, r"a.png: boxes must be .* not \(4,\)"),
        ({"boxes": [[0, 0, 5, 5], [1]]}, r"a.png: boxes must be .* all of one length"),
        ({"boxes": [["a", 0, 5, 5]]}, r"a.png: boxes must be \(G, 4\) numbers"),
        ({"size": (40, 60, 3)}, r"a.png: size must be \(height, width\) in pixels, not \(40, 60, 3\)"),
    ],
    ids=str,
)
def test_a_record_of_other_values_is_told(values, message):
    with pytest.raises(ValueError, match=message):
        ImageRecord(**{"path": "a.png", "size": (40, 60), "boxes": [[0, 0, 5, 5]], "labels": [0]} | values)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [ImageRecord("a.png", (9, 9), [], []), ImageRecord("b.png", (9, 9), [[0, 0, 5, 5]], [2])],
            "b.png: label 2 is no",
        ),
        (
            [ImageRecord("a.png", (9, 9), [[0, 0, 5, 5]], [-1])],
            r"a.png: label -1 .* from 0, so .*\(x, y\) allow 0 to 1",
        ),
        ([LabelledImage("c.png", 7)], "c.png: label 7 is no class"),
        (([], ("x",)), r"records\[0\] is a list: .*read_records returns two things"),
        ({"a": 1}, "records is a dict: expected a list"),
    ],
)
def test_labels_must_have_a_class(records, message):
    with pytest.raises(ValueError, match=message):
        require_labels(records, ("x", "y"))
    require_labels([ImageRecord("a.png", (9, 9), [[0, 0, 5, 5]] * 2, [0, 1])], ("x", "y"))


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


def test_of_classes_keeps_labels_and_order():
    found = Detections(np.eye(3, 4), [0.7, 0.5, 0.2], [1, 0, 1], ["a", "b"], "x.png", (4, 6))
    assert found.of_classes(["b"]).scores.tolist() == np.float32([0.7, 0.2]).tolist()
    assert (found.of_classes(["b"]).labels.tolist(), found.of_classes(["b"]).size) == ([1, 1], (4, 6))
    assert len(found.of_classes(["a", "b"])) == 3 and len(found.of_classes([])) == 0
    assert len(Detections([], [], [], ["a"]).of_classes(["a"])) == 0


def test_detections_read_well():
    boxes = np.zeros((4, 4))
    found = Detections(boxes, [0.984, 0.7, 0.6, 0.5], [1, 0, 1, 1], ["person", "car"], "in/a.jpg")
    assert repr(found) == "Detections(in/a.jpg: 3 x car, 1 x person; best 0.98)"
    assert repr(found.above(1)) == "Detections(in/a.jpg: nothing)"
    assert repr(Detections(boxes[:1], [0.5], [0], ["a"])) == "Detections(1 x a; best 0.50)"
    assert repr([Detections([], [], [], ["a"])]) == "[Detections(nothing)]"


def test_a_table_of_detections_has_the_columns_of_the_csv(tmp_path):
    found = Detections([[0, 0, 6, 4], [1, 2, 3, 4]], [0.75, 0.5], [1, 0], ["a", "b"], "x.png")
    table = found.to_pandas()
    assert table.values.tolist() == [["x.png", 0, 0, 6, 4, 0.75, "b"], ["x.png", 1, 2, 3, 4, 0.5, "a"]]
    header = write_csv(tmp_path / "d.csv", [found]).read_text().partition("\n")[0]
    assert list(table) == header.split(",")
    empty = Detections([], [], [], ["a"], "x.png").to_pandas()
    assert (list(empty), len(empty)) == (list(table), 0)


def test_plot_draws_into_the_picture(draw_picture):
    path = draw_picture("a.png", 80, 120)
    image = cv2.imread(str(path))[:, :, ::-1]
    found = Detections([[10, 30, 60, 70]], [0.9], [0], ["a"], str(path))
    drawn = found.plot()
    assert (drawn.shape, drawn.dtype) == ((80, 120, 3), np.uint8)
    np.testing.assert_array_equal(drawn, draw_detections(image, found))
    assert (drawn != image).any()
    for given in (path, str(path), image):
        np.testing.assert_array_equal(Detections([[10, 30, 60, 70]], [0.9], [0], ["a"]).plot(given), drawn)
    with pytest.raises(ValueError, match=r"come from an array: give the picture, as in detections.plot\(image\)"):
        Detections([], [], [], ["a"]).plot()
    with pytest.raises(ValueError, match=r"missing.png: cannot read"):
        Detections([], [], [], ["a"], "missing.png").plot()


def test_the_size_of_a_picture_is_kept():
    assert Detections([], [], [], ["a"], "x.png", np.array([4, 6])).above(0.5).size == (4, 6)
    assert Detections([], [], [], ["a"]).size is None


def test_lengths_of_detections_must_agree():
    with pytest.raises(ValueError, match=r"record: \{'boxes': 1, 'scores': 2, 'labels': 1\} must have the same length"):
        Detections([[0, 0, 6, 4]], [0.9, 0.8], [0], ["a"])


def test_lines_stay_with_their_boxes_without_crowds():
    boxes, flags = [[0, 0, 5, 5], [1, 1, 6, 6], [2, 2, 7, 7]], [False, True, False]
    record = ImageRecord("a.png", (20, 30), boxes, [0, 1, 2], crowd=flags, source="a.txt", lines=np.array([4, 5, 9]))
    assert record.without_crowds().lines.tolist() == [4, 9]
    assert record.without_crowds().source == "a.txt"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat", "a\nb"), r"'a\\nb' holds '\\n'"),
        (("a\x00b",), "control character"),
        (("a\u2028b",), "line break"),
        (("a\udcff",), "half a letter"),
        (("",), "called '': give it a name"),
        (("\t ",), "give it a name"),
        ((), "one or more distinct"),
        (("a", "a"), "one or more distinct"),
    ],
)
def test_class_names_that_no_file_gives_back_are_refused(names, words):
    with pytest.raises(ValueError, match=words) as error:
        require_class_names(names)
    assert "\n" not in str(error.value)


def test_class_names_of_any_language_and_number_are_taken():
    names = [f"größe, 大 \u200d{number}" for number in range(20_000)]
    assert require_class_names(names) == tuple(names)
