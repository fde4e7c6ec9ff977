"""Average precision as the Pascal VOC challenges define it.

Three steps, each a function of arrays: `best_overlaps` finds the ground truth that every detection means, picture by
picture; `match_detections` walks down the scores and decides which detections count; `precision_recall` with
`average_precision_07` or `average_precision_12` turns the decisions of one class into a number.

`G` and `D` count the boxes and detections of one picture in `best_overlaps`, of all pictures elsewhere.
"""

import os
from dataclasses import dataclass

import numpy as np

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found, one row per class.

    `precision`, `recall` and `score` describe one point of the curve, that of the best F1 (harmonic mean of precision
    and recall): with only the detections that score at least `score`, they are what a user gets.

    Attributes:
        class_names: tuple of K strings.
        ap: (K,) float64, average precision, 0..1; nan for a class without ground truth.
        num_ground_truth: (K,) int64, boxes that are not `difficult`.
        num_detections: (K,) int64, all detections, whatever became of them.
        precision, recall, score: (K,) float64, 0..1; precision and score are nan for a class never detected, all three
            for one without ground truth.
        curves: K arrays (3, D) float64: score, precision and recall after each detection of the class that counts, best
            score first; D is 0 for a class without ground truth.
        metric: "voc07" or "voc12".
        iou_threshold: lowest IoU of a match.
    """

    class_names: tuple
    ap: np.ndarray
    num_ground_truth: np.ndarray
    num_detections: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    score: np.ndarray
    curves: tuple
    metric: str
    iou_threshold: float

    @property
    def mean_ap(self):
        """Mean AP of the classes that have ground truth, 0..1; nan when none has."""
        defined = self.ap[~np.isnan(self.ap)]
        return float(defined.mean()) if len(defined) else float("nan")

    def to_dict(self):
        """The result as plain values that `json.dump` takes, without the curves: nan becomes None, a class one dict."""
        columns = ("ap", "num_ground_truth", "num_detections", "precision", "recall", "score")
        rows = zip(self.class_names, *(getattr(self, name).tolist() for name in columns), strict=True)
        return {
            "metric": self.metric,
            "iou_threshold": self.iou_threshold,
            "mean_ap": none_if_nan(self.mean_ap),
            "classes": [dict(zip(("name", *columns), map(none_if_nan, row), strict=True)) for row in rows],
        }

    def to_table(self):
        """The result as aligned text: a line per class, the mean last; "-" stands for what is not defined."""
        header = ("class", "boxes", "detections", "AP", "precision", "recall", "at score")
        rows = [header]
        for row in self.to_dict()["classes"]:
            fractions = (fraction(row[name]) for name in ("ap", "precision", "recall", "score"))
            rows.append((row["name"], str(row["num_ground_truth"]), str(row["num_detections"]), *fractions))
        totals = (str(self.num_ground_truth.sum()), str(self.num_detections.sum()))
        rows.append(("total, mAP", *totals, fraction(self.mean_ap), "", "", ""))
        title = f"{self.metric}, IoU >= {self.iou_threshold:g}; precision and recall at the score of the best F1"
        return f"{title}\n{ruled_table(rows)}"


def evaluate_voc(records, detections, class_names, metric, iou_threshold):
    """Compare the detections of some pictures with their ground truth (Everingham et al. 2010, section 4.2).

    A detection is compared with the one ground-truth box of its picture and class that it overlaps most. It is true
    when that IoU is at least `iou_threshold` and no better detection took the box, false otherwise, and left out when
    the box is `difficult` or a `crowd`. Among equal scores the order of the pictures decides, then that within one.

    Boxes are continuous and half-open, so the IoU has no "+ 1" pixel. VOC programs add it to 1-based inclusive boxes;
    of those, made half-open by the reader, the numbers here are the ones of py-faster-rcnn and rafaelpadilla's
    evaluator, and chainercv's but for the order of equal scores, which it reverses.

    Args:
        records, detections, class_names: see `frcnn.evaluation.evaluate`.
        metric: "voc12", the area under the precision envelope, or "voc07", the mean at 11 recalls.
        iou_threshold: lowest IoU of a match, above 0 and at most 1.

    Returns:
        EvaluationResult. A class with ground truth that was never detected has an AP of 0.

    Raises:
        ValueError: the lists do not belong together, a label has no name, or the metric or threshold is unknown.
    """
    if metric not in _AVERAGE_PRECISION:
        raise ValueError(f"metric {metric!r} is unknown: choose one of coco, {', '.join(sorted(_AVERAGE_PRECISION))}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}: it must be above 0 and at most 1")
    class_names = tuple(class_names)
    require_same_pictures(records, detections, class_names)

    gt_labels = _concatenate([record.labels for record in records], np.int32)
    difficult = _concatenate([record.difficult | record.crowd for record in records], bool)
    scores, labels, outcomes = _outcomes_by_score(records, detections, difficult, iou_threshold)

    table, curves = np.full((4, len(class_names)), np.nan), [np.zeros((3, 0))] * len(class_names)
    num_ground_truth = np.bincount(gt_labels[~difficult], minlength=len(class_names))
    by_label = np.argsort(labels, kind="stable")  # of each class in order of score; one pass, however many classes
    by_label = by_label[outcomes[by_label] != IGNORED]
    starts = np.searchsorted(labels[by_label], np.arange(len(class_names) + 1))
    for label in np.flatnonzero(num_ground_truth):
        counted = by_label[starts[label] : starts[label + 1]]
        precision, recall = precision_recall(outcomes[counted], num_ground_truth[label])
        table[0, label] = _AVERAGE_PRECISION[metric](precision, recall)
        table[1:, label] = _best_f1(precision, recall, scores[counted])
        curves[label] = np.stack([scores[counted], precision, recall])
    ap, best_precision, best_recall, best_score = table
    return EvaluationResult(
        class_names=class_names,
        ap=ap,
        num_ground_truth=num_ground_truth,
        num_detections=np.bincount(labels, minlength=len(class_names)),
        precision=best_precision,
        recall=best_recall,
        score=best_score,
        curves=tuple(curves),
        metric=metric,
        iou_threshold=float(iou_threshold),
    )


def best_overlaps(boxes, labels, gt_boxes, gt_labels):
    """Find the ground truth of its own class that each detection of one picture overlaps most.

    Args:
        boxes, labels: (D, 4) xyxy, any unit, and (D,) int.
        gt_boxes, gt_labels: (G, 4) in the same unit, of positive area, and (G,) int.

    Returns:
        overlaps: (D,) float64, the largest IoU, 0..1; of equal ones the first box is taken.
        indices: (D,) int64 into gt_boxes, -1 where the picture has no box of that class.
    """
    if not len(boxes) or not len(gt_boxes):
        return np.zeros(len(boxes)), np.full(len(boxes), -1)
    # float64, because a match at exactly the threshold must not hang on rounding.
    intersection, area, gt_area = areas(np.asarray(boxes, np.float64)[:, None], np.asarray(gt_boxes, np.float64))
    iou = intersection / (area + gt_area - intersection)
    iou[np.asarray(labels)[:, None] != np.asarray(gt_labels)] = -1.0
    indices = iou.argmax(axis=1)
    overlaps = iou[np.arange(len(iou)), indices]
    return overlaps.clip(0), np.where(overlaps < 0, -1, indices)


def areas(boxes, others):
    """Areas of what boxes share and of each box, for boxes (..., 4) xyxy of shapes that broadcast."""
    shared = _area(np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:]))
    return shared, _area(boxes[..., :2], boxes[..., 2:]), _area(others[..., :2], others[..., 2:])


def match_detections(overlaps, indices, difficult, iou_threshold):
    """Decide greedily, best score first, which detections are true.

    A ground-truth box is found once: whoever comes later and overlaps it most is false, even if another free box would
    do (the VOC kit's rule; COCO's differs). A difficult box never counts, however often it is found.

    Args:
        overlaps, indices: (D,) from `best_overlaps`, ordered by decreasing score; the indices of all pictures count
            through one list of ground truth. Classes need not be separated: a box has one.
        difficult: (G,) bool of that list.
        iou_threshold: lowest IoU of a match.

    Returns:
        (D,) int8: TRUE_POSITIVE, FALSE_POSITIVE or IGNORED, in the same order.
    """
    outcomes = np.full(len(overlaps), FALSE_POSITIVE, np.int8)
    matched = np.flatnonzero((indices >= 0) & (overlaps >= iou_threshold))
    first = np.unique(indices[matched], return_index=True)[1]
    outcomes[matched[first]] = TRUE_POSITIVE
    outcomes[matched[difficult[indices[matched]]]] = IGNORED
    return outcomes


def precision_recall(outcomes, num_ground_truth):
    """The curve that one class runs through as the score threshold falls.

    Args:
        outcomes: (D,) TRUE_POSITIVE or FALSE_POSITIVE, by decreasing score, ignored ones taken out.
        num_ground_truth: boxes of the class that are not difficult, at least 1.

    Returns:
        precision, recall: (D,) float64 each, 0..1, after each detection.
    """
    true = np.cumsum(np.asarray(outcomes) == TRUE_POSITIVE)
    return true / np.arange(1, len(true) + 1), true / num_ground_truth


def average_precision_07(precision, recall):
    """Mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or a higher one (VOC 2007).

    Args:
        precision, recall: (D,) from `precision_recall`; D may be 0.

    Returns:
        float, 0..1; 0 when nothing was detected.
    """
    # Multiples of the double 0.1, as all VOC programs have them: a recall of exactly 3 / 10 falls short of the fourth,
    # 0.30000000000000004. With k / 10 the numbers would differ from the published ones.
    levels = np.arange(11) * 0.1
    reached = np.searchsorted(recall, levels, side="left")
    return float(np.append(_envelope(precision), 0.0)[reached].mean())


def average_precision_12(precision, recall):
    """Area under the curve after precision is made to fall as recall rises (VOC 2010 and later).

    Args:
        precision, recall: (D,) from `precision_recall`; D may be 0.

    Returns:
        float, 0..1; 0 when nothing was detected.
    """
    return float(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision)))


_AVERAGE_PRECISION = {"voc07": average_precision_07, "voc12": average_precision_12}


def _outcomes_by_score(records, detections, difficult, iou_threshold):
    """Scores, labels and outcomes of all detections, each (D,), ordered by decreasing score."""
    overlaps, indices, start = [], [], 0
    for record, found in zip(records, detections, strict=True):
        overlap, index = best_overlaps(found.boxes, found.labels, record.boxes, record.labels)
        overlaps.append(overlap)
        indices.append(np.where(index < 0, -1, index + start))
        start += len(record.boxes)
    scores = _concatenate([found.scores for found in detections], np.float32)
    order = np.argsort(-scores, kind="stable")
    labels = _concatenate([found.labels for found in detections], np.int32)[order]
    overlaps, indices = _concatenate(overlaps, np.float64)[order], _concatenate(indices, np.int64)[order]
    return scores[order], labels, match_detections(overlaps, indices, difficult, iou_threshold)


def _best_f1(precision, recall, scores):
    """(precision, recall, score) where F1 is largest, over the points that a score threshold can reach."""
    if not len(scores):
        return np.nan, 0.0, np.nan
    reachable = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    precision, recall, scores = precision[reachable], recall[reachable], scores[reachable]
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    best = f1.argmax()
    return precision[best], recall[best], scores[best]


def _area(top_left, bottom_right):
    return np.prod((bottom_right - top_left).clip(0), axis=-1)


def _envelope(precision):
    return np.maximum.accumulate(precision[::-1])[::-1]


def require_same_pictures(records, detections, class_names):
    """Raise a ValueError unless the detections are of these pictures, in this order, and all labels have a name."""
    if len(records) != len(detections):
        raise ValueError(
            f"{len(records)} records but {len(detections)} detections: give one per record, in the same order"
        )
    for index, (record, found) in enumerate(zip(records, detections, strict=True)):
        if found.path and found.path != record.path and os.path.normpath(found.path) != os.path.normpath(record.path):
            raise ValueError(
                f"detections {index} are of {found.path} but record {index} is {record.path}: bring them into one order"
            )
        if found.class_names != class_names:
            raise ValueError(
                f"detections {index} ({record.path}) name the classes {found.class_names}, "
                f"the evaluation {class_names}: both must be the same, in the same order"
            )
        for kind, labels in (("record", record.labels), ("detections", found.labels)):
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
                raise ValueError(
                    f"{kind} {index} ({record.path}) has labels {labels.min()}..{labels.max()}: "
                    f"labels count from 0, so {len(class_names)} class names allow 0..{len(class_names) - 1}"
                )


def _concatenate(arrays, dtype):
    return np.concatenate([np.zeros(0, dtype), *arrays])


def none_if_nan(value):
    """The value, but None for nan, which JSON does not have."""
    return None if value != value else value


def fraction(value):
    """A number of a table with four decimals; "-" for None and nan."""
    return "-" if value is None or value != value else f"{value:.4f}"


def ruled_table(rows):
    """Rows of strings as aligned text, names to the left and numbers to the right, a rule after the first row and
    before the last."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])] for name, *numbers in rows]
    header, *lines, last = ("  ".join(row).rstrip() for row in cells)
    rule = "-" * max(map(len, (header, *lines, last)))
    return "\n".join([header, rule, *lines, rule, last])
