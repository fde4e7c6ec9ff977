"""Matching of anchors with ground truth, as Ren et al. 2015, section 3.1.2, puts it in words."""


def match(iou, high, low, keep_best):
    """(G, N) overlaps -> a list of N: index of the matched box, -1 background, -2 neither."""
    count = len(iou[0])
    result = []
    for anchor in range(count):
        best_box = max(range(len(iou)), key=lambda box: iou[box][anchor])  # the first of equals
        best = iou[best_box][anchor]
        claimed = keep_best and any(0 < iou[box][anchor] >= max(iou[box]) - 1e-5 for box in range(len(iou)))
        if best >= high or claimed:
            result.append(best_box)
        else:
            result.append(-1 if best < low else -2)
    return result
