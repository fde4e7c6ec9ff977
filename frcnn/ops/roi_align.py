"""RoIAlign (He et al. 2017, section 3), equal to torchvision's `roi_align`."""

from keras import ops

from frcnn import backend


def roi_align(features, rois, output_size, stride, sampling_ratio=2, aligned=False):
    """Pool every RoI to a fixed grid; each cell is the mean of `sampling_ratio`^2 bilinear samples.

    Args:
        features: (B, h, w, C) float; the arithmetic is float32.
        rois: (B, S, 4) float32, xyxy pixels of the image.
        output_size: (rows, columns) of the grid, or one int for both.
        stride: image pixels per feature cell.
        sampling_ratio: samples along each side of a cell. (torchvision's adaptive -1 has no static shape.)
        aligned: shift by half a cell, and let RoIs be smaller than a cell (Detectron2's ROIAlignV2).

    Returns:
        (B, S, rows, columns, C) in the dtype of `features`. A sample more than a cell outside the map counts as 0.
        Gradients go to `features` only.
    """
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    rois = ops.stop_gradient(rois)
    y_points, x_points = (_sample_points(rois, axis, output_size, stride, sampling_ratio, aligned) for axis in (0, 1))
    if backend.is_tensorflow():
        return backend.tensorflow_roi_align(features, y_points, x_points, sampling_ratio, interpolate_points)
    return interpolate_points(features, y_points, x_points, sampling_ratio)


def interpolate_points(features, y_points, x_points, sampling_ratio):
    """Mean of bilinear samples on a separable grid, as two batched matrix products.

    Args:
        features: (B, h, w, C) float.
        y_points: (B, S, rows * sampling_ratio) float32, in feature cells (0 = centre of the first row).
        x_points: (B, S, columns * sampling_ratio) float32.
        sampling_ratio: how many neighbouring points are averaged, per axis.

    Returns:
        (B, S, rows, columns, C) in the dtype of `features`.
    """
    height, width = ops.shape(features)[1:3]
    rows = _interpolation_weights(y_points, height, sampling_ratio)
    columns = _interpolation_weights(x_points, width, sampling_ratio)
    pooled = ops.einsum("bsph,bhwc->bspwc", rows, ops.cast(features, "float32"))
    return ops.cast(ops.einsum("bsqw,bspwc->bspqc", columns, pooled), features.dtype)


def _sample_points(rois, axis, output_size, stride, sampling_ratio, aligned):
    """(B, S, cells * sampling_ratio) float32 coordinates of the samples along y (axis 0) or x (axis 1)."""
    low, high = rois[..., 1 - axis], rois[..., 3 - axis]
    start = low / stride - (0.5 if aligned else 0.0)
    length = (high - low) / stride
    if not aligned:
        length = ops.maximum(length, 1.0)
    count = output_size[axis] * sampling_ratio
    fractions = (ops.cast(ops.arange(count), "float32") + 0.5) / count
    return start[..., None] + length[..., None] * fractions


def _interpolation_weights(points, size, sampling_ratio):
    """(B, S, cells, size) float32: each cell's weight on every position of one axis of the map."""
    cells = ops.cast(ops.arange(size), "float32")  # before `size` is cast: JAX wants a plain int here
    size = ops.cast(size, "float32")
    inside = ops.cast((points >= -1.0) & (points <= size), "float32")
    points = ops.minimum(ops.maximum(points, 0.0), size - 1.0)
    distance = ops.abs(points[..., None] - cells)
    weights = ops.maximum(1.0 - distance, 0.0) * inside[..., None]
    batch, rois, count = ops.shape(points)
    weights = ops.reshape(weights, (batch, rois, count // sampling_ratio, sampling_ratio, -1))
    return ops.mean(weights, axis=3)
