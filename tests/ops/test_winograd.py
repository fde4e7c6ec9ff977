import numpy as np
import pytest
from keras import ops

from frcnn.ops import winograd
from tests.oracles.convolution import convolve
from tests.oracles.tensors import array, gradient, tensor

SHAPES = [(1, 1, 1, 2), (2, 4, 8, 3), (2, 7, 10, 5), (3, 13, 5, 4)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution_to_a_hundred_thousandth(shape):
    x, kernel = noise(*shape), noise(3, 3, shape[-1], 6, seed=1)
    expected = convolve(x, kernel, 1)
    result = array(winograd.convolve(tensor(x), tensor(kernel))[0])
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_so_it_is_where_256_channels_add_up():
    x, kernel = noise(1, 12, 8, 256), noise(3, 3, 256, 256, seed=1)
    expected = convolve(x, kernel, 1)
    worst = np.abs(array(winograd.convolve(tensor(x), tensor(kernel))[0]) - expected).max()
    assert worst < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_gradient_is_that_of_the_definition(shape):
    x, upstream = tensor(noise(*shape)), tensor(noise(*shape[:-1], 6, seed=2))

    def total(kernel):
        return ops.sum(ops.conv(x, kernel, padding="same") * upstream)

    expected = gradient(total, np.zeros((3, 3, shape[-1], 6), np.float32))
    _, values = winograd.convolve(x, tensor(noise(3, 3, shape[-1], 6)))
    slopes = array(winograd.kernel_gradient(values, upstream))
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tiles_are_counted_over_all_pictures_and_a_started_one_counts():
    assert winograd.tile_count((3, 8, 9, 2)) == 3 * 2 * 3
    _, values = winograd.convolve(tensor(noise(3, 8, 9, 2)), tensor(noise(3, 3, 2, 1)))
    assert values.shape == (36, 3 * 2 * 3, 2)
