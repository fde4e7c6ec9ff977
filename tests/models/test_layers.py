import numpy as np
import pytest

from frcnn.models.layers import ImageNormalization
from frcnn.models.resnet import CONVENTIONS
from tests.oracles.tensors import array, tensor

PIXEL = (200, 100, 50)  # red, green, blue
EXPECTED = {
    "frcnn": [(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (50 - 103.53) / 57.375],
    "torchvision": [(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (50 - 103.53) / 57.375],
    "torchvision_coco": [(200 - 123.675) / 58.395, (100 - 116.28) / 57.12, (50 - 103.53) / 57.375],
    "keras": [50 - 103.939, 100 - 116.779, 200 - 123.68],
    "keras_v2": [200 / 127.5 - 1, 100 / 127.5 - 1, 50 / 127.5 - 1],
    "keras2016": [50 - 103.939, 100 - 116.779, 200 - 123.68],
    "tutorial": [200 / 255, 100 / 255, 50 / 255],
    "keras_frcnn": [200 - 103.939, 100 - 116.779, 50 - 123.68],  # its mistake, which its weights have learned
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_preprocessing_by_hand(name):
    """A picture of 1x2 pixels in 2x3: normalised inside, exactly 0 in the padding."""
    conventions = CONVENTIONS[name]
    settings = {key: getattr(conventions, key) for key in ("channel_order", "mean", "deviation")}
    layer = ImageNormalization(name="normalize", **settings)
    images = np.full((1, 2, 3, 3), PIXEL, np.uint8)
    found = array(layer(tensor(images, "uint8"), tensor([[1, 2]], "int32")))
    np.testing.assert_allclose(found[0, 0, :2], [EXPECTED[name]] * 2, rtol=1e-5)
    assert not found[0, 1].any() and not found[0, :, 2].any()
    whole = array(layer(tensor(images, "uint8")))  # without sizes nothing is padding
    np.testing.assert_allclose(whole, np.broadcast_to(EXPECTED[name], whole.shape), rtol=1e-5)
    assert layer.get_config() == {"name": "normalize", **settings}
