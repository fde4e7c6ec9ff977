"""Average precision and recall as COCO defines them, counted by pycocotools."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np

from frcnn.evaluation.voc import fraction, none_if_nan, require_same_pictures, ruled_table

_AP_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_AR_NAMES = ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


@dataclass(frozen=True, eq=False)
class CocoResult:
    """COCO's twelve numbers, and three of them per class.

    Attributes:
        class_names: tuple of K strings.
        stats: dict of 12 floats, 0..1, nan where nothing is defined. AP, AP50 and AP75: average precision over the IoU
            thresholds 0.50, 0.55, ..., 0.95, at 0.50 and at 0.75. AR_1, AR_10 and AR_100: the recall over the ten
            thresholds with so many detections of a class a picture at most. `_small`, `_medium`, `_large`: AP and
            AR_100 of boxes under 32**2, between, and over 96**2 pixels.
        ap, ap50, ar100: (K,) float64, 0..1; nan for a class without ground truth.
        num_ground_truth: (K,) int64, boxes that are neither `difficult` nor a `crowd`.
        num_detections: (K,) int64, all detections, also those beyond the best 100 of a picture.
    """

    class_names: tuple
    stats: dict
    ap: np.ndarray
    ap50: np.ndarray
    ar100: np.ndarray
    num_ground_truth: np.ndarray
    num_detections: np.ndarray

    @property
    def mean_ap(self):
        """COCO's AP, 0..1; nan without ground truth."""
        return self.stats["AP"]

    def to_dict(self):
        """The result as plain values that `json.dump` takes: nan becomes None, a class becomes one dict."""
        columns = ("ap", "ap50", "ar100", "num_ground_truth", "num_detections")
        rows = zip(self.class_names, *(getattr(self, name).tolist() for name in columns), strict=True)
        return {
            "metric": "coco",
            "mean_ap": none_if_nan(self.mean_ap),
            "stats": {name: none_if_nan(value) for name, value in self.stats.items()},
            "classes": [dict(zip(("name", *columns), map(none_if_nan, row), strict=True)) for row in rows],
        }

    def to_table(self):
        """The result as aligned text: a line per class, their mean, the twelve numbers; "-" for what is not defined."""
        rows = [("class", "boxes", "detections", "AP", "AP50", "AR100")]
        for row in self.to_dict()["classes"]:
            fractions = (fraction(row[name]) for name in ("ap", "ap50", "ar100"))
            rows.append((row["name"], str(row["num_ground_truth"]), str(row["num_detections"]), *fractions))
        totals = (str(self.num_ground_truth.sum()), str(self.num_detections.sum()))
        rows.append(("total, mean", *totals, *(fraction(self.stats[name]) for name in ("AP", "AP50", "AR_100"))))
        numbers = [
            "   ".join(f"{name:<9} {fraction(self.stats[name]):<6}" for name in names).rstrip()
            for names in (_AP_NAMES, _AR_NAMES)
        ]
        title = "coco, AP and AR over IoU 0.50:0.05:0.95"
        return "\n".join([title, ruled_table(rows), "", *numbers])


def evaluate_coco(records, detections, class_names):
    """Compare the detections of some pictures with their ground truth as COCO does (Lin et al. 2014).

    Unlike VOC's rule, a detection whose best box is taken may still find another free one. A `crowd` box leaves out all
    detections that lie in it, measured by the share of the detection that it covers; a `difficult` box leaves out one
    detection, matched by IoU. The area of a ground truth is that of its box: COCO's own files give the area of the
    outline, for which `coco_scores` takes them as they are.

    Args:
        records, detections, class_names: see `frcnn.evaluation.evaluate`.

    Returns:
        CocoResult.

    Raises:
        ValueError: the lists do not belong together, or a label has no name.
    """
    class_names = tuple(class_names)
    require_same_pictures(records, detections, class_names)
    truth = list(_entries(records, iscrowd="crowd", difficult="difficult"))
    found = list(_entries(detections, score="scores"))
    pictures = {
        "images": [{"id": index} for index in range(len(records))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
    }
    stats, (ap, ap50, ar100) = coco_scores({**pictures, "annotations": truth}, found)
    counted = [entry["category_id"] for entry in truth if not (entry["iscrowd"] or entry["difficult"])]
    num_ground_truth, num_detections = (
        np.bincount(np.array(labels, np.int64), minlength=len(class_names))
        for labels in (counted, [entry["category_id"] for entry in found])
    )
    return CocoResult(class_names, stats, ap, ap50, ar100, num_ground_truth, num_detections)


def coco_scores(ground_truth, results):
    """COCO's twelve numbers of a COCO results file.

    Args:
        ground_truth: dict as in COCO's instances files: "images" and "categories" with their "id", and "annotations"
            with "image_id", "category_id", "bbox" [x, y, width, height] in pixels; where they have them, also "area",
            "iscrowd", and "difficult", which COCO's do not have.
        results: list of dicts with "image_id", "category_id", "bbox" and "score".

    Returns:
        stats: dict as in `CocoResult`.
        per_class: (3, K) float64, AP, AP50 and AR_100 of the categories by ascending id; nan without ground truth.
    """
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):
        """COCOeval leaves out crowd boxes alone: it sets "ignore" from "iscrowd", whatever the ground truth says."""

        def _prepare(self):
            super()._prepare()
            for annotation in self.cocoGt.dataset["annotations"]:
                annotation["ignore"] = annotation["iscrowd"] or annotation.get("difficult", False)

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        truth, found = (_indexed(ground_truth, entries) for entries in (ground_truth["annotations"], results))
        evaluator, parts = Evaluator(truth, found, "bbox"), []
        # A class at a time, and only in its pictures: all pictures times all classes would be too many of thousands.
        for label in sorted(truth.cats) or [None]:
            evaluator.params.catIds = [] if label is None else [label]
            evaluator.params.imgIds = sorted({*truth.catToImgs.get(label, ()), *found.catToImgs.get(label, ())})
            evaluator.evaluate()
            evaluator.accumulate()
            parts.append(evaluator.eval)
        for name, axis in (("precision", 2), ("recall", 1)):
            evaluator.eval[name] = np.concatenate([part[name] for part in parts], axis=axis)
        evaluator.summarize()
    # (thresholds, recalls, classes) and (thresholds, classes) of all areas and 100 detections; -1 is not defined
    precision, recall = evaluator.eval["precision"][..., 0, -1], evaluator.eval["recall"][..., 0, -1]
    per_class = np.stack([precision.mean(axis=(0, 1)), precision[0].mean(axis=0), recall.mean(axis=0)])
    stats = dict(zip((*_AP_NAMES, *_AR_NAMES), _defined(evaluator.stats).tolist(), strict=True))
    return stats, _defined(per_class)


def _entries(pictures, **columns):
    """COCO's dict of each box of records or detections; `columns` are further keys and the fields they come from."""
    for image_id, picture in enumerate(pictures):
        boxes = picture.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        fields = (boxes, picture.labels, *(getattr(picture, field) for field in columns.values()))
        for values in zip(*(field.tolist() for field in fields), strict=True):
            yield dict(zip(("bbox", "category_id", *columns), values, strict=True), image_id=image_id)


def _indexed(ground_truth, entries):
    """A pycocotools.COCO of copies of some entries, numbered from 1: to COCOeval, a match with number 0 is none."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        **ground_truth,
        "annotations": [
            {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry, "id": number}
            for number, entry in enumerate(entries, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _defined(values):
    return np.where(values < 0, np.nan, values)
