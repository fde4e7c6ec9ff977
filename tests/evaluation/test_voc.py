import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.evaluation import evaluate
from frcnn.evaluation.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    average_precision_07,
    average_precision_12,
    best_overlaps,
    match_detections,
    precision_recall,
)
from frcnn.records import Detections, ImageRecord
from tests.oracles import voc as oracle

GOLDEN = Path(__file__).parent.parent / "golden"
SUFFIX = {"voc12": "all_points", "voc07": "voc07_11point"}


def record(boxes, labels=None, difficult=None, path="a.jpg"):
    labels = np.zeros(len(boxes)) if labels is None else labels
    return ImageRecord(path, (100, 100), np.reshape(boxes, (-1, 4)), labels, difficult)


def detections(boxes, scores, labels=None, class_names=("cell",), path=""):
    labels = np.zeros(len(boxes)) if labels is None else labels
    return Detections(boxes, scores, labels, class_names, path)


def read_golden(name):
    """The pictures with their inclusive pixel boxes made half-open, as the VOC reader does."""
    golden = json.loads((GOLDEN / name).read_text())
    extra = {row[0] for rows in golden["detections"].values() for row in rows} - set(golden["classes"])
    class_names = (*golden["classes"], *sorted(extra))
    records, found = [], []
    for picture, rows in golden["ground_truth"].items():
        labels = [class_names.index(row[0]) for row in rows]
        records.append(ImageRecord(picture, (2000, 2000), half_open([row[1:] for row in rows]), labels))
        rows = sorted(golden["detections"][picture], key=lambda row: -row[1])
        labels, scores = [class_names.index(row[0]) for row in rows], [row[1] for row in rows]
        found.append(Detections(half_open([row[2:] for row in rows]), scores, labels, class_names, picture))
    return golden, records, found, class_names


def half_open(boxes):
    return np.add(np.reshape(boxes, (-1, 4)), [0, 0, 1, 1])


def reversed_order(records, found):
    turned = [Detections(f.boxes[::-1], f.scores[::-1], f.labels[::-1], f.class_names, f.path) for f in found]
    return records[::-1], turned[::-1]


# The three programs agree on the 85 pictures (494 different scores). On the 7 pictures three pairs of detections have
# equal scores, which chainercv takes from the last picture to the first: it differs at IoU 0.3 (see below).
@pytest.mark.parametrize("metric", ["voc07", "voc12"])
@pytest.mark.parametrize("program", ["girshick_voc_eval", "rafaelpadilla", "chainercv"])
@pytest.mark.parametrize("name", ["eval_cartucho85.json", "eval_voc_rafaelpadilla7.json"])
def test_equals_three_programs_on_real_pictures(name, program, metric):
    golden, records, found, class_names = read_golden(name)
    if program == "chainercv":
        records, found = reversed_order(records, found)
    thresholds = [key for key in golden["results"] if key.startswith("iou=")]
    assert len(thresholds) == 2
    for key in thresholds:
        expected = golden["results"][key][f"{program}_{SUFFIX[metric]}"]
        result = evaluate(records, found, class_names, metric, float(key.removeprefix("iou=")))
        ap = dict(zip(class_names, result.ap, strict=True))
        assert {name: ap[name] for name in expected["ap"]} == pytest.approx(expected["ap"], abs=1e-6)
        assert result.mean_ap == pytest.approx(expected["map"], abs=1e-6)
        # Eight classes of the 85 pictures are detected but never annotated: nan, and not in the mean.
        assert np.isnan([ap[name] for name in class_names if name not in expected["ap"]]).all()


@pytest.mark.parametrize(
    ("metric", "ours", "chainercvs"), [("voc12", 0.245687, 0.223464), ("voc07", 0.268398, 0.238095)]
)
def test_chainercv_differs_on_the_seven_pictures_by_the_order_of_equal_scores(metric, ours, chainercvs):
    golden, records, found, class_names = read_golden("eval_voc_rafaelpadilla7.json")
    assert golden["published"]["iou=0.3"][SUFFIX[metric]] == pytest.approx(ours, abs=1e-4)
    assert evaluate(records, found, class_names, metric, 0.3).mean_ap == pytest.approx(ours, abs=1e-6)
    backwards = evaluate(*reversed_order(records, found), class_names, metric, 0.3)
    assert backwards.mean_ap == pytest.approx(chainercvs, abs=1e-6)


