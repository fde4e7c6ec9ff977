"""Pictures in files: their size from the header, their pixels, and the resize rule of training and detection."""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import struct
import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from frcnn.files import find_files, open_regular, read_at_most, replacing

_HEIC = (".heic", ".heif", ".hif")
_HEIC_PLUGIN = next(filter(importlib.util.find_spec, ("pillow_heif", "pi_heif")), None)
WRITTEN = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")  # suffixes of what is written in colour
# Suffixes, in lower case, by which pictures in a folder are known; the readers below go by the content.
SUFFIXES = (*WRITTEN, ".jpe", ".jfif", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
SUFFIXES += _HEIC if _HEIC_PLUGIN else ()
# Those of pictures that are not read: said, so that nobody misses them.
UNREAD = (
    *("" if _HEIC_PLUGIN else _HEIC),
    *(".jxl", ".svg", ".psd", ".xcf", ".eps", ".ai", ".pdf", ".tga", ".pcx", ".ico", ".exr", ".hdr", ".dds", ".dcm"),
    *(".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"),
)
_BY_PILLOW = ("AVIF", "HEIF", "JPEG2000")  # where OpenCV, or its build, has no decoder
# Where OpenCV obeys the EXIF tag and Pillow's size does not. Pillow turns a TIFF itself, OpenCV ignores an AVIF's tag.
_TURNED_BY_EXIF = ("JPEG", "MPO", "PNG", "WEBP")
# A side of the formats that hold less than is read.
_MOST_PIXELS = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}
# How GIF and TIFF begin: their transparent pixels, OpenCV paints with one colour (GIF) or black (TIFF).
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # and its byte order, as `struct` writes it
_HIDES_COLOURS = (b"GIF8", *_TIFF)
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_MOST_BYTES = 2**31 - 1  # OpenCV counts them in an int
_NO_PICTURE = "not a picture, or of a kind that is not read, such as floating-point TIFF"


def find_pictures(folder, skip=None, unlisted=None):
    """The pictures in a folder and its sub-folders; a warning counts those of kinds that are not read.

    Args, result and errors as in `frcnn.files.find_files`.
    """
    files = find_files(folder, SUFFIXES + UNREAD, skip, unlisted)
    pictures = [path for path in files if path.lower().endswith(SUFFIXES)]
    if left_out := Counter(os.path.splitext(path)[1].lower() for path in files if not path.lower().endswith(SUFFIXES)):
        counts = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common())
        cure = "pip install pillow-heif for HEIC; else " * bool(set(left_out) & set(_HEIC)) + "save them as PNG or JPEG"
        warnings.warn(f"{folder}: pictures of kinds that are not read are left out: {counts} ({cure})", stacklevel=2)
    return pictures


def image_size(path):
    """Read a picture's (height, width) from its header, as `read_image` will return it (EXIF rotation applied).

    Raises:
        ValueError: the file is missing, not a file, not a picture, or has more pixels than Pillow trusts; names it.
    """
    with _explained(path, "cannot read the picture's size"), open_regular(path) as file:
        return _header_size(_mended(file))


def exif_orientation(path):
    """The EXIF orientation of a picture that obeys one, 1 to 8; 1 where there is none.

    None where it is damaged, another number, or not one number of 16 bits, as it must be; OpenCV may obey it even so.

    Raises:
        ValueError: as in `image_size`.
    """
    problem = "cannot read the picture's EXIF"
    with _explained(path, problem), open_regular(path) as file, _open(_mended(file)) as picture:
        block = picture.info.get("exif", b"") if picture.format in _TURNED_BY_EXIF else b""
        return _valid_orientation(_orientation_entry(file if picture.format == "TIFF" else _exif_file(block)))


def read_image(path, bit_depth=None):
    """Decode a picture file to (H, W, 3) uint8 RGB: EXIF rotation applied, alpha dropped, 16 bits cut to 8.

    Of several pictures in a file (GIF, TIFF, WebP) the first is taken. `bit_depth`: how many of 16 bits a channel are
    used, 9 to 16; None: all.

    Raises:
        ValueError: the file is missing, not a file, not a picture, truncated, of 32 bits a channel, of another size
            than its header says, or has more pixels than Pillow trusts; names it.
    """
    return decode_image(read_picture_bytes(path), path, bit_depth=bit_depth)


