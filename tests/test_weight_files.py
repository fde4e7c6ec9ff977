"""The detectors of torchvision; the other sources are in test_weights.py."""

import functools

import numpy as np
import pytest

from frcnn.models.detector import build_detector
from frcnn.published import COCO_NAMES
from frcnn.weights import describe, load_weights
from tests.oracles.golden import torchvision_state
from tests.oracles.small_torchvision import FPN, coco_state, small_state
from tests.oracles.tensors import array
from tests.oracles.tiny import tiny_config


def build(*overrides, class_names=("a", "b", "c")):
    return build_detector(tiny_config("model.norm=frozen", *overrides), class_names)


@functools.cache
def fpn_detector():
    return build(*FPN)


@pytest.mark.parametrize(
    ("is_v2", "first_names", "count"), [(False, True, 130), (False, False, 130), (True, False, 174)]
)
def test_a_detector_of_torchvision_is_recognised_and_fits(is_v2, first_names, count):
    """Names of today, and those of the file published in 2019."""
    found = describe(small_state(is_v2, first_names))
    architecture = "fpn_v2" if is_v2 else "fpn"
    assert (found.kind, found.architecture, found.depth, found.norm) == ("torchvision", architecture, 18, "frozen")
    assert (found.conventions, found.num_classes, found.class_names, found.unexpected) == ("torchvision", 3, None, ())
    assert str(found) == f"mapping (torchvision, ResNet-18 {architecture} detector of 3 classes, names unknown)"
    report = load_weights(build(*FPN, f"model.architecture={architecture}"), found)
    assert (len(report.loaded), report.missing, report.unexpected, report.reinitialised) == (count, (), (), ())


def test_background_is_first_there_and_last_here_and_pooled_cells_are_turned():
    """4 rows of class scores: 0, of the background, goes last. Dense columns: channel * 4 + cell there, 2x2 cells."""
    tensors = describe(small_state()).tensors
    assert tensors["class_logits/bias"].tolist() == [1, 2, 3, 0]
    assert tensors["class_logits/kernel"][5].tolist() == [1024 + 5, 2048 + 5, 3072 + 5, 5]
    assert tensors["box_predictor/bias"].tolist() == list(range(4, 16))
    assert tensors["box_predictor/kernel"][7].tolist() == [1024 * row + 7 for row in range(4, 16)]
    rows = tensors["box_dense1/kernel"][:, 0].reshape(2, 2, 256)  # of the first unit: y, x, channel
    assert [rows[0, 0, 1], rows[0, 1, 0], rows[1, 0, 0], rows[1, 1, 9]] == [4, 1, 2, 39]


def test_a_detector_of_coco_names_its_classes_and_other_classes_take_the_rows_they_share():
    found = describe(coco_state())
    assert found.class_names == COCO_NAMES and found.num_classes == 90
    model = build(*FPN, class_names=("zebra", "shoe", "person"))
    head = model.get_layer("roi_head")
    biases = [head.get_layer(name).bias for name in ("class_logits", "box_predictor")]
    report = load_weights(model, found, reinitialise=True)
    # COCO's category numbers; "shoe" and its box are as they were, the background is last.
    assert array(biases[0]).tolist() == [24, 0, 1, 0]
    assert array(biases[1]).tolist() == [96, 97, 98, 99, 0, 0, 0, 0, 4, 5, 6, 7]
    assert (report.reinitialised, report.shared, report.missing) == (("shoe",), ("zebra", "person"), ())
    assert "  classes that it knows, their predictor rows taken (2): zebra, person" in str(report).splitlines()


def test_one_architecture_does_not_fit_another():
    with pytest.raises(ValueError, match=r"fpn detector .* does not fit a c4 detector: set model.architecture=fpn"):
        load_weights(build(), small_state())
    with pytest.raises(ValueError, match=r"fpn_v2 detector of .* does not fit a fpn detector: set .*=fpn_v2"):
        load_weights(fpn_detector(), small_state(True))


def test_of_ours_neither(tmp_path):
    build().save_weights(tmp_path / "c4.weights.h5")
    with pytest.raises(ValueError, match=r"18 detector of 3 .* does not fit a fpn .*: set model.architecture=c4"):
        load_weights(fpn_detector(), tmp_path / "c4.weights.h5")
    fpn_detector().save_weights(tmp_path / "fpn.weights.h5")
    found = describe(tmp_path / "fpn.weights.h5")
    assert (found.kind, found.architecture, found.depth, found.num_classes) == ("frcnn", "fpn", 18, 3)
    assert not load_weights(fpn_detector(), found).missing


def without(*parts):
    return {name: values for name, values in small_state().items() if not name.startswith(parts)}


BOXES = "roi_heads.box_predictor.bbox_pred.bias"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (  # as torchvision's RetinaNet has it
            lambda: without("rpn", "roi_heads") | {"head.classification_head.conv.0.0.weight": np.zeros(3)},
            r"expected rpn.head.cls_logits.bias, and found head.classification_head.conv.0.0.weight",
        ),
        (lambda: without(BOXES), f"no Faster R-CNN of torchvision: expected {BOXES}"),
        (
            lambda: small_state() | {BOXES: np.zeros(8)},
            rf"{BOXES} has shape \(8,\), expected \(16,\): four for",
        ),
        (lambda: without("backbone.body.layer2"), r"stages 2 to 4 have \(2, 0, 2\) blocks"),
        (
            lambda: {"backbone.body.0.0.weight": np.zeros(3)},
            r"none of its 1 names \(backbone.body.0.0.weight\)",
        ),
    ],
)
def test_other_detectors_are_refused(state, expected):
    with pytest.raises(ValueError, match=expected):
        describe(state())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (
            "backbone.fpn.inner_blocks.0.0.weight",
            (9, 64, 1, 1),
            r"fpn_inner2/kernel has shape \(1, 1, 64, 9\), the",
        ),
        (
            "roi_heads.box_head.fc6.weight",
            (1024, 2304),
            r"box_dense1/kernel has shape \(2304, 1024\), .* \(1024, 1",
        ),
        (
            "roi_heads.box_head.fc6.weight",
            (1024, 1000),
            r"box_dense1/kernel has shape \(1000, 1024\), .* \(1024, 1",
        ),
        (
            "roi_heads.box_predictor.cls_score.weight",
            (4, 7),
            r"class_logits/kernel has shape \(7, 4\), the",
        ),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(name, shape, expected):
    with pytest.raises(ValueError, match=expected):
        load_weights(fpn_detector(), small_state() | {name: np.zeros(shape, np.float32)})


def test_other_classes_are_refused_where_a_detector_is_to_run():
    with pytest.raises(ValueError, match=r"its classes \(person, .*\) are not those of the model \(a, b, c\)"):
        load_weights(fpn_detector(), coco_state())


def test_an_fpn_detector_starts_from_a_backbone_too():
    report = load_weights(fpn_detector(), torchvision_state("resnet18"))
    assert len(report.loaded) == 100 and "fpn_inner2/kernel" in report.missing
    assert not [name for name in report.missing if name.startswith("res")]
