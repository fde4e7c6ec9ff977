"""Pictures in files: their size from the header, their pixels, and the resize rule of training and detection."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from frcnn.files import replacing

# Suffixes, in lower case, by which pictures in a folder are known; the readers below go by the content.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Where OpenCV obeys the EXIF tag and Pillow's size does not. Pillow turns a TIFF itself, OpenCV ignores an AVIF's tag.
_TURNED_BY_EXIF = ("JPEG", "MPO", "PNG", "WEBP")
# How GIF and TIFF begin: their transparent pixels, OpenCV paints with one colour (GIF) or black (TIFF).
_HIDES_COLOURS = (b"GIF8", b"II*\0", b"MM\0*")
_NO_PICTURE = "not a picture, or of a kind that is not read, such as floating-point TIFF"


def image_size(path):
    """Read a picture's (height, width) from its header, as `read_image` will return it (EXIF rotation applied).

    Raises:
        ValueError: the file is missing, not a picture, or too large for Pillow to trust; names the file.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.format in _TURNED_BY_EXIF and _exif_orientation(picture) >= 5
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the picture's size ({_reason(error)})") from error
    return (width, height) if turned else (height, width)


def read_image(path):
    """Decode a picture file to (H, W, 3) uint8 RGB: EXIF rotation applied, alpha dropped, 16 bits cut to 8.

    Of several pictures in a file (GIF, TIFF, WebP) the first is taken.

    Raises:
        ValueError: the file is missing, not a picture, truncated, or of 32 bits a channel; names the file.
    """
    # cv2.imread fails on non-ASCII paths under Windows, and tells a missing file from a broken one only on stderr.
    try:
        data = np.fromfile(path, np.uint8)
        image = _decode(data) if data.size else None
    except (OSError, cv2.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the picture ({_reason(error)})") from error
    if image is None:
        raise ValueError(f"{path}: cannot decode the picture ({data.size} bytes; truncated, or {_NO_PICTURE})")
    return image


def _decode(data):
    if data[:4].tobytes() in _HIDES_COLOURS:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in ("L", "P", "RGBA"):
                return np.array(picture.convert("RGB"))
    image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(path, image):
    """Write (H, W, 3) uint8 RGB in the format of the path's suffix; missing folders are made.

    Raises:
        ValueError: the folder cannot be written to, or OpenCV does not know the suffix.
    """
    try:
        _, data = cv2.imencode(Path(path).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        with replacing(path, binary=True) as file:
            file.write(data)
    except (cv2.error, OSError) as error:
        reason = error if isinstance(error, OSError) else "its suffix is not that of a picture, such as .png"
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
    """The tag of the EXIF block alone, as OpenCV reads it: `picture.getexif` decodes a PNG and believes XMP too."""
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error):  # a damaged block: OpenCV reads on without it, and so must the size
        return 1
    return orientation if orientation in range(1, 9) else 1


def _reason(error):
    return _NO_PICTURE if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
