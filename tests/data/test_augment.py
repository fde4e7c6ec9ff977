import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.data.augment import (
    add_jpeg_noise,
    blur,
    crop,
    flip_horizontal,
    flip_vertical,
    jitter_colour,
    rotate_90,
    scale,
    zoom,
)

TRANSFORMS = {
    "horizontal": flip_horizontal,
    "vertical": flip_vertical,
    **{
        f"turned {turns}": lambda image, boxes, turns=turns: rotate_90(image, boxes, turns)
        for turns in (-1, 0, 1, 2, 3)
    },
    "doubled": lambda image, boxes: scale(image, boxes, (2 * image.shape[0], 2 * image.shape[1])),
}


@st.composite
def painted(draw):
    """A black picture with one white box of whole pixels, and that box."""
    height, width = draw(st.integers(2, 30)), draw(st.integers(2, 30))
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image, np.array([[x1, y1, x2, y2]], np.float32)


def find_box(image):
    rows, columns = np.nonzero(image[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=40, deadline=None)
@given(sample=painted())
def test_the_box_stays_on_what_was_painted(name, sample):
    image, boxes = TRANSFORMS[name](*sample)
    np.testing.assert_array_equal(boxes, [find_box(image)])
    assert image.dtype == np.uint8
    assert boxes.dtype == np.float32


@pytest.mark.parametrize(
    "round_trip",
    [
        lambda image, boxes: flip_horizontal(*flip_horizontal(image, boxes)),
        lambda image, boxes: flip_vertical(*flip_vertical(image, boxes)),
        lambda image, boxes: rotate_90(image, boxes, 4),
        lambda image, boxes: rotate_90(*rotate_90(image, boxes, 1), -1),
        lambda image, boxes: scale(image, boxes, image.shape[:2]),
    ],
)
def test_there_and_back_is_the_identity(round_trip):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    corners = np.sort(generator.uniform(0, 20, (50, 2, 2)), axis=1).reshape(50, 4).astype(np.float32)
    same_image, same_boxes = round_trip(image, corners)
    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_allclose(same_boxes, corners, atol=1e-5)


def test_a_quarter_turn_by_hand():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 2] = 255  # top right goes to top left when turned counter-clockwise
    turned, boxes = rotate_90(image, np.array([[2, 0, 3, 1]], np.float32), 1)
    assert turned.shape == (3, 2, 3)
    assert turned[0, 0, 0] == 255
    np.testing.assert_array_equal(boxes, [[0, 0, 1, 1]])


def test_two_quarter_turns_are_both_flips():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    boxes = np.array([[1, 2, 3, 5]], np.float32)
    for turned, flipped in zip(rotate_90(image, boxes, 2), flip_vertical(*flip_horizontal(image, boxes)), strict=True):
        np.testing.assert_array_equal(turned, flipped)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_areas_are_kept_or_scaled_and_empty_boxes_pass(name):
    image = np.zeros((20, 30, 3), np.uint8)
    _, (box,) = TRANSFORMS[name](image, np.array([[1, 2, 11, 5]], np.float32))
    assert (box[2] - box[0]) * (box[3] - box[1]) == 30 * (4 if name == "doubled" else 1)
    assert TRANSFORMS[name](image, np.zeros((0, 4), np.float32))[1].shape == (0, 4)


def test_scale_takes_the_exact_ratio_of_each_axis():
    # 333 x 500 becomes 600 x 900, ratios 1.8018 and 1.8: the border stays the border.
    image, boxes = scale(
        np.zeros((333, 500, 3), np.uint8), np.array([[0, 0, 500, 333], [50, 111, 100, 222]]), (600, 900)
    )
    assert image.shape == (600, 900, 3)
    np.testing.assert_array_equal(boxes, [[0, 0, 900, 600], [90, 200, 180, 400]])


def test_colour_jitter_by_hand():
    image = np.full((4, 4, 3), 100, np.uint8)
    np.testing.assert_array_equal(jitter_colour(image, brightness=1.5), np.full_like(image, 150))
    np.testing.assert_array_equal(jitter_colour(image, brightness=9), np.full_like(image, 255))
    halves = np.repeat(np.array([50, 150], np.uint8), 8).reshape(4, 4)[..., None].repeat(3, axis=2)
    # Mean grey 100: contrast 0.5 moves both halfway to it.
    np.testing.assert_array_equal(np.unique(jitter_colour(halves, contrast=0.5)), [75, 125])
    # Brightness 2 first: 50 and 150 become 100 and 300 with mean 200, then both move halfway to it.
    np.testing.assert_array_equal(np.unique(jitter_colour(halves, brightness=2, contrast=0.5)), [150, 250])


def test_no_saturation_is_grey_and_factors_of_one_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    before = image.copy()
    np.testing.assert_array_equal(jitter_colour(image), image)
    grey = jitter_colour(image, saturation=0)
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, axis=2))
    assert len(np.unique(grey)) > 10
    np.testing.assert_array_equal(image, before)


