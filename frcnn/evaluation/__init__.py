"""Comparing detections and predicted classes with ground truth, in numpy and pycocotools."""

from frcnn.evaluation.classification import ClassificationResult, evaluate_classification
from frcnn.evaluation.coco import CocoResult, evaluate_coco
from frcnn.evaluation.confusion import confusion_matrix
from frcnn.evaluation.voc import EvaluationResult, evaluate_voc

__all__ = [
    "ClassificationResult",
    "CocoResult",
    "EvaluationResult",
    "confusion_matrix",
    "evaluate",
    "evaluate_classification",
]


def evaluate(records, detections, class_names, metric="voc12", iou_threshold=0.5):
    """Compare the detections of some pictures with their ground truth.

    Args:
        records: list of ImageRecord.
        detections: list of Detections, of the same pictures in the same order; a path of "" matches any record.
        class_names: sequence of K strings, what labels index in both.
        metric: "voc12" or "voc07", average precision at one IoU (see `evaluate_voc`), or "coco", averaged over ten (see
            `evaluate_coco`).
        iou_threshold: lowest IoU of a match, above 0 and at most 1; COCO has its own.

    Returns:
        EvaluationResult, or CocoResult for "coco"; both have `mean_ap`, `to_table()` and `to_dict()`. A class with
        ground truth that was never detected has an AP of 0.

    Raises:
        ValueError: the lists do not belong together, a label has no name, or the metric or threshold is unknown.
    """
    if metric != "coco":
        return evaluate_voc(records, detections, class_names, metric, iou_threshold)
    if iou_threshold != 0.5:
        raise ValueError(
            f"iou_threshold is {iou_threshold}, but coco averages over 0.50 to 0.95: leave it out, or take voc12"
        )
    return evaluate_coco(records, detections, class_names)
