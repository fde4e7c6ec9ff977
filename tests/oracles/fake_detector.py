"""A detector without a network: what it finds tells which pixels, and which neighbours in the batch, it was shown."""

from types import SimpleNamespace

import numpy as np

from tests.oracles.tiny import CLASS_NAMES, tiny_config

SCORES = (0.9, 0.6, 0.3)  # of every picture's detections, before the neighbours change them a little
LABELS = (0, 1, 0)


def fake_detector(*overrides):
    """What `load_detector` returns, as far as `detect_stream` and `folders` use it; it counts pictures in `.seen`."""
    config = tiny_config("detect.batch_size=3", *overrides)
    detector = SimpleNamespace(config=config, class_names=CLASS_NAMES, weights_report=None, seen=0)
    detector.weights = [SimpleNamespace(numpy=lambda: np.arange(6.0).reshape(2, 3).T)]

    def predict_on_batch(inputs):
        images, sizes = inputs["images"].astype(np.float64), inputs["image_sizes"]
        detector.seen += len(images)
        brightness = images.mean(axis=(1, 2, 3)) / 255
        corners = np.array([[0.1, 0.2, 0.5, 0.7], [0.3, 0.1, 0.9, 0.4], [0.0, 0.0, 0.25, 1.0]])
        sides = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
        boxes = (corners + 0.1 * brightness[:, None, None]).clip(0, 1) * sides[:, None]
        scores = np.array(SCORES) + 0.1 * brightness.mean()
        return {
            "boxes": boxes.astype(np.float32),
            "scores": np.tile(scores, (len(images), 1)).astype(np.float32).clip(0, 1),
            "labels": np.tile(np.array(LABELS, np.int32), (len(images), 1)),
        }

    detector.predict_on_batch = predict_on_batch
    return detector
