"""Pascal VOC average precision, as slow and obvious as it can be written: nested loops over plain Python numbers."""


def average_precision(records, detections, label, metric, iou_threshold):
    """AP of one class (None without ground truth), following the text of the VOC development kit."""
    found = {}
    total = sum(
        1
        for record in records
        for gt_label, difficult in zip(record.labels, record.difficult, strict=True)
        if gt_label == label and not difficult
    )
    if total == 0:
        return None
    true, false, curve = 0, 0, []
    for picture, box in _by_score(detections, label):
        best_iou, best = 0.0, None
        for index, gt_box in enumerate(records[picture].boxes):
            if records[picture].labels[index] == label and iou(box, gt_box) > best_iou:
                best_iou, best = iou(box, gt_box), index
        if best is not None and best_iou >= iou_threshold:
            if records[picture].difficult[best]:
                continue
            true, false = (true, false + 1) if (picture, best) in found else (true + 1, false)
            found[picture, best] = True
        else:
            false += 1
        curve.append((true, true / (true + false)))
    return _eleven_points(curve, total) if metric == "voc07" else _area(curve, total)


def iou(one, other):
    x1, y1, x2, y2 = map(float, one)
    u1, v1, u2, v2 = map(float, other)
    shared = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
    return shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)


def _by_score(detections, label):
    entries = [
        (-float(score), picture, rank, box)
        for picture, found in enumerate(detections)
        for rank, (box, score, found_label) in enumerate(zip(found.boxes, found.scores, found.labels, strict=True))
        if found_label == label
    ]
    return [(picture, box) for _, picture, _, box in sorted(entries, key=lambda entry: entry[:3])]


def _eleven_points(curve, total):
    return sum(max((p for true, p in curve if true / total >= k * 0.1), default=0.0) for k in range(11)) / 11


def _area(curve, total):
    """Every box found adds 1 / total of recall, at the best precision from there on."""
    return (
        sum(max(p for true, p in curve if true >= nth) for nth in range(1, curve[-1][0] + 1)) / total if curve else 0.0
    )