def test_inclusive_boxes_left_as_they_are_give_other_numbers():
    """Without the reader's conversion a side is a pixel shorter, and a chair no longer reaches IoU 0.5."""
    golden = json.loads((GOLDEN / "eval_cartucho85.json").read_text())
    _, records, found, class_names = read_golden("eval_cartucho85.json")
    narrow = [0, 0, -1, -1]
    records = [ImageRecord(r.path, r.size, r.boxes + narrow, r.labels) for r in records]
    found = [Detections(f.boxes + narrow, f.scores, f.labels, class_names, f.path) for f in found]
    ap = dict(zip(class_names, evaluate(records, found, class_names).ap, strict=True))
    expected = golden["results"]["iou=0.5"]["chainercv_all_points"]["ap"]
    differing = [name for name, value in expected.items() if abs(ap[name] - value) > 1e-6]
    assert differing == ["chair"]
    assert ap["chair"] == pytest.approx(0.533025, abs=1e-6)


def test_three_classes_in_two_pictures():
    """The numbers of chainercv's own test, boxes written xyxy.

    Class 0 has 2 boxes; its detections are false, true, false: recall 0, 1/2, 1/2 at precision 0, 1/2, 1/3. Area
    1/2 * 1/2; the recalls 0 to 0.5 are six of eleven at 1/2. Class 2: false, then true: 1/2 either way.
    """
    names = ("a", "b", "c")
    records = [record([[0, 0, 1, 1], [0, 1, 4, 4]], [0, 0]), record([[2, 2, 3, 3]], [2])]
    found = [
        detections([[4, 0, 5, 1], [0, 0, 1, 1]], [1, 0.9], [0, 0], names),
        detections([[5, 5, 7, 7], [0, 0, 2, 2], [2, 2, 3, 3]], [0.8, 0.7, 0.6], [2, 0, 2], names),
    ]
    np.testing.assert_allclose(evaluate(records, found, names, "voc12", 0.4).ap, [0.25, np.nan, 0.5])
    np.testing.assert_allclose(evaluate(records, found, names, "voc07", 0.4).ap, [3 / 11, np.nan, 0.5])


def test_best_overlaps_by_hand():
    """Both boxes are 10 x 10; shifted by 5 they share 50 of 150, by 2 they share 80 of 120."""
    gt_boxes, gt_labels = [[0, 0, 10, 10], [7, 0, 17, 10], [5, 0, 15, 10]], [0, 0, 1]
    boxes = [[5, 0, 15, 10], [5, 0, 15, 10], [50, 50, 60, 60], [0, 0, 10, 10]]
    overlaps, indices = best_overlaps(boxes, [0, 1, 0, 2], gt_boxes, gt_labels)
    np.testing.assert_allclose(overlaps, [80 / 120, 1, 0, 0])
    assert indices.tolist() == [1, 2, 0, -1]


@pytest.mark.parametrize(("num_boxes", "num_gt"), [(0, 0), (0, 2), (3, 0)])
def test_best_overlaps_of_nothing(num_boxes, num_gt):
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (max(num_boxes, num_gt), 1))
    overlaps, indices = best_overlaps(boxes[:num_boxes], np.zeros(num_boxes), boxes[:num_gt], np.zeros(num_gt))
    assert overlaps.tolist() == [0.0] * num_boxes
    assert indices.tolist() == [-1] * num_boxes


def test_an_inverted_or_empty_detection_overlaps_nothing():
    boxes = [[10, 10, 0, 0], [3, 3, 3, 3]]
    assert best_overlaps(boxes, [0, 0], [[0, 0, 10, 10]], [0])[0].tolist() == [0.0, 0.0]


def test_a_box_is_found_once_and_a_difficult_one_never_counts():
    overlaps = np.array([0.6, 0.9, 0.8, 0.7, 0.49, 0.0, 0.5])
    indices = np.array([0, 0, 1, 1, 2, -1, 2])
    outcomes = match_detections(overlaps, indices, np.array([False, True, False]), 0.5)
    # The better-scored 0.6 takes box 0 before the 0.9; box 1 is difficult; exactly 0.5 is a match.
    expected = [TRUE_POSITIVE, FALSE_POSITIVE, IGNORED, IGNORED, FALSE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE]
    assert outcomes.tolist() == expected


def test_a_second_detection_of_a_box_does_not_fall_to_its_neighbour():
    """Shifted by 2 of 10: IoU 8 / 12 with the box that is taken, 7 / 13 with the free one."""
    records = [record([[0, 0, 10, 10], [5, 0, 15, 10]])]
    found = [detections([[0, 0, 10, 10], [2, 0, 12, 10]], [0.9, 0.8])]
    result = evaluate(records, found, ("cell",))
    assert result.ap[0] == 0.5
    assert result.num_detections[0] == 2