def brightest_value(path):
    """The value of 16 bits that 999 of 1,000 in a picture do not pass, so that a few hot pixels do not count.

    Returns:
        int; None of a picture of fewer bits, told by its header, or of one that cannot be read.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, cv2.error, Image.DecompressionBombError):
        with open_regular(path) as file, Image.open(file) as picture:
            file.seek(0)
            tags = getattr(picture, "tag_v2", {})
            bits = file.read(25)[24] if picture.format == "PNG" else np.max(tags.get(_BITS_PER_SAMPLE, 0))
        if bits == 16:
            data = read_picture_bytes(path)
            pixels = None if _is_cut_png(data) else _decode_deep(data)
            return None if pixels is None else int(np.quantile(pixels, 0.999, method="lower"))
    return None


def read_picture_bytes(path):
    """Read a picture file whole, for `decode_image`.

    Raises:
        ValueError: it cannot be read, is not a file, is empty or larger than OpenCV takes; names it.
    """
    with _explained(path, "cannot read the picture"):
        data = read_at_most(path, _MOST_BYTES)
    if not data:
        raise ValueError(f"{path}: cannot read the picture ({'over 2 GB' if data is None else 'the file is empty'})")
    return data


def decode_image(data, path, grey_side=None, bit_depth=None):
    """Decode the bytes of a picture file; the size that they declare is looked at first.

    Args:
        data: bytes.
        path: the file, for the message.
        grey_side: None, or decode for comparison: grey, and a JPEG not larger than needed for sides of this length,
            which is several times faster.
        bit_depth: as in `read_image`; without grey_side.

    Returns:
        (H, W, 3) uint8 RGB as `read_image`; with grey_side (H, W) uint8.

    Raises:
        ValueError: as in `read_image`.
    """
    image = None
    with _explained(path, "cannot read the picture"), contextlib.suppress(UnidentifiedImageError):
        file = _mended(io.BytesIO(data))
        size, data = _header_size(file), file.getvalue()
        if not _is_cut_png(data):
            image = _decode(data, bit_depth) if grey_side is None else _decode_grey(data, min(size) // grey_side)
    if image is None:
        raise ValueError(f"{path}: cannot decode the picture ({len(data)} bytes; truncated, or {_NO_PICTURE})")
    if grey_side is None and image.shape[:2] != size:
        found = f"its header says {size[0]}x{size[1]}, decoded it is {image.shape[0]}x{image.shape[1]}"
        raise ValueError(f"{path}: cannot trust the picture ({found}: save it anew)")
    return image


def _header_size(file):
    with _open(file) as picture:
        width, height = picture.size
        turned = picture.format in _TURNED_BY_EXIF and _exif_orientation(picture) >= 5
    return (width, height) if turned else (height, width)


def _decode(data, bit_depth=None):
    if bit_depth and (deep := _decode_deep(data)) is not None:
        return np.minimum(deep >> (bit_depth - 8), 255).astype(np.uint8)
    if data[:4] in _HIDES_COLOURS:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in ("L", "P", "RGBA"):
                return np.array(picture.convert("RGB"))
    # cv2.imread fails on non-ASCII paths under Windows, and tells a missing file from a broken one only on stderr.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return _decode_by_pillow(data) if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_by_pillow(data):
    with _open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB")) if picture.format in _BY_PILLOW else None


def _open(file):
    """`Image.open`, which a plugin teaches HEIC where one is installed."""
    start = file.read(12)
    file.seek(0)
    is_heic = start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")
    if is_heic and _HEIC_PLUGIN:
        _learn_heic()
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        if is_heic and not _HEIC_PLUGIN:
            raise ValueError("HEIC is read with a plugin: pip install pillow-heif") from error
        raise


@functools.cache
def _learn_heic():
    importlib.import_module(_HEIC_PLUGIN).register_heif_opener()


def _decode_deep(data):
    """(H, W, 3) uint16 RGB of a picture of 16 bits a channel; None of any other."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return None if image is None or image.dtype != np.uint16 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _is_cut_png(data):
    """Whether a chunk of a PNG goes on after the end of the file: OpenCV would reserve up to 4 GB for it first."""
    place = len(_PNG)
    while data.startswith(_PNG) and place <= len(data) - 8:
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return False
        place += 8 + length
        if place > len(data):
            return True
        place += 4
    return False


def _decode_grey(data, most_shrinking):
    if data[:2] != b"\xff\xd8":
        image = _decode(data)
        return image if image is None else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    modes = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
    mode = next((mode for factor, mode in modes.items() if factor <= most_shrinking), cv2.IMREAD_GRAYSCALE)
    return cv2.imdecode(np.frombuffer(data, np.uint8), mode)


