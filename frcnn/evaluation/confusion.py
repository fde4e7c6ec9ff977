"""Which class is taken for which."""

import numpy as np

from frcnn.evaluation.voc import (
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    areas,
    best_overlaps,
    match_detections,
    require_same_pictures,
)


def confusion_matrix(records, detections, class_names, iou_threshold=0.5, score_threshold=0.5):
    """Count what became of every box, and where every detection came from.

    Only detections that score at least `score_threshold` take part. They are matched as in `evaluate_voc`, but without
    regard to classes: best score first, each is compared with the one box that it overlaps most; when that IoU is at
    least `iou_threshold` and the box is still free, the pair counts in the row of the box's class and the column of the
    detection's. A detection without a pair counts as background taken for its class, a box without one as missed.

    A `difficult` box and a `crowd` count in no row; nor does a detection whose best box is one of them, or of which a
    crowd covers at least `iou_threshold`.

    Args:
        records, detections, class_names: see `frcnn.evaluation.evaluate`.
        iou_threshold: lowest IoU of a pair, above 0 and at most 1.
        score_threshold: lowest score of a detection that counts, 0..1.

    Returns:
        (K + 1, K + 1) int64. Rows: true classes, then background; columns: detected classes, then missed. The last cell
        is 0: background that nothing was found in cannot be counted.

    Raises:
        ValueError: the lists do not belong together, a label has no name, or a threshold is out of range.
    """
    if not (0 < iou_threshold <= 1 and 0 <= score_threshold <= 1):
        raise ValueError(
            f"iou_threshold is {iou_threshold}, score_threshold {score_threshold}: both must be 0..1, the first not 0"
        )
    class_names = tuple(class_names)
    require_same_pictures(records, detections, class_names)
    background = missed = len(class_names)
    matrix = np.zeros((len(class_names) + 1,) * 2, np.int64)
    for record, found in zip(records, detections, strict=True):
        order = np.argsort(-found.scores, kind="stable")
        order = order[found.scores[order] >= score_threshold]
        boxes, labels = found.boxes[order], found.labels[order]
        left_out = record.difficult | record.crowd
        overlaps, indices = best_overlaps(boxes, np.zeros_like(labels), record.boxes, np.zeros_like(record.labels))
        outcomes = match_detections(overlaps, indices, left_out, iou_threshold)
        paired = outcomes == TRUE_POSITIVE
        false = (outcomes == FALSE_POSITIVE) & ~_in_crowd(boxes, record.boxes[record.crowd], iou_threshold)
        never_found = np.setdiff1d(np.flatnonzero(~left_out), indices[paired])
        np.add.at(matrix, (record.labels[indices[paired]], labels[paired]), 1)
        np.add.at(matrix, (background, labels[false]), 1)
        np.add.at(matrix, (record.labels[never_found], missed), 1)
    return matrix


def _in_crowd(boxes, crowds, threshold):
    """(D,) bool: whether one of the crowds covers at least this share of a box."""
    if not len(crowds):
        return np.zeros(len(boxes), bool)
    intersection, area, _ = areas(boxes[:, None].astype(np.float64), crowds.astype(np.float64))
    return (intersection >= threshold * area).any(axis=1) & (area[:, 0] > 0)
