"""3x3 convolution of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2015, section 4.2).

The result is made in tiles of 4x4 cells, each from 6x6 cells of the map. One linear map takes those cells, another the
kernel, to their values at 36 points; products of the two, summed over the channels, go back to cells by a third. So a
tile takes 36 products for each pair of channels where the sum that defines a convolution takes 144.

Of the points tried, 0, 2/3, -2/3, 3/2, -3/2 and infinity along each side round least: float32 results lie within 4e-6
of the largest one, with the usual 1 and 2 within 15e-6, with the definition within 0.4e-6.
"""

import numpy as np
from keras import ops

TILE, _POINTS = 4, np.array([0, 2 / 3, -2 / 3, 3 / 2, -3 / 2])


def _matrices():
    """6x6 cells to the points, 3x3 places of a kernel to them, the points to 4x4 cells: matrices for flat ones."""
    others = [np.delete(_POINTS, index) for index in range(5)]
    cells = [*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(_POINTS)[::-1]]
    places = [*(point ** np.arange(3) / np.prod(point - rest) for point, rest in zip(_POINTS, others)), np.eye(3)[2]]
    results = [*(point ** np.arange(4) for point in _POINTS), np.eye(4)[3]]
    return [np.kron(matrix, matrix).astype("float32") for matrix in (cells, places, np.transpose(results))]


_FROM_CELLS, _FROM_KERNEL, _TO_CELLS = _matrices()


def tile_count(shape):
    """How many tiles a map of a shape (B, h, w, C) has."""
    batch, height, width, _ = shape
    return batch * _tiles_along(height) * _tiles_along(width)


def convolve(x, kernel):
    """The convolution of a map, with zeros around it.

    Args:
        x: (B, h, w, C) float32.
        kernel: (3, 3, C, filters) float32.

    Returns:
        (B, h, w, filters) float32, and `values_at_points(x)`.
    """
    (batch, height, width, _), filters = ops.shape(x), kernel.shape[-1]
    rows, columns = _tiles_along(height), _tiles_along(width)
    values = values_at_points(x)
    cells = _on_first(_TO_CELLS, ops.matmul(values, _at_points(_FROM_KERNEL, kernel)))
    picture, row, column = ops.arange(batch)[:, None, None], ops.arange(height)[:, None], ops.arange(width)
    tile = (picture * rows + row // TILE) * columns + column // TILE
    places = (row % TILE * TILE + column % TILE) * (batch * rows * columns) + tile
    return ops.take(ops.reshape(cells, (-1, filters)), places, axis=0), values


def values_at_points(x):
    """What `kernel_gradient` takes of a map (B, h, w, C) float32: (36, `tile_count`, C) float32."""
    return _at_points(_FROM_CELLS, _tiles(x, TILE + 2, before=1))


def kernel_gradient(values, upstream):
    """The gradient of `convolve` for its kernel.

    Args:
        values: of its map at the points.
        upstream: (B, h, w, filters) float32, the gradient of its result.

    Returns:
        (3, 3, C, filters) float32.
    """
    slopes = ops.matmul(ops.transpose(values, (0, 2, 1)), _at_points(_TO_CELLS.T, _tiles(upstream, TILE)))
    return ops.reshape(_on_first(_FROM_KERNEL.T, slopes), (3, 3, *slopes.shape[1:]))


def _tiles_along(side):
    return (side + TILE - 1) // TILE


def _tiles(x, side, before=0):
    """The side x side cells of each tile, from the one `before` its first: (side, side, `tile_count`, C), 0 outside.

    Each is copied once, by its place, which takes half of the time that slices and concatenations take.
    """
    batch, height, width, channels = ops.shape(x)
    rows, columns = _tiles_along(height), _tiles_along(width)
    tall, wide = (TILE * (count - 1) + side for count in (rows, columns))
    x = ops.pad(x, [[0, 0], [before, tall - before - height], [before, wide - before - width], [0, 0]])
    row = ops.arange(side)[:, None, None, None, None] + TILE * ops.arange(rows)[:, None]
    column = ops.arange(side)[:, None, None, None] + TILE * ops.arange(columns)
    places = (ops.arange(batch)[:, None, None] * tall + row) * wide + column  # (side, side, B, rows, columns)
    return ops.take(ops.reshape(x, (-1, channels)), ops.reshape(places, (side, side, -1)), axis=0)


def _at_points(matrix, cells):
    """A matrix on the first two axes of cells (n, m, ..., C): (36, all between, C)."""
    return ops.reshape(_on_first(matrix, cells), (36, -1, cells.shape[-1]))


def _on_first(matrix, x):
    """A matrix (p, q) on x, q rows of any shape: (p, all the rest)."""
    return ops.matmul(matrix, ops.reshape(x, (matrix.shape[1], -1)))
