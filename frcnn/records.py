"""The plain records that everything at the edges speaks: a picture with its boxes or class, what was found in one."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace

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
        crowd: (G,) bool, boxes around many objects of a class (COCO's `iscrowd`); neither scored nor trained on.
        source: the annotation file, as messages name it; "" where there is none.
        lines: (G,) int64, the line of each box in it, from 1; None where lines say nothing (JSON).

    Raises:
        ValueError: shapes disagree, labels are no integers, or a box is degenerate, not finite or outside the picture.
    """

    path: str
    size: tuple
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray = field(default=None)
    crowd: np.ndarray = field(default=None)
    source: str = ""
    lines: np.ndarray = field(default=None)

    def __post_init__(self):
        if np.shape(self.size) != (2,):
            raise ValueError(f"{self.path}: size must be (height, width) in pixels, not {self.size}")
        _set(self, size=tuple(int(side) for side in self.size))
        _set(self, boxes=_as_boxes(self.path, self.boxes), labels=_as_labels(self.path, self.labels))
        for name in ("difficult", "crowd"):
            flags = getattr(self, name)
            _set(self, **{name: np.zeros(len(self.boxes), bool) if flags is None else np.asarray(flags, bool)})
        _require_equal_lengths(
            self.path, boxes=self.boxes, labels=self.labels, difficult=self.difficult, crowd=self.crowd
        )
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

    def without_crowds(self):
        """The record without its crowd boxes, as it is trained on."""
        names = ("boxes", "labels", "difficult", "crowd", *(["lines"] if self.lines is not None else []))
        arrays = {name: getattr(self, name)[~self.crowd] for name in names}
        return replace(self, **arrays) if self.crowd.any() else self

    @property
    def is_portrait(self):
        """Whether the picture is higher than wide."""
        return self.size[0] > self.size[1]


@dataclass(frozen=True)
class LabelledImage:
    """One picture of one class.

    Attributes:
        path: where the picture lies; of an array, what messages call it ("signs.h5 train_set_x[12]").
        label: index into the class names.
        pixels: (H, W) or (H, W, 1, 3 or 4) uint8; None: they are read from `path` when a batch needs them.
    """

    path: str
    label: int
    pixels: np.ndarray = field(default=None, repr=False)

    is_portrait = False  # all are brought to squares, and any may share a batch

    @property
    def labels(self):
        """(1,) int32, as in `ImageRecord`."""
        return np.array([self.label], np.int32)


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, best first.

    Attributes:
        boxes: (D, 4) float32, xyxy pixels of the original picture.
        scores: (D,) float32, 0..1, decreasing.
        labels: (D,) int32, indices into `class_names`.
        class_names: tuple of K strings.
        path: the picture's file, or "" when an array was given.
        size: (height, width) of the picture in pixels, or None where it is not known.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple
    path: str = ""
    size: tuple = None

    def __post_init__(self):
        _set(self, size=None if self.size is None else tuple(int(side) for side in self.size))
        _set(self, boxes=np.asarray(self.boxes, np.float32).reshape(-1, 4), class_names=tuple(self.class_names))
        _set(self, scores=np.asarray(self.scores, np.float32), labels=np.asarray(self.labels, np.int32))
        _require_equal_lengths(self.path, boxes=self.boxes, scores=self.scores, labels=self.labels)

    def __len__(self):
        return len(self.boxes)

    def __repr__(self):
        """`Detections(a.jpg: 3 x car, 1 x person; best 0.98)`, the most frequent class first."""
        names = Counter(self.class_names[label] for label in self.labels).most_common()
        text = ", ".join(f"{count} x {name}" for name, count in names)
        text = f"{text}; best {self.scores.max():.2f}" if len(self) else "nothing"
        return f"Detections({self.path}{': ' * bool(self.path)}{text})"

    def above(self, score):
        """The detections whose score is at least `score`, in the same order."""
        return self._where(self.scores >= score)

    def of_classes(self, names):
        """The detections of the classes `names`, in the same order; the labels stay as they are."""
        return self._where(np.isin(self.labels, [k for k, name in enumerate(self.class_names) if name in names]))

    def to_pandas(self):
        """A DataFrame with the columns of the CSV file, file, x1, y1, x2, y2, score, class, and a row per detection."""
        import pandas as pd  # it takes longer to import than everything else that needs records

        table = pd.DataFrame(self.boxes, columns=["x1", "y1", "x2", "y2"])
        table.insert(0, "file", self.path)
        return table.assign(score=self.scores, **{"class": [self.class_names[label] for label in self.labels]})

    def plot(self, image=None):
        """Draw the detections into their picture.

        Args:
            image: the picture as a path or (H, W, 3) uint8 RGB array, which is not changed; None reads `path`.

        Returns:
            (H, W, 3) uint8 RGB, what `matplotlib.pyplot.imshow` shows.

        Raises:
            ValueError: the picture cannot be read, or none is given and `path` is empty.
        """
        from frcnn.data.images import read_image
        from frcnn.visualize import draw_detections

        image = self.path if image is None else image
        if isinstance(image, str) and not image:
            raise ValueError("these detections come from an array: give the picture, as in detections.plot(image)")
        return draw_detections(image if isinstance(image, np.ndarray) else read_image(image), self)

    def _where(self, keep):
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])