@contextlib.contextmanager
def _explained(path, problem):
    try:
        yield
    except Image.DecompressionBombError as error:
        limit = f"more than the {2 * Image.MAX_IMAGE_PIXELS:,} pixels that are decoded"
        raise ValueError(f"{path}: {problem} ({limit}: scale it down, or cut it into parts)") from error
    except (OSError, ValueError, cv2.error) as error:
        raise ValueError(f"{path}: {problem} ({_reason(error)})") from error


def as_rgb(pixels):
    """(H, W) or (H, W, 1, 3 or 4) uint8 -> (H, W, 3) uint8 RGB: grey repeated, alpha dropped."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])


def write_image(path, image):
    """Write (H, W, 3) uint8 RGB in the format of the path's suffix; missing folders are made.

    Raises:
        ValueError: the file cannot be written, OpenCV does not know the suffix, or the format holds no such size.
    """
    suffix, longer = Path(path).suffix.lower(), max(image.shape[:2])
    if longer > _MOST_PIXELS.get(suffix, longer):  # OpenCV says so only on stderr
        reason = f"a side of {longer:,} pixels is more than the {_MOST_PIXELS[suffix]:,} that {suffix} holds"
        raise ValueError(f"{path}: the picture cannot be written ({reason})")
    try:
        _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        with replacing(path, binary=True) as file:
            file.write(data)
    except (cv2.error, OSError) as error:
        is_disk = isinstance(error, OSError)
        reason = (error.strerror or error) if is_disk else "its suffix is not that of a picture, such as .png"
        raise ValueError(f"{path}: the picture cannot be written ({reason})") from error


def resized_size(height, width, im_size, max_size):
    """Size after resizing: shorter side to `im_size` unless the longer side would pass `max_size` (torchvision's rule).

    Sides are rounded down, in integers, so that the side that sets the scale is met exactly.

    Returns:
        (height, width), integers of at least 1.
    """
    short, long = sorted((height, width))
    target, side = (im_size, short) if im_size * long <= max_size * short else (max_size, long)
    return max(1, height * target // side), max(1, width * target // side)


def resize_image(image, size):
    """Resize a (H, W, 3) uint8 image to size (height, width).

    Bilinear, as torchvision and Detectron2 train. Bilinear reads 2x2 pixels, so below half size it skips some and
    aliases; there every source pixel is averaged instead.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks_much = 2 * height < image.shape[0] or 2 * width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks_much else cv2.INTER_LINEAR)


def _exif_orientation(picture):
    """The tag of the EXIF block alone, as OpenCV obeys it: `picture.getexif` decodes a PNG and believes XMP too."""
    entry = _orientation_entry(_exif_file(picture.info.get("exif", b"")))
    value = entry[-1] if entry else 1
    return value if value in range(1, 9) else 1


def _exif_file(block):
    return io.BytesIO(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else io.BytesIO(b"damaged")


def _orientation_entry(file):
    """The tag in a TIFF, which an EXIF block is: (place, byte order, type, count, first 16 bits of the value).

    None where there is none, and () where the structure is damaged.
    """
    file.seek(0)
    start = file.read(8)
    order = _TIFF.get(start[:4])
    try:
        (place,) = struct.unpack_from(f"{order}I", start, 4)
        file.seek(place)
        (count,) = struct.unpack(f"{order}H", file.read(2))
        entries = file.read(12 * count)
        for offset in range(0, 12 * count, 12):
            tag, *entry = struct.unpack_from(f"{order}HHIH", entries, offset)
            if tag == ExifTags.Base.Orientation:
                return place + 2 + offset, order, *entry
    except struct.error:  # no block, or a damaged one: OpenCV reads on without it, and so must the size
        return () if start else None
    return None


def _valid_orientation(entry):
    if entry is None:
        return 1
    is_one_short = entry[2:4] == (3, 1)  # a number of 16 bits in TIFF's numbering of types
    return entry[-1] if is_one_short and entry[-1] in range(1, 9) else None


def _mended(file):
    """The file; of a TIFF whose orientation is none, which decoders take differently, a copy that says upright."""
    is_tiff = file.read(4) in _TIFF
    entry = _orientation_entry(file) if is_tiff else None
    file.seek(0)
    if not entry or _valid_orientation(entry):
        return file
    data = bytearray(file.read())
    struct.pack_into(f"{entry[1]}HHIHH", data, entry[0], ExifTags.Base.Orientation, 3, 1, 1, 0)
    return io.BytesIO(data)


def _reason(error):
    return _NO_PICTURE if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
