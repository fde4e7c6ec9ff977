"""Small state dicts of torchvision's Faster R-CNN, by its naming rules."""

import functools

import numpy as np

from tests.oracles.golden import torchvision_state

FPN = ["model.architecture=fpn", "model.anchor_sizes=[16,24,36,48,64]"]


@functools.cache
def small_state(is_v2=False, first_names=False):
    """One on ResNet-18, with 3 classes, 16 channels in the RPN and 2x2 cells a RoI.

    The values of what is not ResNet count up, so that whatever moves is seen.

    Args:
        is_v2: of the second version.
        first_names: as in the file published in 2019: no ".0" for a convolution without norm, one in the RPN.
    """
    body = {name: values for name, values in torchvision_state("resnet18").items() if not name.startswith("fc.")}
    state = {f"backbone.body.{name}": values for name, values in body.items()}
    zero = "" if first_names else ".0"
    for level, width in enumerate((64, 128, 256, 512)):
        for part, shape in (("inner", (256, width, 1, 1)), ("layer", (256, 256, 3, 3))):
            state |= _convolution(f"backbone.fpn.{part}_blocks.{level}", shape, zero, is_v2)
    for number in range(1 + is_v2):
        state |= _convolution(
            "rpn.head.conv" + ("" if first_names else f".{number}"), (16, 16 if number else 256, 3, 3), zero
        )
    layers = {"rpn.head.cls_logits": (3, 16, 1, 1), "rpn.head.bbox_pred": (12, 16, 1, 1)}
    for number in range(4 * is_v2):
        state |= _convolution(f"roi_heads.box_head.{number}", (256, 256, 3, 3), zero, True)
    layers |= {f"roi_heads.box_head.{name}": (1024, 1024) for name in (("5",) if is_v2 else ("fc6", "fc7"))}
    layers |= {"roi_heads.box_predictor.cls_score": (4, 1024), "roi_heads.box_predictor.bbox_pred": (16, 1024)}
    for name, shape in layers.items():
        state |= _with_bias(name, shape)
    return state


def coco_state():
    """The same with COCO's 91 classes."""
    predictor = "roi_heads.box_predictor"
    rows = _with_bias(f"{predictor}.cls_score", (91, 1024)) | _with_bias(f"{predictor}.bbox_pred", (364, 1024))
    return small_state() | rows


def counting(shape):
    """0, 1, 2, ..."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _with_bias(name, shape):
    return {f"{name}.weight": counting(shape), f"{name}.bias": counting(shape[:1])}


def _convolution(name, shape, zero, is_normalised=False):
    if not is_normalised:
        return _with_bias(f"{name}{zero}", shape)
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.0.weight": counting(shape)} | {f"{name}.1.{leaf}": counting(shape[:1]) for leaf in leaves}
