"""How well the anchor grid meets annotated boxes, and settings that meet them better: numpy only, without a model.

The grid is that of `frcnn.ops.anchors.grid_anchors`, on one or more levels: `levels` is a tuple of (stride, sizes),
((16, (128, 256, 512)),) for the C4 detector.
"""

from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from frcnn.data.images import resized_size
from frcnn.schema import Config

IOUS = (0.5, 0.7)
_PADDING = 32  # pictures are padded to multiples, and the grid covers the padding
_SEARCHED = 2000  # boxes that a search looks at, of each class as many
_STEPS = (1.25, 1.1, 1.04)  # factors by which a search changes one size or ratio, coarse first
_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)  # of `im_size`, that are tried
_WORTH = 0.05  # more recall is worth a larger `im_size`
_SMALLEST = 4  # pixels, of a size that is proposed
_THINNEST = 0.01  # ratio that is proposed


class Boxes(NamedTuple):
    """All boxes of a data set in the resized pictures.

    Attributes:
        corners: (N, 4) float32, xyxy pixels.
        sizes: (N, 2) int64, (height, width) of the resized picture that each lies in.
        labels: (N,) int32.
    """

    corners: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


class Settings(NamedTuple):
    """What decides the anchors, and the share of boxes that they meet.

    Attributes:
        im_size, max_size: as in `frcnn.config.DataConfig`.
        levels: tuple of (stride, sizes).
        ratios: height / width.
        recall: (K, 2) float64, share of each class's boxes that an anchor overlaps by `IOUS`; NaN without boxes.
    """

    im_size: int
    max_size: int
    levels: tuple
    ratios: tuple
    recall: np.ndarray

    def has_values_of(self, other):
        """Whether all but the recall is the same."""
        return self[:4] == other[:4]


def resize_boxes(records, im_size, max_size, rotate=False):
    """The boxes of all records as training sees them.

    Args:
        records: list of ImageRecord.
        im_size, max_size: as in `frcnn.data.images.resized_size`.
        rotate: whether training turns pictures by 90 degrees: each box then comes once upright and once turned.

    Returns:
        Boxes, records after records.
    """
    counts = [len(record.boxes) for record in records]
    old = np.array([record.size for record in records], np.int64).reshape(-1, 2)
    new = np.array([resized_size(*record.size, im_size, max_size) for record in records], np.int64).reshape(-1, 2)
    corners = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    scale = np.repeat(new / old, counts, axis=0)[:, [1, 0, 1, 0]]
    labels = np.concatenate([np.zeros(0, np.int32), *(record.labels for record in records)])
    corners, sizes = (corners * scale).astype(np.float32), np.repeat(new, counts, axis=0)
    if not rotate:
        return Boxes(corners, sizes, labels)
    # Turned the other way, or mirrored, a box meets the grid as well to half a cell.
    turned = corners[:, [1, 0, 3, 2]], sizes[:, ::-1]
    return Boxes(np.concatenate([corners, turned[0]]), np.concatenate([sizes, turned[1]]), np.tile(labels, 2))


