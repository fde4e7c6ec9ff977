import json
from pathlib import Path

import numpy as np
import pytest

from frcnn.evaluation import evaluate
from frcnn.evaluation.coco import coco_scores
from frcnn.records import Detections, ImageRecord

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "eval_coco_pycocotools.json").read_text())
FROM_BOXES = ["torchmetrics_4_images", "mmdet_perfect", "synthetic_30_images_with_crowd"]
BOX, OTHER, FAR = [0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 70, 70]


def record(boxes, labels=None, **flags):
    return ImageRecord("a.jpg", (100, 100), boxes, [0] * len(boxes) if labels is None else labels, **flags)


def detections(boxes, labels=None, class_names=("cell",)):
    """Best first: 0.9, 0.8, ..."""
    labels = [0] * len(boxes) if labels is None else labels
    return Detections(boxes, 0.9 - 0.1 * np.arange(len(boxes)), labels, class_names)


def coco(one, found, class_names=("cell",)):
    return evaluate([one], [found], class_names, "coco")


def read_golden(case):
    """Records and detections of a case with rows of (x1, y1, x2, y2, class[, crowd or score])."""
    ids = sorted(map(int, case["result"]["per_category"]))
    class_names = tuple(map(str, ids))
    records, found = [], []
    for picture, rows in (case.get("gt_xyxy_cls") or case["gt_xyxy_cls_crowd"]).items():
        boxes, labels, crowd = [row[:4] for row in rows], [ids.index(row[4]) for row in rows], [row[5:] for row in rows]
        records.append(ImageRecord(picture, (2000, 2000), boxes, labels, crowd=[row == [1] for row in crowd]))
        rows = case["det_xyxy_cls_score"][picture]
        boxes, labels, scores = [row[:4] for row in rows], [ids.index(row[4]) for row in rows], [row[5] for row in rows]
        found.append(Detections(boxes, scores, labels, class_names, picture))
    return records, found, class_names


def assert_golden(case, stats, per_class):
    """Undefined is -1 among the stats of pycocotools, null among the categories."""
    expected = {name: np.nan if value == -1 else value for name, value in case["result"]["stats"].items()}
    assert stats == pytest.approx(expected, abs=1e-6, nan_ok=True)
    categories = [case["result"]["per_category"][name] for name in sorted(case["result"]["per_category"], key=int)]
    expected = np.array([[row[name] for row in categories] for name in ("AP", "AP50", "AR100")], np.float64)
    np.testing.assert_allclose(per_class, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FROM_BOXES)
def test_equals_pycocotools(name):
    result = evaluate(*read_golden(GOLDEN[name]), "coco")
    assert_golden(GOLDEN[name], result.stats, [result.ap, result.ap50, result.ar100])
    assert result.mean_ap == result.stats["AP"]


def test_the_golden_pictures_have_crowds_and_empty_ones():
    records, _, _ = read_golden(GOLDEN[FROM_BOXES[-1]])
    assert sum(record.crowd.sum() for record in records) > 0
    assert any(len(record.boxes) == 0 for record in records)


def test_equals_pycocotools_on_cocos_own_dicts():
    case = GOLDEN["detectron2_2_images"]
    results = [
        {"image_id": int(picture), "category_id": row[4], "bbox": [*row[:2], row[2] - row[0], row[3] - row[1]]}
        | {"score": row[5]}
        for picture, rows in case["det_xyxy_cls_score"].items()
        for row in rows
    ]
    before = json.dumps([case["gt"], results])
    assert_golden(case, *coco_scores(case["gt"], results))
    assert json.dumps([case["gt"], results]) == before


@pytest.mark.parametrize(("area", "size"), [({}, "medium"), ({"area": 900}, "small"), ({"area": 9300}, "large")])
def test_the_area_is_that_of_the_box_unless_the_ground_truth_says_otherwise(area, size):
    """40 x 40 = 1600 lies between 32**2 = 1024 and 96**2 = 9216."""
    found = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 40, 40], "score": 1}
    truth = {"images": [{"id": 0}], "categories": [{"id": 0}], "annotations": [{**found, **area}]}
    stats, _ = coco_scores(truth, [found])
    assert [name for name in ("small", "medium", "large") if stats[f"AP_{name}"] == pytest.approx(1)] == [size]


def test_one_box_found_at_three_of_ten_thresholds():
    """62 of 100 square pixels: found at 0.50, 0.55 and 0.60. A detection of 62 and a box of 100 are both small."""
    result = coco(record([BOX]), detections([[0, 0, 10, 6.2]]))
    assert (result.ap[0], result.ap50[0], result.ar100[0]) == pytest.approx((0.3, 1.0, 0.3))
    assert result.stats["AP75"] == 0.0
    assert result.stats["AP_small"] == pytest.approx(0.3)
    assert np.isnan(result.stats["AP_large"])


