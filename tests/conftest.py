import cv2
import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def draw_picture(tmp_path):
    """Write a noise picture under `tmp_path` and return its path: draw_picture("a.png", height, width)."""

    def draw(name, height=40, width=60, seed=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        return path

    return draw