def test_difficult_boxes_are_neither_rewarded_nor_punished():
    box, other = [0, 0, 10, 10], [20, 20, 30, 30]
    with_difficult = [record([box, other], difficult=[False, True])]
    found = [detections([other, other, box], [0.9, 0.8, 0.7])]
    result = evaluate(with_difficult, found, ("cell",))
    assert (result.ap[0], result.num_ground_truth[0], result.num_detections[0]) == (1.0, 1, 3)
    assert (result.precision[0], result.recall[0]) == (1.0, 1.0)
    assert np.isnan(evaluate([record([box], difficult=[True])], [detections([box], [0.9])], ("cell",)).ap[0])


def test_a_crowd_counts_as_difficult():
    box, other = [0, 0, 10, 10], [20, 20, 30, 30]
    records = [ImageRecord("a.jpg", (100, 100), [box, other], [0, 0], None, [False, True])]
    result = evaluate(records, [detections([other, box], [0.9, 0.8])], ("cell",))
    assert (result.ap[0], result.num_ground_truth[0]) == (1.0, 1)


def test_curves_hold_every_detection_that_counts():
    """Found, false, difficult, found: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1; the second class has no box."""
    box, other, difficult, far = [[x, 0, x + 10, 10] for x in (0, 20, 40, 60)]
    records = [record([box, other, difficult], difficult=[False, False, True])]
    found = [detections([box, far, difficult, other, far], [1, 0.75, 0.5, 0.25, 0.1], [0, 0, 0, 0, 1], ("a", "b"))]
    curve, none = evaluate(records, found, ("a", "b")).curves
    np.testing.assert_allclose(curve, [[1, 0.75, 0.25], [1, 1 / 2, 2 / 3], [1 / 2, 1 / 2, 1]])
    assert none.shape == (3, 0)


@pytest.mark.parametrize("metric", ["voc07", "voc12", "coco"])
def test_a_class_never_detected_scores_zero(metric):
    """keras-frcnn gave it 1.0."""
    result = evaluate([record([[0, 0, 10, 10]])], [detections([], [])], ("cell",), metric)
    assert result.ap.tolist() == [0.0]
    assert result.mean_ap == 0.0


def test_a_class_never_detected_has_a_recall_but_no_precision():
    result = evaluate([record([[0, 0, 10, 10]])], [detections([], [])], ("cell",))
    assert result.recall.tolist() == [0.0]
    assert np.isnan(result.precision[0])


def test_a_class_without_ground_truth_is_left_out_of_the_mean():
    box = [0, 0, 10, 10]
    found = [detections([box, box], [0.9, 0.8], [0, 1], ("cell", "ghost"))]
    result = evaluate([record([box])], found, ("cell", "ghost"))
    np.testing.assert_array_equal(result.ap, [1.0, np.nan])
    assert result.mean_ap == 1.0


def test_without_pictures_nothing_is_defined():
    result = evaluate([], [], ("cell",))
    assert np.isnan(result.ap).all()
    assert np.isnan(result.mean_ap)


def test_precision_recall_and_both_averages_by_hand():
    """True, false, true of 4 boxes: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2.

    Envelope 1, 2/3, 2/3. Area 1/4 * 1 + 1/4 * 2/3. The recalls 0, .1, .2 get 1 and .3, .4, .5 get 2/3.
    """
    precision, recall = precision_recall([TRUE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE], 4)
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(recall, [1 / 4, 1 / 4, 1 / 2])
    assert average_precision_12(precision, recall) == pytest.approx(1 / 4 + 1 / 6)
    assert average_precision_07(precision, recall) == pytest.approx((3 + 3 * 2 / 3) / 11)


def test_eleven_points_miss_a_recall_of_exactly_three_tenths_as_other_programs_do():
    precision, recall = precision_recall([TRUE_POSITIVE] * 3, 10)
    assert average_precision_07(precision, recall) == pytest.approx(3 / 11)


def test_best_f1_is_a_point_that_a_score_threshold_reaches():
    """True 0.9, then a true and a false one at 0.5: "score >= 0.5" means all three, precision 2/3, recall 1."""
    records = [record([[0, 0, 10, 10], [20, 20, 30, 30]])]
    found = [detections([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], [0.9, 0.5, 0.5])]
    result = evaluate(records, found, ("cell",))
    assert (result.precision[0], result.recall[0], result.score[0]) == (2 / 3, 1.0, 0.5)


