"""RoIAlign (He et al. 2017, section 3), equal to torchvision's `roi_align`, on one map and on a pyramid."""

import numpy as np
from keras import ops

from frcnn import backend
from frcnn.ops.boxes import box_area

# Cells: as near as that, a sample lies on a cell's centre, or on the last place that counts. XLA may compute it twice
# and round it differently, and would else take the cell before, with the weight of its own.
_NEAR = 1e-4


def roi_align(features, rois, output_size, stride, sampling_ratio=2, aligned=False, step=1):
    """Pool every RoI to a fixed grid; each cell is the mean of `sampling_ratio`^2 bilinear samples.

    Args:
        features: (B, h, w, C) float; the arithmetic is float32.
        rois: (B, S, 4) float32, xyxy pixels of the image.
        output_size: (rows, columns) of the grid, or one int for both.
        stride: image pixels per feature cell.
        sampling_ratio: samples along each side of a cell. (torchvision's adaptive -1 has no static shape.)
        aligned: shift by half a cell, and let RoIs be smaller than a cell (Detectron2's ROIAlignV2).
        step: 2 leaves out each second row and column of the grid, for a head that would not read them.

    Returns:
        (B, S, rows / step, columns / step, C), rounded up, in the dtype of `features`. A sample more than a cell
        outside the map counts as 0. Gradients go to `features` only.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    levels = ops.zeros_like(rois[..., 0], dtype="int32")
    return _pool([features], levels, rois, size, stride, sampling_ratio, aligned, step)


def pyramid_roi_align(maps, rois, output_size, strides, sampling_ratio=2):
    """Pool every RoI from the one level that suits its size, as torchvision's `MultiScaleRoIAlign` does.

    Args:
        maps: list of (B, h, w, C) float, finest first.
        rois: (B, S, 4) float32, xyxy pixels of the image.
        output_size: rows and columns of the grid.
        strides: of each map, doubling; the first is that of P2, 4.
        sampling_ratio: samples along each side of a cell.

    Returns:
        (B, S, rows, columns, C) in the dtype of `maps`; gradients go to `maps` only.
    """
    levels = roi_levels(rois, len(maps))
    stride = ops.take(ops.convert_to_tensor(strides, "float32"), levels)
    return _pool(maps, levels, rois, (output_size, output_size), stride, sampling_ratio)


def roi_levels(rois, count):
    """The level of each RoI (Lin et al. 2017, eq. 1): one of 224x224 pixels belongs to P4, one of half that to P3.

    Args:
        rois: (..., 4) float32, xyxy pixels.
        count: levels, from P2 on.

    Returns:
        (...) int32, 0..count - 1; 0 is P2.
    """
    side = ops.sqrt(ops.maximum(box_area(rois), 1e-6))
    level = ops.floor(4.0 + ops.log2(side / 224.0) + 1e-6)  # torchvision's epsilon
    return ops.clip(ops.cast(level, "int32") - 2, 0, count - 1)


def _pool(maps, levels, rois, size, stride, sampling_ratio, aligned=False, step=1):
    """Means of bilinear samples, each RoI's from the map of its level (B, S) int32: (B, S, rows, columns, C).

    The cells of all maps lie in one row behind one another, so that a level is an offset and a width: each RoI reads
    only its own samples, with shapes that no RoI changes, and a cell of it is a weighted sum of 4 * sampling_ratio^2
    rows. (Two batched matrix products, over the rows and over the columns of a map, take 3 to 15 times as long on one
    map, and on a P2 of 200x300 cells they are a hundred times the work.)
    """
    rois = ops.stop_gradient(rois)
    y_points, x_points = (_sample_points(rois, axis, size, stride, sampling_ratio, aligned, step) for axis in (0, 1))
    channels, (batch, count) = maps[0].shape[-1], ops.shape(levels)
    heights, widths = zip(*(ops.shape(one_map)[1:3] for one_map in maps))
    counts = [height * width for height, width in zip(heights, widths)]
    offsets = [sum(counts[:level]) for level in range(len(maps))]
    height, width, offset = (_of_level(values, levels) for values in (heights, widths, offsets))
    cells = ops.concatenate([ops.reshape(one_map, (batch, -1, channels)) for one_map in maps], axis=1)
    cells = ops.cast(ops.reshape(cells, (-1, channels)), "float32")
    first = ops.arange(batch, dtype="int32")[:, None] * sum(counts) + offset
    rows, row_weights = _neighbours(y_points, height, sampling_ratio)
    columns, column_weights = _neighbours(x_points, width, sampling_ratio)
    rows = first[..., None, None] + rows * width[..., None, None]
    # (B, S, rows, columns, neighbours down, neighbours across), the last two as one
    indices = rows[:, :, :, None, :, None] + columns[:, :, None, :, None, :]
    weights = row_weights[:, :, :, None, :, None] * column_weights[:, :, None, :, None, :]
    neighbours = (-1, 4 * sampling_ratio**2)
    pooled = backend.weighted_rows(cells, ops.reshape(indices, neighbours), ops.reshape(weights, neighbours))
    shape = (batch, count, rows.shape[2], columns.shape[2], channels)
    return ops.cast(ops.reshape(pooled, shape), maps[0].dtype)


def _of_level(values, levels):
    """One number for each level, ints or scalar tensors, -> (B, S) int32: that of each RoI's."""
    return ops.take(ops.stack([ops.cast(value, "int32") for value in values]), levels)


def _neighbours(points, size, sampling_ratio):
    """(B, S, cells, 2 * sampling_ratio): the places on an axis that each cell's mean is made of, and their weights."""
    last = ops.cast(size, "float32")[..., None] - 1.0
    inside = ops.cast((points >= -1.0 - _NEAR) & (points <= last + 1.0 + _NEAR), "float32") / sampling_ratio
    points = ops.minimum(ops.maximum(points, 0.0), last)
    low = ops.floor(points + _NEAR)
    share = ops.maximum(points - low, 0.0)
    places = ops.cast(ops.stack([low, low + 1.0], axis=-1), "int32")
    places = ops.clip(places, 0, size[..., None, None] - 1)  # of NaN, too, which is any integer
    weights = ops.stack([1.0 - share, share], axis=-1) * inside[..., None]
    shape = (*ops.shape(points)[:2], points.shape[2] // sampling_ratio, 2 * sampling_ratio)
    return ops.reshape(places, shape), ops.reshape(weights, shape)


def _sample_points(rois, axis, output_size, stride, sampling_ratio, aligned, step=1):
    """(B, S, cells / step * sampling_ratio) float32 coordinates of the samples along y (axis 0) or x (axis 1)."""
    low, high = rois[..., 1 - axis], rois[..., 3 - axis]  # `stride` is one number or (B, S)
    start = low / stride - (0.5 if aligned else 0.0)
    length = (high - low) / stride
    if not aligned:
        length = ops.maximum(length, 1.0)
    count = output_size[axis] * sampling_ratio
    samples = np.arange(count, dtype="float32").reshape(-1, sampling_ratio)[::step].ravel()
    fractions = ops.convert_to_tensor((samples + 0.5) / count)
    return start[..., None] + length[..., None] * fractions
