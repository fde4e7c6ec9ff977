"""Damaged pictures for the two decoders; `python -m tests.fuzz.pictures 100000` runs many and prints what they met.

Only a ValueError that names the file may leave them, and within seconds; sizes must agree where both succeed.
"""

import collections
import io
import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from frcnn.data.images import image_size, read_image
from tests.fuzz.mutations import mutate

SLOWEST = 10  # seconds of processor time; a file may declare up to 179 million pixels


KINDS = {  # colour modes and options of each
    "JPEG": ("RGB L CMYK", {}, {"progressive": True}),
    "PNG": ("RGB L P RGBA 1", {}),
    "GIF": ("P", {}),
    "BMP": ("RGB P", {}),
    "WEBP": ("RGB RGBA", {}, {"lossless": True}),
    "TIFF": ("RGB L P CMYK RGBA 1", {}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}),
}


def corpus():
    """Small whole pictures of every kind that is read, turned by EXIF where there is such a thing."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    for kind, (modes, *variants) in KINDS.items():
        for mode, options in itertools.product(modes.split(), variants):
            stream = io.BytesIO()
            exif_option = {} if kind in ("GIF", "BMP") else {"exif": exif}
            image.convert(mode).save(stream, kind, **options, **exif_option)
            yield stream.getvalue()


def check(path):
    """Read one file; returns what happened, for counting.

    Raises:
        AssertionError: anything but a picture or a ValueError that names the file.
    """
    results, start = [], time.process_time()
    for reader in (image_size, read_image):
        try:
            result = reader(path)
            results.append(result if reader is image_size else result.shape[:2])
        except ValueError as error:
            if not str(error).startswith(f"{path}: cannot "):
                raise AssertionError(f"does not name the file: {error}") from error
            results.append(None)
    assert time.process_time() - start < SLOWEST, "too slow"
    size, decoded = results
    assert decoded is None or size == decoded, f"the header says {size}, decoded is {decoded}"
    return "decoded" if decoded else "header only" if size else "refused"


def run(count, seed, folder):
    """Check `count` damaged files; returns a Counter of outcomes.

    Raises:
        AssertionError: as in `check`; the file that caused it stays as `folder`/picture.
    """
    generator, whole = np.random.default_rng(seed), list(corpus())
    outcomes, path = collections.Counter(), Path(folder, "picture")
    for _ in range(count):
        first, second = generator.integers(0, len(whole), 2)
        path.write_bytes(mutate(whole[first], generator, whole[second]))
        outcomes[check(path)] += 1
    return outcomes


if __name__ == "__main__":
    begin, seed = time.perf_counter(), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes = run(int(sys.argv[1]), seed, tempfile.mkdtemp())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{dict(outcomes)} in {time.perf_counter() - begin:.0f} s, seed {seed}, at most {peak} MB")
