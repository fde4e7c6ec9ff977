"""RoIAlign (He et al. 2017) sample by sample."""

import math

import numpy as np


def roi_align(features, roi, rows, columns, stride, ratio, aligned):
    """(h, w, C) features, one xyxy roi in pixels -> (rows, columns, C)."""
    x1, y1, x2, y2 = (float(side) / stride - (0.5 if aligned else 0) for side in roi)
    width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    result = np.zeros((rows, columns, features.shape[2]))
    for row in range(rows):
        for column in range(columns):
            for i in range(ratio):
                for j in range(ratio):
                    y = y1 + height / rows * (row + (i + 0.5) / ratio)
                    x = x1 + width / columns * (column + (j + 0.5) / ratio)
                    result[row, column] += bilinear(features, y, x) / ratio**2
    return result


def bilinear(features, y, x):
    """The map at a point; 0 further than a cell outside, its border's value up to there."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    low, high = y - top, x - left
    return (
        (1 - low) * (1 - high) * features[top, left]
        + (1 - low) * high * features[top, right]
        + low * (1 - high) * features[bottom, left]
        + low * high * features[bottom, right]
    )
