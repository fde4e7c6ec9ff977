import numpy as np
import pytest
from keras import ops

from frcnn.ops.patches import take_patches
from tests.oracles.tensors import array, compiled, gradient, tensor

SHAPES = [(5, 4), (2, 3), (1, 1)]
CELLS = sum(height * width for height, width in SHAPES)


def maps_of(batch=2, channels=3):
    generator = np.random.default_rng(0)
    return [generator.normal(size=(batch, *shape, channels)).astype(np.float32) for shape in SHAPES]


def cut_out(maps, cell, side):
    """The square around one cell of the maps (h, w, C) of a picture, and 1 where it lies inside its map."""
    for one_map in maps:
        height, width, _ = one_map.shape
        if cell < height * width:
            row, column = divmod(cell, width)
            reach = side // 2
            with_ones = np.concatenate([one_map, np.ones((height, width, 1), np.float32)], axis=-1)
            padded = np.pad(with_ones, [(reach, reach), (reach, reach), (0, 0)])
            square = padded[row : row + side, column : column + side]
            return square[..., :-1], square[..., -1:]
        cell -= height * width
    raise AssertionError


@pytest.mark.parametrize("side", [1, 3, 5])
def test_every_cell_of_every_map_has_its_surroundings_and_zeros_outside_the_map(side):
    maps, cells = maps_of(), np.stack([np.arange(CELLS), np.arange(CELLS)[::-1]])
    patches, inside = compiled(
        lambda *inputs: take_patches(inputs[:-1], inputs[-1], side), *map(tensor, maps), tensor(cells, "int32"), free=3
    )
    expected = [
        cut_out([one_map[picture] for one_map in maps], cell, side) for picture, own in enumerate(cells) for cell in own
    ]
    np.testing.assert_array_equal(patches, np.stack([values for values, _ in expected]))
    np.testing.assert_array_equal(inside, np.stack([ones for _, ones in expected]))
    assert patches.dtype == inside.dtype == np.float32


def test_patches_are_of_the_type_of_the_maps():
    maps = [tensor(one_map, "float16") for one_map in maps_of()]
    assert {x.dtype for x in array(take_patches(maps, tensor([[0], [7]], "int32"), 3))} == {np.dtype("float16")}


def test_a_cells_gradient_is_the_sum_of_those_of_the_patches_that_hold_it():
    first, *others = maps_of(batch=1)
    slopes = tensor(np.random.default_rng(1).normal(size=(3, 3, 3, 3)))  # of three patches around cells 0, 1 and 0

    def weighted(one_map):
        patches, _ = take_patches([one_map, *map(tensor, others)], tensor([[0, 1, 0]], "int32"), 3)
        return ops.sum(patches * slopes)

    found, expected = gradient(weighted, first), np.zeros((1, 7, 6, 3), np.float32)
    for slope, (row, column) in zip(array(slopes), [(0, 0), (0, 1), (0, 0)]):
        expected[0, row : row + 3, column : column + 3] += slope
    np.testing.assert_allclose(found, expected[:, 1:-1, 1:-1], rtol=1e-6)
