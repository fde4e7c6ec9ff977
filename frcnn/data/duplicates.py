"""Pictures that occur twice: copies of a file, or nearly the same, as re-encoded, resized, brightened or shot again."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

from frcnn.data.images import decode_image, read_picture_bytes
from frcnn.data.threads import map_in_threads

_SIDE = 32  # pixels that a picture is compared by, along each side
_BLUR = _SIDE / 8  # what is smoother than this, such as a lamp's glow, many different pictures have in common
_FLAT = 1.0  # grey levels of deviation; a picture with fewer shows nothing to compare
# Of 364 microscope fields and 363 photographs of cards the most alike different ones correlate by 0.45 and 0.77, pairs
# shot again within seconds by 0.96 to 0.99, and copies (JPEG quality 30, 0.3 of the size, brighter) by 0.965 or more.
SAME_CORRELATION = 0.9
_ROWS = 1024  # pictures that are compared with all others at once: 40 MB for 10,000


@dataclass(frozen=True)
class Fingerprint:
    """What a picture is compared by.

    Attributes:
        digest: bytes, equal for equal files only.
        view: (1024,) float32, the detail of the small grey picture, of length 1; zeros where it shows nothing.
    """

    digest: bytes
    view: np.ndarray


def fingerprint(path):
    """Read a picture, whole, and make its Fingerprint. A copy turned or mirrored in its pixels has another one.

    Raises:
        ValueError: it cannot be read or decoded; names the file.
    """
    data = read_picture_bytes(path)
    grey = decode_image(data, path, grey_side=_SIDE)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), _BLUR)
    detail = (detail - detail.mean()).ravel()
    length = np.linalg.norm(detail)
    view = detail / length if length >= _FLAT * _SIDE else np.zeros_like(detail)
    return Fingerprint(hashlib.blake2b(data, digest_size=16).digest(), view)


def near_duplicates(paths, workers=0):
    """Group the pictures that are the same or nearly; errors as in `fingerprint`.

    Args:
        paths: list of files.
        workers: threads that decode.

    Returns:
        list of tuples of two or more indices into paths, as in `group_duplicates`.
    """
    return group_duplicates(list(map_in_threads(fingerprint, paths, workers, ahead=workers)))


def group_duplicates(fingerprints):
    """Group equal files, and pictures whose views correlate by `SAME_CORRELATION` or more.

    What is like a picture of a group belongs to it: a slow pan of a camera is one group.

    Args:
        fingerprints: list of N Fingerprint; the time grows with N squared, 2 s for 10,000.

    Returns:
        list of tuples of two or more indices, ascending, in the order of their first.
    """
    if not fingerprints:
        return []
    first_of_digest = {}
    group = np.array([first_of_digest.setdefault(mark.digest, index) for index, mark in enumerate(fingerprints)])
    views = np.stack([mark.view for mark in fingerprints])
    for start in range(0, len(views), _ROWS):
        alike = views[start : start + _ROWS] @ views[start:].T >= SAME_CORRELATION
        for row in np.flatnonzero(alike.sum(axis=1) > 1):
            joined = np.unique(group[start:][alike[row]])
            if len(joined) > 1:
                group[np.isin(group, joined)] = joined[0]
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return [tuple(part.tolist()) for part in parts if len(part) > 1]
