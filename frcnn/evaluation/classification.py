"""Scores of a classifier: accuracy, top-k, precision, recall and F1 of each class, and which is taken for which."""

from dataclasses import dataclass

import numpy as np

from frcnn.evaluation.voc import fraction, none_if_nan, ruled_table


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """What an evaluation found.

    Attributes:
        class_names: tuple of K strings.
        accuracy: share of the pictures whose most probable class is the true one, 0..1.
        top_k: k.
        top_k_accuracy: share of the pictures whose true class is among the k most probable, 0..1.
        confusion: (K, K) int64 counts; rows: true classes, columns: predicted ones.
    """

    class_names: tuple
    accuracy: float
    top_k: int
    top_k_accuracy: float
    confusion: np.ndarray

    def per_class(self):
        """(K, 3) float64: precision, recall and F1 of each class, 0..1; nan where nothing is predicted or true."""
        hits, predicted, true = self.confusion.diagonal(), self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is the nan that is wanted
            return np.stack([hits / predicted, hits / true, 2 * hits / (predicted + true)], axis=1)

    def to_dict(self):
        """The result as plain values that `json.dump` takes: nan becomes None, a class one dict."""
        names, columns = ("name", "precision", "recall", "f1", "pictures"), self.per_class().T.tolist()
        rows = zip(self.class_names, *columns, self.confusion.sum(axis=1).tolist())
        return {
            "pictures": int(self.confusion.sum()),
            "accuracy": self.accuracy,
            f"top_{self.top_k}_accuracy": self.top_k_accuracy,
            "classes": [dict(zip(names, map(none_if_nan, row))) for row in rows],
            "confusion_matrix": self.confusion.tolist(),
        }

    def to_table(self):
        """The result as aligned text: a line per class, the mean of the classes last; "-": not defined."""
        table, counts = self.per_class(), self.confusion.sum(axis=1)
        rows = [("class", "pictures", "precision", "recall", "F1")]
        for name, count, numbers in zip(self.class_names, counts, table):
            rows.append((name, str(count), *map(fraction, numbers)))
        means = [fraction(column[~np.isnan(column)].mean()) for column in table.T]
        rows.append(("total, mean", str(counts.sum()), *means))
        title = f"accuracy {self.accuracy:.4f}, top-{self.top_k} accuracy {self.top_k_accuracy:.4f}"
        return f"{title}\n{ruled_table(rows)}"


def evaluate_classification(labels, probabilities, class_names, top_k=3):
    """Compare predicted probabilities with true classes.

    Of equally probable classes the first in the order of the names is taken for the more probable one.

    Args:
        labels: (N,) int, indices into `class_names`.
        probabilities: (N, K) float.
        class_names: K strings.
        top_k: k of the top-k accuracy; more than K is K.

    Returns:
        ClassificationResult.

    Raises:
        ValueError: no picture, the shapes disagree, a label has no name, or top_k is less than 1.
    """
    labels, probabilities, count = np.asarray(labels), np.asarray(probabilities), len(class_names)
    if not len(labels) or probabilities.shape != (len(labels), count):
        raise ValueError(
            f"{len(labels)} labels and probabilities {probabilities.shape}: expected (N, {count}), N above 0"
        )
    if labels.min() < 0 or labels.max() >= count or top_k < 1:
        raise ValueError(
            f"labels {labels.min()} to {labels.max()} must be 0 to {count - 1}, top_k ({top_k}) at least 1"
        )
    top_k = min(top_k, count)
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    ranks = (ranked == labels[:, None]).argmax(axis=1)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, ranked[:, 0]), 1)
    return ClassificationResult(
        tuple(class_names), float((ranks == 0).mean()), top_k, float((ranks < top_k).mean()), confusion
    )
