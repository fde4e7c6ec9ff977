import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from frcnn.data.images import image_size, read_image, resize_image, resized_size, write_image

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "detection_ops_torchvision.json").read_text())
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(path, mode="RGB", exif=None):
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.save(path, **({} if exif is None else {"exif": exif}))
    return path


def oriented(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = save(tmp_path / "picture.png", mode)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")))


def test_16_bits_are_cut_to_8(tmp_path):
    deep = np.full((4, 6), 0x1234, np.uint16)
    (tmp_path / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), np.full((4, 6, 3), 0x12))


def test_a_path_may_hold_any_letters(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "größe 図.png")), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("orientation", range(10))
def test_size_from_the_header_is_that_of_the_pixels(tmp_path, suffix, orientation):
    path = save(tmp_path / f"picture.{suffix}", exif=None if suffix in ("bmp", "gif") else oriented(orientation))
    assert image_size(path) == read_image(path).shape[:2]


def test_orientation_6_is_a_quarter_turn_clockwise(tmp_path):
    path = save(tmp_path / "picture.png", exif=oriented(6))
    assert image_size(path) == (60, 40)
    np.testing.assert_array_equal(read_image(path), np.rot90(PIXELS, -1))


def test_a_damaged_exif_block_is_ignored_by_both(tmp_path):
    path = save(tmp_path / "picture.jpg", exif=b"Exif\0\0no tags here")
    assert image_size(path) == read_image(path).shape[:2] == (40, 60)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_picture_is_an_error(tmp_path, suffix, share):
    data = save(tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=f"cut.{suffix}: cannot decode the picture"):
        read_image(path)


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_what_is_not_a_picture_is_an_error_that_names_it(tmp_path, reader):
    (tmp_path / "text.jpg").write_text("not a picture")
    for name in ("text.jpg", "absent.jpg"):
        with pytest.raises(ValueError, match=f"{name}: cannot"):
            reader(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read the picture"):
        reader(tmp_path)


def test_size_does_not_decode(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    (tmp_path / "header.png").write_bytes(stream.getvalue()[:100])  # signature and IHDR take 33 bytes
    assert image_size(tmp_path / "header.png") == (40, 60)


@pytest.mark.parametrize("limits", ["600,1000", "800,1333"])
def test_resized_size_equals_torchvisions(limits):
    im_size, max_size = map(int, limits.split(","))
    for height, width, new_height, new_width in GOLDEN["resize_rule"]["h_w_newh_neww"][limits]:
        assert resized_size(height, width, im_size, max_size) == (new_height, new_width)


def test_resized_size_meets_the_side_that_decides():
    for side in range(1, 3000):
        assert resized_size(side, 2 * side, 600, 2000) == (600, 1200)
        assert max(resized_size(side, 3 * side, 600, 1000)) == 1000
    assert resized_size(1, 5000, 600, 1000) == (1, 1000)


def test_resize_image_is_bilinear_until_half_size_and_averages_below():
    np.testing.assert_array_equal(resize_image(PIXELS, (40, 60)), PIXELS)
    np.testing.assert_array_equal(resize_image(PIXELS, (30, 45)), cv2.resize(PIXELS, (45, 30)))
    averages = PIXELS.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(PIXELS, (10, 15)) - averages).max() <= 0.5


def test_a_written_picture_is_rgb_and_of_the_suffixs_format(tmp_path):
    write_image(tmp_path / "picture.png", PIXELS)
    assert np.array_equal(read_image(tmp_path / "picture.png"), PIXELS)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    write_image(tmp_path / "rot, ñ.jpg", red)
    with Image.open(tmp_path / "rot, ñ.jpg") as picture:
        assert picture.format == "JPEG"
        assert np.abs(np.asarray(picture).astype(int) - red).max() < 12


@pytest.mark.parametrize("name", ["missing/a.png", "a.unknown", "a"])
def test_a_picture_that_cannot_be_written_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: the picture cannot be written"):
        write_image(tmp_path / name, PIXELS)
