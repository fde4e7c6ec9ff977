"""Comparing detections with ground truth, in numpy alone."""

from frcnn.evaluation.voc import EvaluationResult, evaluate

__all__ = ["EvaluationResult", "evaluate"]