def best_overlaps(boxes, levels, ratios):
    """The IoU of each box with the anchor that overlaps it most.

    Along each axis the shared length falls with the distance of the centres, whatever the sides: of every size and
    ratio the anchor at the grid point nearest to the box's centre is the best, and no other needs a look.

    Args:
        boxes: Boxes, N of them.
        levels, ratios: see the module and `frcnn.ops.anchors.base_anchors`.

    Returns:
        (N,) float32.
    """
    low, high = boxes.corners[:, :2].T, boxes.corners[:, 2:].T  # (2, N): x, y
    areas, best = np.prod(high - low, axis=0), np.zeros(len(boxes.corners), np.float32)
    padded = -(-boxes.sizes[:, ::-1].T // _PADDING) * _PADDING
    for stride, sizes in levels:
        cells = -(-padded // stride)
        step = padded // cells  # the stride, but of a P6 that does not divide the picture (torchvision's rule)
        nearest = (np.clip(np.rint((low + high) / (2 * step)), 0, cells - 1) * step).astype(np.float32)
        for half in _half_sides(sizes, ratios):
            sides = np.minimum(high, nearest + half) - np.maximum(low, nearest - half)
            shared = np.prod(np.maximum(sides, 0), axis=0)
            np.maximum(best, shared / (areas + 4 * half.prod() - shared), out=best)
    return best


def _half_sides(sizes, ratios):
    """(sizes * ratios, 2, 1) float32, half width and height of each anchor, rounded as `base_anchors` does."""
    sizes, roots = np.asarray(sizes, np.float32), np.sqrt(np.asarray(ratios, np.float32))[:, None]
    return np.round(np.stack([sizes / roots, sizes * roots], axis=-1).reshape(-1, 2, 1) / 2)


def anchor_recall(boxes, classes, levels, ratios):
    """Share of each class's boxes that some anchor overlaps by each of `IOUS`.

    Args:
        boxes: Boxes.
        classes: K.
        levels, ratios: as in `best_overlaps`.

    Returns:
        (K, 2) float64, NaN for classes without boxes.
    """
    hits = best_overlaps(boxes, levels, ratios)[:, None] >= np.array(IOUS, np.float32)
    counts = np.bincount(boxes.labels, minlength=classes)
    sums = np.stack([np.bincount(boxes.labels, hit, minlength=classes) for hit in hits.T], axis=1)
    with np.errstate(invalid="ignore"):
        return sums / counts[:, None]


def propose_settings(records, config, classes):
    """Measure the anchors of a config, and look for better ones that the config takes.

    Args:
        records: list of ImageRecord, with at least one box.
        config: `frcnn.Config`.
        classes: K.

    Returns:
        the present Settings; list of Settings, one an `im_size`, in rising order; the index of the one to take. That is
        one with the present values where nothing better was found.
    """
    data, model = config.data, config.model
    boxes = resize_boxes(records, data.im_size, data.max_size, data.rotate_90)
    recall = anchor_recall(boxes, classes, model.anchor_levels, model.anchor_ratios)
    now = Settings(data.im_size, data.max_size, model.anchor_levels, model.anchor_ratios, recall)
    found, chosen = suggest_settings(records, classes, now, data.rotate_90)
    best = found[chosen] if _is_allowed(found[chosen], config) else now
    others = [one for one in found if one is not best and _is_allowed(one, config)]
    found = sorted([best, *others], key=lambda one: one.im_size)
    return now, found, next(index for index, one in enumerate(found) if one is best)


def _is_allowed(settings, config):
    """Whether the config takes these settings."""
    values = config.model_dump()
    sizes = [size for _, sizes in settings.levels for size in sizes]
    values["model"] |= {"anchor_sizes": sizes, "anchor_ratios": settings.ratios}
    values["data"] |= {"im_size": settings.im_size, "max_size": settings.max_size}
    try:
        Config.model_validate(values)
    except ValidationError:
        return False
    return True


def suggest_settings(records, classes, current, rotate=False, seed=0):
    """Look for sizes and ratios, as many as there are, that overlap more boxes, at several `im_size`.

    From k-means of the boxes' sizes and ratios (in logarithms, each class weighing the same) sizes and ratios are
    changed one at a time while the mean over classes of both recalls and of the IoU rises, on up to 2,000 boxes. The
    recall that is returned is that of all boxes. Where the current sizes and ratios reach as much, they are returned.

    Args:
        records: list of ImageRecord, with at least one box.
        classes: K.
        current: Settings; its recall is not read.
        rotate: as in `resize_boxes`.
        seed: of the choice of boxes.

    Returns:
        list of Settings, one an `im_size`, in rising order, and the index of the one to take: that of the current
        `im_size` unless a larger one raises the mean recall by more than 0.05.
    """
    found = []
    for factor in _FACTORS:
        im_size = max(32, round(current.im_size * factor / 32) * 32) if factor != 1 else current.im_size
        max_size = round(current.max_size * im_size / current.im_size)
        boxes = resize_boxes(records, im_size, max_size, rotate)
        searched = _search(_sample(boxes, seed), current.levels, len(current.ratios))
        tried = [
            Settings(im_size, max_size, *anchors, anchor_recall(boxes, classes, *anchors))
            for anchors in ((current.levels, current.ratios), searched)
        ]
        found.append(max(tried, key=lambda settings: np.nanmean(settings.recall)))  # of equal ones, the current
    chosen = _FACTORS.index(1.0)
    for index in range(chosen + 1, len(found)):
        if np.nanmean(found[index].recall) > np.nanmean(found[chosen].recall) + _WORTH:
            chosen = index
    return found, chosen


def _sample(boxes, seed):
    """At most `_SEARCHED` boxes, as many of each class as there are, or the same number."""
    present = np.unique(boxes.labels)
    order = np.random.default_rng(seed).permutation(len(boxes.labels))
    each = -(-_SEARCHED // len(present))
    chosen = np.concatenate([order[boxes.labels[order] == label][:each] for label in present])
    return Boxes(*(part[chosen] for part in boxes))


def _search(boxes, levels, count_of_ratios):
    """The best (levels, ratios) that are found for these boxes."""
    width, height = (boxes.corners[:, 2:] - boxes.corners[:, :2]).T
    weights = 1 / np.bincount(boxes.labels)[boxes.labels]
    weights /= weights.sum()
    counts = [len(sizes) for _, sizes in levels]
    start = [
        _cluster(np.sqrt(width * height), weights, sum(counts)),
        _cluster(height / width, weights, count_of_ratios),
    ]
    values, split = np.concatenate(start), np.cumsum(counts)

    def unpack(values):
        sizes = np.maximum(np.sort(np.rint(values[: split[-1]])), _SMALLEST)
        thinnest = max(_THINNEST, (2 / sizes[0]) ** 2)  # or an anchor's side, rounded, would be none
        ratios = np.clip(np.sort(values[split[-1] :]), thinnest, 1 / thinnest).round(2)
        at_levels = tuple(
            (stride, tuple(map(int, part))) for (stride, _), part in zip(levels, np.split(sizes, split[:-1]))
        )
        return at_levels, tuple(ratios.tolist())

    def score(values):
        overlaps = best_overlaps(boxes, *unpack(values))
        return sum(weights @ (overlaps >= iou) for iou in IOUS) + weights @ overlaps

    best = score(values)
    for step in _STEPS:
        improved = True
        while improved:
            improved = False
            for position in range(len(values)):
                for factor in (step, 1 / step):
                    changed = values.copy()
                    changed[position] *= factor
                    if (reached := score(changed)) > best + 1e-4:
                        values, best, improved = changed, reached, True
    return unpack(values)


def _cluster(values, weights, count):
    """k-means in one dimension, of logarithms, begun at quantiles; (count,) float64, positive."""
    logs = np.log(values.astype(np.float64))
    shares = (np.arange(count) + 0.5) / count
    centres = np.quantile(logs, shares) + (shares - 0.5) / 5  # apart, also where all boxes are alike
    for _ in range(20):
        nearest = np.abs(logs[:, None] - centres).argmin(axis=1)
        mass = np.bincount(nearest, weights, count)
        sums = np.bincount(nearest, weights * logs, count)
        centres = np.where(mass > 0, sums / np.maximum(mass, 1e-12), centres)
    return np.exp(centres)
