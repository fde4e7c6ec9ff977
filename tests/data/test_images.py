import io
import json
import os
import resource
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frcnn.data import images
from frcnn.data.images import (
    SUFFIXES,
    as_rgb,
    brightest_value,
    decode_image,
    exif_orientation,
    find_pictures,
    image_size,
    read_image,
    read_picture_bytes,
    resize_image,
    resized_size,
    write_image,
)
from tests.fuzz import pictures as fuzz

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "detection_ops_torchvision.json").read_text())
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


KINDS = {
    "png": "1 L LA P RGB RGBA",
    "gif": "1 L P",
    "tif": "1 L LA P RGB RGBA CMYK",
    "bmp": "1 L P RGB RGBA",
    "webp": "RGB RGBA",
    "jpg": "L RGB CMYK",
}
TURNS = {  # what each EXIF orientation asks for
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


def save(path, mode="RGB", exif=None, **options):
    picture = Image.fromarray(PIXELS).convert(mode)
    if mode.endswith("A"):  # the left half is hidden, the right half shines through
        picture.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 200]]), 30, axis=1).repeat(40, axis=0)))
    if path.suffix == ".webp":
        options |= {"lossless": True, "exact": True}
    picture.save(path, **options, **({} if exif is None else {"exif": exif}))
    return path


NAMED = [
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".j2k",
    ".avif",
]


def oriented(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def by_pillow(path):
    with Image.open(io.BytesIO(path.read_bytes())) as picture:  # from a file, it turns some TIFFs wrongly
        return np.asarray(picture.convert("RGB"))


def assert_is_read_as(path, expected, tolerance=0):
    image = read_image(path)
    assert (image.dtype, image.shape, image_size(path)) == (np.uint8, expected.shape, expected.shape[:2])
    assert np.abs(image.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix in KINDS for mode in KINDS[suffix].split()])
def test_every_colour_mode_becomes_rgb(tmp_path, suffix, mode):
    path = save(tmp_path / f"picture.{suffix}", mode)
    assert_is_read_as(path, by_pillow(path), tolerance=int(mode == "CMYK"))


@pytest.mark.parametrize(
    ("suffix", "mode", "transparency"),
    [("png", "P", 3), ("png", "P", bytes(range(0, 160, 10))), ("png", "L", 99), ("gif", "P", 3), ("gif", "L", 99)],
)
def test_transparent_colours_are_shown(tmp_path, suffix, mode, transparency):
    every_grey = np.arange(40 * 60).astype(np.uint8).reshape(40, 60)
    picture = Image.fromarray(PIXELS).quantize(16) if mode == "P" else Image.fromarray(every_grey)
    picture.save(tmp_path / f"picture.{suffix}", transparency=transparency)
    assert_is_read_as(tmp_path / f"picture.{suffix}", np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("adobe", [b"\0", b"\2", None], ids=["CMYK", "YCCK", "no marker"])
def test_jpegs_in_print_colours(tmp_path, adobe):
    """Pillow's file with Adobe's marker changed to that of YCCK, or without it: other colours, the same for both."""
    path = save(tmp_path / "picture.jpg", "CMYK")
    data = path.read_bytes()
    end = data.index(b"Adobe") + 12
    path.write_bytes(data[: end - 1] + adobe + data[end:] if adobe else data[: end - 16] + data[end:])
    assert_is_read_as(path, by_pillow(path), tolerance=1)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("png", 4), ("tif", 1), ("tif", 3)])