def require_class_names(class_names):
    """The names as a tuple; raise ValueError if there is none, one comes twice, or one cannot be written in a line."""
    if isinstance(class_names, str):
        raise ValueError(f"class_names {class_names!r} is one string: give a list, as in class_names=[{class_names!r}]")
    class_names = tuple(class_names)
    if not class_names or len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names {class_names} must be one or more distinct names")
    for name in class_names:
        if problem := name_problem(name):
            raise ValueError(problem)
    return class_names


def name_problem(name):
    """A sentence about a class name that files of lines could not give back, else ""."""
    if not isinstance(name, str) or not name.strip():
        return f"a class is called {name!r}: give it a name that can be seen"
    odd = next((letter for letter in name if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is None:
        return ""
    return f"the class name {name!r:.80} holds {odd!a}, a line break, control character or half a letter: rename it"


def require_labels(records, class_names):
    """Raise a ValueError that names the first thing among records that is none, or whose label no class has.

    Args:
        records: list of ImageRecord or LabelledImage.
        class_names: K strings, what their labels mean.
    """
    if not isinstance(records, list | tuple):
        raise ValueError(f"records is a {type(records).__name__}: expected a list of frcnn.ImageRecord")
    for index, record in enumerate(records):
        if not isinstance(record, ImageRecord | LabelledImage):
            hint = "; frcnn.read_records returns two things, records and class names" if index == 0 else ""
            raise ValueError(f"records[{index}] is a {type(record).__name__}: expected a frcnn.ImageRecord{hint}")
        wrong = record.labels[(record.labels < 0) | (record.labels >= len(class_names))]
        if len(wrong):
            names = ", ".join(map(str, class_names[:10])) + ", ..." * (len(class_names) > 10)
            raise ValueError(
                f"{record.path}: label {wrong[0]} is no class: labels count from 0, so the {len(class_names)} class "
                f"names ({names}) allow 0 to {len(class_names) - 1}"
            )


def _as_boxes(path, boxes):
    """(G, 4) float32."""
    expected = "boxes must be (G, 4) numbers, x1, y1, x2, y2 of each"
    try:
        array = np.asarray(boxes, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {expected}, all of one length ({error})") from error
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise ValueError(f"{path}: {expected}, not {array.shape}")
    return array.reshape(-1, 4)


def _as_labels(path, labels):
    """(G,) int32."""
    array = np.asarray(labels)
    is_whole = array.dtype.kind in "iuf" and ((array == np.round(array)) & (np.abs(array) < 2**31)).all()
    if array.ndim != 1 or (array.size and not is_whole):
        found = f"{array.shape} with {array.ravel()[0].item()!r:.80} in it" if array.size else array.shape
        raise ValueError(f"{path}: labels must be (G,) integers that count the class names from 0, not {found}")
    return array.astype(np.int32)


def _set(record, **values):
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _require_equal_lengths(path, **arrays):
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path or 'record'}: {lengths} must have the same length")