def test_equal_scores_keep_the_order_of_the_pictures():
    records = [record([[0, 0, 10, 10]]), record([])]
    hit, miss = detections([[0, 0, 10, 10]], [0.5]), detections([[0, 0, 10, 10]], [0.5])
    assert evaluate(records, [hit, miss], ("cell",)).ap[0] == 1.0
    assert evaluate(records[::-1], [miss, hit], ("cell",)).ap[0] == 0.5


@st.composite
def pictures(draw):
    """A few pictures on a coarse grid, so that overlaps, equal scores and thresholds met exactly all happen."""
    side = st.tuples(st.integers(0, 5), st.integers(1, 4)).map(lambda side: (side[0], side[0] + side[1]))
    box = st.tuples(side, side).map(lambda sides: [sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    truth = st.lists(st.tuples(box, st.integers(0, 1), st.booleans()), max_size=4)
    found = st.lists(st.tuples(box, st.integers(0, 1), st.sampled_from([0.25, 0.5, 0.75, 1.0])), max_size=6)
    records, results = [], []
    for rows, hits in draw(st.lists(st.tuples(truth, found), max_size=3)):
        hits = sorted(hits, key=lambda hit: -hit[2])
        records.append(record(*([row[i] for row in rows] for i in range(3))))
        boxes, labels, scores = ([hit[i] for hit in hits] for i in range(3))
        results.append(detections(boxes, scores, labels, ("a", "b")))
    return records, results


@settings(max_examples=150, deadline=None)
@given(pictures(), st.sampled_from(["voc07", "voc12"]), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_equals_nested_loops(data, metric, iou_threshold):
    records, found = data
    result = evaluate(records, found, ("a", "b"), metric, iou_threshold)
    for label in (0, 1):
        expected = oracle.average_precision(records, found, label, metric, iou_threshold)
        assert result.ap[label] == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)


def test_result_as_json_and_as_table():
    names = ("cell", "a longer name", "ghost")
    records = [record([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])]
    result = evaluate(records, [detections([[0, 0, 10, 10]], [0.75], [0], names)], names, "voc07")
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (plain["metric"], plain["iou_threshold"], plain["mean_ap"]) == ("voc07", 0.5, 0.5)
    assert plain["classes"][0] == {
        "name": "cell",
        "ap": 1.0,
        "num_ground_truth": 1,
        "num_detections": 1,
        "precision": 1.0,
        "recall": 1.0,
        "score": 0.75,
    }
    assert plain["classes"][2]["ap"] is None
    assert result.to_table().splitlines() == [
        "voc07, IoU >= 0.5; precision and recall at the score of the best F1",
        "class          boxes  detections      AP  precision  recall  at score",
        "---------------------------------------------------------------------",
        "cell               1           1  1.0000     1.0000  1.0000    0.7500",
        "a longer name      1           0  0.0000          -  0.0000         -",
        "ghost              0           0       -          -       -         -",
        "---------------------------------------------------------------------",
        "total, mAP         2           1  0.5000",
    ]


def test_paths_may_be_missing_or_spelled_differently():
    box = [[0, 0, 10, 10]]
    for path in ("", "./a.jpg"):
        assert evaluate([record(box)], [detections(box, [1], path=path)], ("cell",)).mean_ap == 1.0


@pytest.mark.parametrize(
    ("found", "arguments", "message"),
    [
        ([], {}, "2 records but 0 detections"),
        ([detections([], [], path="a.jpg"), detections([], [], path="c.jpg")], {}, "detections 1 are of c.jpg .*b.jpg"),
        ([detections([], []), detections([], [], class_names=("x",))], {}, r"detections 1 \(b.jpg\) name the classes"),
        ([detections([], []), detections([[0, 0, 1, 1]], [1], [1])], {}, r"detections 1 \(b.jpg\) has labels 1..1"),
        ([detections([], [])] * 2, {"metric": "map"}, "'map' is unknown: choose one of coco, voc07, voc12"),
        ([detections([], [])] * 2, {"iou_threshold": 50}, "iou_threshold is 50"),
    ],
)
def test_what_does_not_belong_together_is_named(found, arguments, message):
    records = [record([], path="a.jpg"), record([], path="b.jpg")]
    with pytest.raises(ValueError, match=message):
        evaluate(records, found, ("cell",), **arguments)


def test_a_record_label_without_a_name_is_named():
    with pytest.raises(
        ValueError, match=r"record 0 \(a.jpg\) has labels 3..3: labels count from 0, so 1 class names allow 0..0"
    ):
        evaluate([record([[0, 0, 1, 1]], [3])], [detections([], [])], ("cell",))