def test_16_bits_are_cut_to_8(tmp_path, suffix, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, channels), dtype=np.uint16)
    (tmp_path / f"deep.{suffix}").write_bytes(cv2.imencode(f".{suffix}", deep)[1].tobytes())
    expected = np.uint8((deep[..., 2::-1] if channels > 1 else deep.repeat(3, axis=2)) >> 8)
    assert_is_read_as(tmp_path / f"deep.{suffix}", expected, tolerance=int(suffix == "tif" and channels == 3))


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 4), ("tif", 1), ("tif", 3), ("tif", 4)])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_of_16_bits_those_in_use_become_8(tmp_path, suffix, channels, bits):
    deep = np.random.default_rng(0).integers(0, 2**bits, (40, 60, channels), dtype=np.uint16)
    deep[0, :2] = [[2**bits - 1], [2**16 - 1]]  # brighter than the bits allow: white
    path = tmp_path / f"deep.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix}", deep)[1].tobytes())
    expected = deep[..., 2::-1] if channels > 1 else deep.repeat(3, axis=2)
    np.testing.assert_array_equal(read_image(path, bits), np.minimum(expected // 2 ** (bits - 8), 255))
    assert brightest_value(path) == pytest.approx(2**bits, rel=0.02)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.gif"])
def test_pictures_of_8_bits_have_no_bit_depth(tmp_path, name):
    path = save(tmp_path / name)
    np.testing.assert_array_equal(read_image(path, 12), read_image(path))
    assert brightest_value(path) is brightest_value(tmp_path / "absent") is None


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_pictures_the_first_is_read(tmp_path, suffix):
    path = save(tmp_path / f"picture.{suffix}", "P", save_all=True, append_images=[Image.new("RGB", (60, 40))])
    assert_is_read_as(path, by_pillow(path))
    assert read_image(path).any()


@pytest.mark.parametrize("kind", ["floats", "32-bit integers", "floating-point colours"])
def test_tiffs_of_32_bits_are_refused_in_a_sentence(tmp_path, kind):
    path = tmp_path / "deep.tif"
    if kind == "floating-point colours":
        path.write_bytes(cv2.imencode(".tif", np.zeros((40, 60, 3), np.float32))[1].tobytes())
    else:
        Image.fromarray(np.zeros((40, 60), np.float32 if kind == "floats" else np.int32)).save(path)
    with pytest.raises(ValueError, match=r"deep.tif: cannot .* such as floating-point TIFF\)$"):
        read_image(path)


def test_a_path_may_hold_any_letters(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "größe 図.png")), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("orientation", range(10))
def test_size_from_the_header_is_that_of_the_pixels(tmp_path, suffix, orientation):
    path = save(tmp_path / f"picture.{suffix}", exif=None if suffix in ("bmp", "gif") else oriented(orientation))
    assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "kind", ["jpg RGB", "jpg L", "png RGB", "png P", "webp RGB", "tif RGB", "tif L", "tif P", "tif RGBA", "tif CMYK"]
)
def test_pixels_are_turned_as_exif_asks(tmp_path, kind, orientation):
    suffix, mode = kind.split()
    upright = by_pillow(save(tmp_path / f"upright.{suffix}", mode))
    path = save(tmp_path / f"turned.{suffix}", mode, exif=oriented(orientation))
    assert_is_read_as(path, TURNS[orientation](upright), tolerance=int(mode == "CMYK"))


def test_a_damaged_exif_block_is_ignored_by_both(tmp_path):
    path = save(tmp_path / "picture.jpg", exif=b"Exif\0\0no tags here")
    assert image_size(path) == read_image(path).shape[:2] == (40, 60)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, of a TIFF
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_picture_is_an_error(tmp_path, suffix, share):
    data = save(tmp_path / f"whole.{suffix}", "RGBA" if suffix == "tif" else "RGB").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=f"cut.{suffix}: cannot (decode|read) the picture"):
        read_image(path)


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_what_is_not_a_picture_is_an_error_that_names_it(tmp_path, reader):
    (tmp_path / "text.jpg").write_text("not a picture")
    for name in ("text.jpg", "absent.jpg"):
        with pytest.raises(ValueError, match=f"{name}: cannot"):
            reader(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read the picture"):
        reader(tmp_path)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more)


