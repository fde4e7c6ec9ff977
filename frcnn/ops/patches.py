"""The surroundings of chosen cells, as pictures of their own."""

from keras import ops


def take_patches(maps, cells, side):
    """Cut out the square around each of some cells of a pyramid.

    Args:
        maps: list of (B, h, w, C) float.
        cells: (B, S) int32, counted through all maps, rows first, then columns: cell 0 of the second map follows the
            last one of the first.
        side: of the squares, odd.

    Returns:
        patches: (B * S, side, side, C) in the dtype of `maps`, 0 outside the cell's own map.
        inside: (B * S, side, side, 1) in that dtype, 1 inside the map, 0 outside.
    """
    (batch, *_, channels), reach = ops.shape(maps[0]), ops.arange(side, dtype="int32") - side // 2
    patches, inside = [], []
    for one_map in maps:
        height, width = ops.shape(one_map)[1:3]
        row, column = (ops.expand_dims(place, -1) + reach for place in (cells // width, cells % width))
        is_inside = _lies_in(row, height)[..., None] & _lies_in(column, width)[..., None, :]
        is_inside = is_inside & ((cells >= 0) & (cells < height * width))[..., None, None]
        first = ops.arange(batch, dtype="int32")[:, None, None, None] * (height * width)
        places = first + ops.where(is_inside, row[..., None] * width + column[..., None, :], 0)
        inside.append(ops.reshape(ops.cast(is_inside, one_map.dtype), (-1, side, side, 1)))
        found = ops.take(ops.reshape(one_map, (-1, channels)), ops.reshape(places, (-1,)), axis=0)
        patches.append(ops.reshape(found, (-1, side, side, channels)) * inside[-1])
        cells = cells - height * width
    return sum(patches[1:], patches[0]), sum(inside[1:], inside[0])


def _lies_in(place, size):
    return (place >= 0) & (place < size)
