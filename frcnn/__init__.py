"""Faster R-CNN for Keras 3.

The public names below are stable; everything else is internal. They are imported on first use, so that `import frcnn`
and `frcnn --help` do not wait for Keras.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Config": "schema",
    "Detections": "records",
    "ImageRecord": "records",
    "ResNet50": "models.classifier",
    "ResNetSpec": "models.resnet",
    "build_classifier": "models.classifier",
    "build_detector": "models.detector",
    "build_resnet": "models.classifier",
    "convolutional_block": "models.classifier",
    "detect": "inference",
    "detection_model": "models.detector",
    "evaluate": "evaluation",
    "identity_block": "models.classifier",
    "load_config": "config",
    "load_detector": "inference",
    "load_weights": "weights",
    "read_records": "data.readers",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'frcnn' has no attribute {name!r}; its public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"frcnn.{_HOME[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