BOMBS = {  # a few bytes that declare thousands of millions of pixels
    "png": png(60000, 60000, png_chunk(b"IDAT", zlib.compress(b"\0")), png_chunk(b"IEND", b"")),
    "gif": b"GIF89a" + struct.pack("<HH3xB4HB", 60000, 60000, 44, 0, 0, 60000, 60000, 0) + b"\2\1\0\0;",
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "jpg": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HHB", 60000, 60000, 3) + b"\1\x11\0\2\x11\1\3\x11\1\xff\xd9",
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("reader", [read_image, image_size])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, reader, kind):
    (tmp_path / f"bomb.{kind}").write_bytes(BOMBS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = f"bomb.{kind}: cannot read the picture.* than the 178,956,970 pixels that are decoded: scale it down"
    with pytest.raises(ValueError, match=message):
        reader(tmp_path / f"bomb.{kind}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1, 200])
def test_a_png_chunk_longer_than_the_file_reserves_nothing(tmp_path, length):
    """OpenCV 5.0 takes 4 GB and 7 s for the 95 bytes of the largest."""
    path = tmp_path / "long.png"
    path.write_bytes(png(20, 12, struct.pack(">I", length) + b"IDAT" + bytes(50)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"long.png: cannot decode the picture \(\d+ bytes; truncated"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_small_file_is_read_into_little_memory(tmp_path):
    path = save(tmp_path / "small.png")
    tracemalloc.start()
    try:
        read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6  # as much as is asked for, used or not
    finally:
        tracemalloc.stop()


def test_a_file_too_large_for_opencv_is_refused_unread(tmp_path, monkeypatch):
    path = save(tmp_path / "large.png")
    monkeypatch.setattr("frcnn.data.images._MOST_BYTES", path.stat().st_size)
    assert read_image(path).shape == (40, 60, 3)
    with path.open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"large.png: cannot read the picture \(over 2 GB\)"):
        read_image(path)


@pytest.mark.parametrize("reader", [read_image, image_size])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (tmp_path, tmp_path / "pipe.jpg", "/dev/zero", "/dev/stdin"):
        with pytest.raises(ValueError, match=f"{name}: cannot read the picture.*(not a file|No such)"):
            reader(name)
    with pytest.raises(ValueError, match=r"cannot read the picture.*null"):
        reader(f"{tmp_path}/a\0b.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, of a JPEG
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\0" * 40], ids=repr
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_changes_nothing(tmp_path, suffix, exif):
    path = save(tmp_path / f"picture.{suffix}", exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == (40, 60)


def odd_orientation(order, *entry):
    """An EXIF block whose orientation has this (type, count) and bytes as its value."""
    kind, count, value = entry
    header, tag = struct.pack(f"{order}HIH", 42, 8, 1), struct.pack(f"{order}HHI", 274, kind, count)
    return b"Exif\0\0" + {"<": b"II", ">": b"MM"}[order] + header + tag + value + bytes(4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "mpo", "tif"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        *((3, 1, struct.pack("BBBB", 0, value, 0, value)) for value in (0, 9, 255)),
        (2, 2, b"6\0\0\0"),
        (7, 1, b"\6\0\0\0"),
        (1, 1, b"\6\0\0\0"),
        (5, 1, b"\x1a\0\0\0"),
        (5, 1, b"\xff\xff\xff\xff"),
        (3, 2, b"\6\0\6\0"),
        (4, 2, b"\6\0\6\0"),
        (4, 1, b"\6\0\0\0"),
        (13, 1, b"\6\0\0\0"),
        (99, 2**32 - 1, b"\6\0\0\0"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the tag
def test_an_orientation_that_is_none_is_known_and_read_over(tmp_path, suffix, order, kind, count, value):
    if suffix == "tif":
        path = save(tmp_path / "picture.tif", exif=oriented(6))
        entry, odd = struct.pack("<HHIH", 274, 3, 1, 6), struct.pack("<HHI", 274, kind, count) + value[:2]
        path.write_bytes(path.read_bytes().replace(entry, odd))
    else:
        path = save(tmp_path / f"picture.{suffix}", exif=odd_orientation(order, kind, count, value))
    assert exif_orientation(path) is None
    assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientations_are_known(tmp_path, suffix):
    found = [exif_orientation(save(tmp_path / f"{value}.{suffix}", exif=oriented(value))) for value in range(10)]
    assert found == [None, *range(1, 9), None]
    assert exif_orientation(save(tmp_path / f"plain.{suffix}")) == 1


@pytest.mark.parametrize("suffix", sorted({*SUFFIXES, *NAMED} - {".heic", ".heif", ".hif"}))
def test_every_suffix_is_read(tmp_path, suffix):
    """By what the suffix stands for: JPEG's own names, pixmaps, JPEG 2000, AVIF."""
    path = tmp_path / f"picture{suffix}"
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM"}.get(suffix)
    try:
        Image.fromarray(PIXELS).convert(mode).save(path, kind)
    except (OSError, KeyError) as error:
        pytest.skip(f"this Pillow writes no {suffix}: {error}")
    is_lossy = suffix in (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".avif", ".webp", ".jp2", ".j2k")
    assert_is_read_as(path, by_pillow(path), tolerance=40 if is_lossy else 0)
    assert find_pictures(tmp_path) == [str(path)]


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF"])
def test_what_opencv_cannot_decode_pillow_does(tmp_path, monkeypatch, kind):
    path = tmp_path / "picture"
    Image.fromarray(PIXELS).save(path, kind)
    monkeypatch.setattr("cv2.imdecode", lambda *_: None)
    assert_is_read_as(path, by_pillow(path))
    Image.fromarray(PIXELS).save(path, "PNG")
    with pytest.raises(ValueError, match="cannot decode the picture"):
        read_image(path)


def test_heic_is_read_by_a_plugin(tmp_path, monkeypatch):
    """One that stands in for pillow-heif: it takes what follows the first 12 bytes for a PNG."""

    def open_heic(file, name):
        file.seek(12)
        picture = Image.open(io.BytesIO(file.read()))
        picture.format = "HEIF"
        return picture

    def register_heif_opener():
        Image.register_open("HEIF", open_heic, lambda start: start[4:12] == b"ftypheic")

    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + save(tmp_path / "a.png").read_bytes())
    monkeypatch.setitem(sys.modules, "heic_plugin", SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setattr(images, "_HEIC_PLUGIN", None)
    with pytest.raises(ValueError, match=r"a.heic: cannot .*HEIC is read with a plugin: pip install pillow-heif"):
        read_image(path)
    monkeypatch.setattr(images, "_HEIC_PLUGIN", "heic_plugin")
    try:
        assert_is_read_as(path, PIXELS)
    finally:
        images._learn_heic.cache_clear()
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")


def test_pictures_that_are_not_read_are_counted(tmp_path):
    for name in ("a.png", "b.PSD", "deep/c.psd", "d.svg", "e.txt", "out/f.psd", "g.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    heic = "" if images._HEIC_PLUGIN else ", 1 .heic"
    with pytest.warns(UserWarning, match=rf"are left out: 2 .psd, 1 .svg{heic} \(.*save them as PNG or JPEG\)$"):
        assert find_pictures(tmp_path, skip=tmp_path / "out")[0] == str(tmp_path / "a.png")


def test_a_header_that_the_decoder_contradicts_is_an_error(tmp_path, monkeypatch):
    path = save(tmp_path / "picture.png")
    monkeypatch.setattr("frcnn.data.images._header_size", lambda file: (60, 40))
    with pytest.raises(
        ValueError, match=r"picture.png: cannot trust .*header says 60x40, decoded it is 40x60: save it"
    ):
        read_image(path)


def test_bytes_are_decoded_as_they_were_checked_whatever_becomes_of_the_file(tmp_path):
    path = save(tmp_path / "picture.png")
    data = read_picture_bytes(path)
    path.write_bytes(BOMBS["png"])
    np.testing.assert_array_equal(decode_image(data, path), PIXELS)


@pytest.mark.parametrize(
    ("suffix", "side", "shape"), [("jpg", 20, (20, 30)), ("jpg", 30, (40, 60)), ("png", 5, (40, 60))]
)
def test_a_jpeg_for_comparison_is_decoded_small(tmp_path, suffix, side, shape):
    path = save(tmp_path / f"picture.{suffix}")
    grey = decode_image(path.read_bytes(), path, grey_side=side)
    assert (grey.shape, grey.dtype) == (shape, np.uint8)
    assert abs(grey.mean() - PIXELS.mean()) < 3


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files
@settings(max_examples=100)
@given(st.binary(max_size=300), st.sampled_from([b"", *(bomb[:4] for bomb in BOMBS.values()), b"II*\0", b"RIFF"]))
def test_random_bytes_are_a_picture_or_a_value_error(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(start + data)
    assert fuzz.check(path) in ("decoded", "header only", "refused")


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files
def test_damaged_pictures_are_read_or_refused(tmp_path):
    """`python -m tests.fuzz.pictures 100000` is the long version."""
    outcomes = fuzz.run(400, 0, tmp_path)
    assert min(outcomes.values()) > 20 and len(outcomes) == 3, outcomes


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


@pytest.mark.parametrize("name", ["file/a.png", "a.unknown", "a"])
def test_a_picture_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{name}: the picture cannot be written"):
        write_image(tmp_path / name, PIXELS)


def test_every_kind_of_array_becomes_rgb():
    grey = PIXELS[..., 0]
    for pixels in (grey, grey[..., None], np.dstack([grey] * 3)):
        assert np.array_equal(as_rgb(pixels), np.dstack([grey] * 3))
    found = as_rgb(np.dstack([PIXELS, grey]))
    assert np.array_equal(found, PIXELS) and found.flags.c_contiguous
