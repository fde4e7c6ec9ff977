"""The confusion matrix as a dict of counts: nested loops over plain Python numbers."""

from collections import Counter

from tests.oracles.voc import iou


def confusion(records, detections, iou_threshold, score_threshold):
    """Counter of (true class or "background", detected class or "missed")."""
    counts = Counter()
    for record, found in zip(records, detections, strict=True):
        taken = set()
        ranks = sorted(range(len(found)), key=lambda index: -found.scores[index])
        for box, score, label in ((found.boxes[i], found.scores[i], int(found.labels[i])) for i in ranks):
            if score < score_threshold:
                continue
            overlaps = [iou(box, gt_box) for gt_box in record.boxes]
            best = overlaps.index(max(overlaps)) if overlaps else None
            if best is not None and overlaps[best] >= iou_threshold:
                if record.difficult[best] or record.crowd[best]:
                    continue
                if best not in taken:
                    taken.add(best)
                    counts[int(record.labels[best]), label] += 1
                    continue
            if not any(
                covered(box, gt_box) >= iou_threshold
                for gt_box, crowd in zip(record.boxes, record.crowd, strict=True)
                if crowd
            ):
                counts["background", label] += 1
        for index, label in enumerate(record.labels):
            if not (index in taken or record.difficult[index] or record.crowd[index]):
                counts[int(label), "missed"] += 1
    return counts


def covered(box, other):
    """Share of a box that lies in the other."""
    x1, y1, x2, y2 = map(float, box)
    u1, v1, u2, v2 = map(float, other)
    return max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1)) / ((x2 - x1) * (y2 - y1))
