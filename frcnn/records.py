"""The two plain records that everything at the edges speaks: a picture with its boxes, and what was found in one."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ImageRecord:
    """One annotated picture.

    Attributes:
        path: where the picture lies; it is read only when a batch needs it.
        size: (height, width) in pixels, as `cv2.imread` returns it (EXIF rotation applied).
        boxes: (G, 4) float32, xyxy pixels, half-open, inside the picture; G may be 0 (a background-only picture).
        labels: (G,) int32, indices into the class names.
        difficult: (G,) bool, boxes that an evaluation neither rewards nor punishes (Pascal VOC).

    Raises:
        ValueError: shapes disagree, or a box is degenerate, not finite or outside the picture.
    """

    path: str
    size: tuple
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray = field(default=None)

    def __post_init__(self):
        _set(self, size=tuple(int(side) for side in self.size))
        _set(self, boxes=np.asarray(self.boxes, np.float32).reshape(-1, 4), labels=np.asarray(self.labels, np.int32))
        difficult = np.zeros(len(self.boxes), bool) if self.difficult is None else np.asarray(self.difficult, bool)
        _set(self, difficult=difficult)
        _require_equal_lengths(self.path, boxes=self.boxes, labels=self.labels, difficult=self.difficult)
        height, width = self.size
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        inside = (low >= 0) & (low < high) & (high <= np.array((width, height)))
        if not inside.all():
            index = int(np.argmin(inside.all(axis=1)))
            x1, y1, x2, y2 = self.boxes[index]
            raise ValueError(
                f"{self.path} box {index}: ({x1:g}, {y1:g}, {x2:g}, {y2:g}) must satisfy 0 <= x1 < x2 <= {width} "
                f"and 0 <= y1 < y2 <= {height}"
            )


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, best first.

    Attributes:
        boxes: (D, 4) float32, xyxy pixels of the original picture.
        scores: (D,) float32, 0..1, decreasing.
        labels: (D,) int32, indices into `class_names`.
        class_names: tuple of K strings.
        path: the picture's file, or "" when an array was given.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple
    path: str = ""

    def __post_init__(self):
        _set(self, boxes=np.asarray(self.boxes, np.float32).reshape(-1, 4), class_names=tuple(self.class_names))
        _set(self, scores=np.asarray(self.scores, np.float32), labels=np.asarray(self.labels, np.int32))
        _require_equal_lengths(self.path, boxes=self.boxes, scores=self.scores, labels=self.labels)

    def __len__(self):
        return len(self.boxes)

    def above(self, score):
        """The detections whose score is at least `score`, in the same order."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.class_names, self.path)


def _set(record, **values):
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _require_equal_lengths(path, **arrays):
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path or 'record'}: {lengths} must have the same length")