def test_a_detection_whose_best_box_is_taken_may_find_another():
    """Shifted by 2 of 10: IoU 8 / 12 with the box that is taken, 7 / 13 with the free one, found at 0.5 alone."""
    one, found = record([BOX, [5, 0, 15, 10]]), detections([BOX, [2, 0, 12, 10]])
    assert coco(one, found).ap50[0] == pytest.approx(1.0)
    assert evaluate([one], [found], ("cell",)).ap[0] == 0.5


def test_a_crowd_takes_any_number_of_detections_inside_it():
    """The three before the true one would make its precision 1/4; they lie in the crowd, at an IoU of 1/16 with it."""
    inside = [[20, 20, 30, 30], [40, 20, 50, 30], [40, 40, 50, 50]]
    one = record([BOX, [20, 20, 60, 60]], crowd=[False, True])
    assert coco(one, detections([*inside, BOX])).ap[0] == pytest.approx(1.0)
    assert coco(record([BOX]), detections([*inside, BOX])).ap[0] == pytest.approx(0.25)
    assert coco(one, detections([*inside, BOX])).num_ground_truth[0] == 1


def test_a_crowd_of_another_class_forgives_nothing():
    one = record([BOX, OTHER], [0, 1], crowd=[False, True])
    result = coco(one, detections([OTHER, BOX], class_names=("a", "b")), ("a", "b"))
    np.testing.assert_allclose(result.ap, [0.5, np.nan])


def test_a_difficult_box_is_neither_rewarded_nor_punished():
    """Found: left out. A quarter of it, inside: false, unlike in a crowd. Found again: false, like any second one."""
    one = record([BOX, OTHER], difficult=[False, True])
    assert coco(one, detections([OTHER, BOX])).ap[0] == pytest.approx(1.0)
    assert coco(one, detections([BOX])).ar100[0] == 1.0
    assert coco(one, detections([[20, 20, 25, 25], BOX])).ap[0] == pytest.approx(1 / 2)
    assert coco(one, detections([OTHER, OTHER, BOX])).ap[0] == pytest.approx(1 / 2)
    assert coco(one, detections([OTHER, BOX])).num_ground_truth[0] == 1
    assert np.isnan(coco(record([BOX], difficult=[True]), detections([BOX])).ap[0])


def test_without_ground_truth_nothing_is_defined():
    result = coco(record([BOX]), detections([BOX, FAR], [0, 1], ("cell", "ghost")), ("cell", "ghost"))
    np.testing.assert_allclose(result.ap, [1.0, np.nan])
    assert result.mean_ap == pytest.approx(1.0)
    for names in ((), ("cell",)):
        result = evaluate([], [], names, "coco")
        assert len(result.ap) == len(names) and np.isnan([*result.ap, result.mean_ap]).all()


def test_it_prints_nothing(capsys):
    coco(record([BOX]), detections([BOX]))
    assert capsys.readouterr() == ("", "")


def test_its_thresholds_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"iou_threshold is 0.7, but coco averages over 0.50 to 0.95"):
        evaluate([], [], (), "coco", 0.7)


def test_what_does_not_belong_together_is_named():
    with pytest.raises(ValueError, match="1 records but 0 detections"):
        evaluate([record([])], [], ("cell",), "coco")


def test_result_as_json_and_as_table():
    names = ("cell", "a longer name", "ghost")
    result = coco(record([BOX, OTHER], [0, 1]), detections([BOX], [0], names), names)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (plain["metric"], plain["mean_ap"], plain["stats"]["AR_100"]) == ("coco", pytest.approx(0.5), 0.5)
    assert plain["stats"]["AP_large"] is None and len(plain["stats"]) == 12
    row = {"name": "cell", "ap": 1.0, "ap50": 1.0, "ar100": 1.0, "num_ground_truth": 1, "num_detections": 1}
    assert plain["classes"][0] == pytest.approx(row)
    assert plain["classes"][2]["ap"] is None
    assert result.to_table().splitlines() == [
        "coco, AP and AR over IoU 0.50:0.05:0.95",
        "class          boxes  detections      AP    AP50   AR100",
        "--------------------------------------------------------",
        "cell               1           1  1.0000  1.0000  1.0000",
        "a longer name      1           0  0.0000  0.0000  0.0000",
        "ghost              0           0       -       -       -",
        "--------------------------------------------------------",
        "total, mean        2           1  0.5000  0.5000  0.5000",
        "",
        "AP        0.5000   AP50      0.5000   AP75      0.5000   AP_small  0.5000   AP_medium -        AP_large  -",
        "AR_1      0.5000   AR_10     0.5000   AR_100    0.5000   AR_small  0.5000   AR_medium -        AR_large  -",
    ]
