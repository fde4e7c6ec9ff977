"""The anchor grid of the RPN (Ren et al. 2015, section 3.1.1), laid out as torchvision's `AnchorGenerator` does."""

import numpy as np
from keras import ops


def base_anchors(sizes, ratios):
    """Anchors of one cell, centred on the origin, of area size^2.

    Args:
        sizes: square roots of the areas, pixels.
        ratios: height / width.

    Returns:
        (len(ratios) * len(sizes), 4) float32, xyxy pixels, corners rounded as in torchvision; ratios outside, sizes
        inside.
    """
    ratio = np.sqrt(np.asarray(ratios, np.float32))
    sizes = np.asarray(sizes, np.float32)
    widths = (1 / ratio)[:, None] * sizes[None, :]
    heights = ratio[:, None] * sizes[None, :]
    corners = np.stack([-widths, -heights, widths, heights], axis=-1).reshape(-1, 4) / 2
    return np.round(corners)


def grid_anchors(grid_height, grid_width, stride, sizes, ratios):
    """Anchors of a whole feature map: cell (i, j) is centred on pixel (stride * i, stride * j).

    The same grid serves targets and decoding; keras-frcnn used two that differed by half a cell.

    Args:
        grid_height, grid_width: cells of the feature map, ints or scalar int tensors.
        stride: pixels between neighbouring cells, one number or (down, across); ints or scalar int tensors.
        sizes, ratios: see `base_anchors`.

    Returns:
        (A, 4) float32, xyxy pixels; A = grid_height * grid_width * ratios * sizes, rows first, then columns, then
        `base_anchors` order. Anchors may leave the image.
    """
    down, across = (
        ops.cast(step, "float32") for step in (stride if isinstance(stride, list | tuple) else [stride] * 2)
    )
    y = ops.cast(ops.arange(grid_height), "float32") * down
    x = ops.cast(ops.arange(grid_width), "float32") * across
    y, x = ops.meshgrid(y, x, indexing="ij")
    centres = ops.reshape(ops.stack([x, y, x, y], axis=-1), (-1, 1, 4))
    return ops.reshape(ops.add(centres, base_anchors(sizes, ratios)[None]), (-1, 4))