def test_zoom_by_hand():
    """Columns 0, 10, .. 70. Twice as large, from the left: each pixel covers two, between centres a quarter of the way.

    Half as large, at the right: the border 0 is repeated over four columns, then the means of two.
    """
    image = np.tile(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], (8, 1, 3))
    np.testing.assert_allclose(zoom(image, 2.0, (0.0, 0.5))[3, :, 0], [0, 2, 8, 12, 18, 22, 28, 32], atol=1)
    np.testing.assert_allclose(zoom(image, 0.5, (1.0, 0.0))[3, :, 0], [0, 0, 0, 0, 5, 25, 45, 65], atol=1)
    np.testing.assert_array_equal(zoom(image, 1.0, (0.3, 0.7)), image)


def test_zoom_looks_where_it_is_told():
    """A spot at the lower left is seen, twice as wide, when the lower left is."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[12:14, 2:4] = 255
    found = {place: zoom(image, 2.0, place) for place in ((0.0, 1.0), (1.0, 0.0))}
    rows, columns = np.nonzero(found[0.0, 1.0][..., 0] > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 11, 4, 7)
    assert not found[1.0, 0.0].any()


@settings(max_examples=100, deadline=None)
@given(sample=painted(), data=st.data())
def test_a_crop_keeps_the_box_on_what_was_painted_or_drops_it_when_less_than_half_is_left(sample, data):
    image, boxes = sample
    height, width = image.shape[:2]
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    # A second box over the whole window stays, so that the painted one may be dropped.
    both = np.concatenate([boxes, [[x1, y1, x2, y2]]]).astype(np.float32)
    cut, found, kept = crop(image, both, (x1, y1, x2, y2))
    assert cut.shape == (y2 - y1, x2 - x1, 3) and (cut.dtype, found.dtype) == (np.uint8, np.float32)
    left = np.count_nonzero(cut[..., 0])
    assert kept.tolist() == [left >= np.count_nonzero(image[..., 0]) / 2, True]
    np.testing.assert_array_equal(found[-1], [0, 0, x2 - x1, y2 - y1])
    if kept[0]:
        np.testing.assert_array_equal(found[0], find_box(cut))


@settings(max_examples=60, deadline=None)
@given(sample=painted(), data=st.data())
def test_a_crop_never_drops_the_only_box(sample, data):
    image, boxes = sample
    height, width = image.shape[:2]
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    cut, found, kept = crop(image, boxes, (x1, y1, x1 + 1, y1 + 1))
    assert kept.tolist() == [True]
    np.testing.assert_array_equal(found, [find_box(cut)])


def test_a_crop_by_hand():
    """Of a 10x10 box a window of 20 from (5, 5) leaves 5x10 of one that begins at x=0, y=5: half, kept; 4.9x10 not."""
    image = np.arange(30 * 40 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)
    boxes = np.array([[0, 5, 10, 15], [-0.1, 5, 9.9, 15], [20, 20, 30, 30], [10, 10, 12, 12]], np.float32)
    cut, found, kept = crop(image, boxes, (5, 5, 25, 25))
    np.testing.assert_array_equal(cut, image[5:25, 5:25])
    assert kept.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(found, [[0, 0, 5, 10], [5, 5, 7, 7]])
    whole, none, _ = crop(image, np.zeros((0, 4), np.float32), (5, 5, 25, 25))
    assert whole.shape == (20, 20, 3) and none.shape == (0, 4)


@st.composite
def painted_large(draw):
    """As `painted`, with a box of at least 12 pixels at every side, which neither blur nor compression wears away."""
    x1, y1, width, height = (draw(st.integers(8, 24)) for _ in range(4))
    image = np.zeros((64, 64, 3), np.uint8)
    box = [x1, y1, x1 + max(12, width), y1 + max(12, height)]
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image, box


@pytest.mark.parametrize("change", [blur, add_jpeg_noise])
@settings(max_examples=40, deadline=None)
@given(sample=painted_large(), strength=st.integers(0, 10))
def test_blur_and_compression_leave_the_box_where_it_is(change, sample, strength):
    image, box = sample
    changed = change(image, strength / 5 if change is blur else 100 - 8 * strength)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert find_box(changed) == box


def test_blur_and_compression_do_what_they_say():
    """An edge of 0 and 200 blurred by 2 pixels is 200 times the normal distribution at each pixel's distance."""
    image = np.zeros((9, 40, 3), np.uint8)
    image[:, 20:] = 200
    expected = [200 * (1 + math.erf((x - 19.5) / 2 / math.sqrt(2))) / 2 for x in range(40)]
    np.testing.assert_allclose(blur(image, 2.0)[4, :, 1], expected, atol=2)
    np.testing.assert_array_equal(blur(image, 0.0), image)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 1), dtype=np.uint8).repeat(3, axis=2)
    errors = [np.abs(add_jpeg_noise(noise, quality).astype(int) - noise).mean() for quality in (100, 60, 20, 5)]
    assert errors == sorted(set(errors)) and errors[0] < 1 and errors[-1] > 40
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_allclose(add_jpeg_noise(red, 95), red, atol=3)
