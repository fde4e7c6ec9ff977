"""Convolution and normalisation, as nested loops and definitions."""

import numpy as np


def convolve(x, kernel, stride):
    """(B, h, w, C) by (k, k, C, F), zero-padded by k // 2 on every side, in float64."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
    result = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride : row * stride + size, column * stride : column * stride + size]
            result[:, row, column] = np.tensordot(window, kernel, axes=3)
    return result


def group_norm(x, groups, epsilon):
    """(B, h, w, C), each picture and group of neighbouring channels to mean 0 and variance 1 (Wu and He 2018)."""
    result = np.zeros(x.shape)
    size = x.shape[3] // groups
    for picture in range(len(x)):
        for group in range(groups):
            place = (picture, slice(None), slice(None), slice(group * size, (group + 1) * size))
            result[place] = (x[place] - x[place].mean()) / np.sqrt(x[place].var() + epsilon)
    return result
