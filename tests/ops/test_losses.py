import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from frcnn.ops.boxes import decode_deltas, encode_boxes
from frcnn.ops.losses import roi_box_loss, roi_class_loss, roi_giou_loss, rpn_box_loss, rpn_class_loss, smooth_l1
from tests.oracles import golden
from tests.oracles.tensors import array, compiled, gradient, tensor

LOSSES = [rpn_class_loss, rpn_box_loss, roi_class_loss, roi_box_loss]
# How torchvision's one row of samples is cut into pictures; a picture may hold nothing.
SPLITS = [(200,), (100, 100), (30, 0, 150, 20)]


def pictures(values, split, fill):
    """Cut rows into len(split) pictures, padded to the longest with `fill`."""
    values = np.asarray(values)
    assert sum(split) >= len(values)
    result = np.full((len(split), max(split), *values.shape[1:]), fill, values.dtype)
    for row, part in enumerate(np.split(values, np.cumsum(split)[:-1])):
        result[row, : len(part)] = part
    return result


def check(loss, arguments, expected):
    """The mean over pictures is the loss of the whole batch."""
    found = array(loss(arguments))
    assert (found.dtype, found.shape) == (np.float32, (len(arguments[-1]),))
    assert found.mean() == pytest.approx(expected, rel=1e-5)
    return found


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_rpn_losses_equal_torchvision(split):
    case = golden.torchvision("rpn_loss")
    labels = tensor(pictures(np.asarray(case["labels"], np.int32), split, -1), "int32")
    logits, deltas, targets = (
        tensor(pictures(np.asarray(case[key], np.float32), split, 1e3)) for key in ("objectness", "deltas", "targets")
    )
    per_picture = check(rpn_class_loss, (logits, labels), case["loss_objectness"])
    boxes_per_picture = check(rpn_box_loss, (deltas, targets, labels), case["loss_box"])
    assert (np.asarray(split) > 0).tolist() == (per_picture > 0).tolist() == (boxes_per_picture > 0).tolist()


@pytest.mark.parametrize("split", [(64,), (32, 32), (10, 0, 50, 4)], ids=str)
def test_roi_losses_equal_torchvision(split):
    """There the background is class 0; here it is the last one and classes start at 0."""
    case = golden.torchvision("fast_rcnn_loss")
    logits = np.roll(np.asarray(case["class_logits"], np.float32), -1, axis=1)
    deltas = np.asarray(case["box_regression"], np.float32).reshape(64, 5, 4)[:, 1:]
    labels = (np.asarray(case["labels"], np.int32) - 1) % 5
    logits, deltas, targets = (
        tensor(pictures(x, split, 7)) for x in (logits, deltas, np.asarray(case["targets"], np.float32))
    )
    labels = tensor(pictures(labels, split, -1), "int32")
    check(roi_class_loss, (logits, labels), case["loss_classifier"])
    check(roi_box_loss, (deltas, targets, labels), case["loss_box_reg"])


@pytest.mark.parametrize("beta", golden.torchvision("smooth_l1")["out"])
def test_smooth_l1_equals_torchvision(beta):
    case = golden.torchvision("smooth_l1")
    result = array(smooth_l1(tensor(case["x"]), float(beta)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, case["out"][beta], rtol=1e-5, atol=1e-7)


def test_smooth_l1_of_tf_models_and_keras_retinanet():
    """The Detectron2 entries of literal_cases.json are left out: other losses, or drawn from a generator of its own."""
    (case,) = golden.literal("losses", "tensorflow")
    total = np.sum(array(smooth_l1(tensor(case["prediction"]), 1.0)).sum(-1) * case["weights"])
    assert total == pytest.approx(case["expected"])
    (case,) = golden.literal("losses", "fizyr")
    targets, labels = tensor([case["target_rows"]]), tensor([case["state"]], "int32")
    loss = array(rpn_box_loss((tensor(np.zeros((1, 4, 4))), targets, labels)))
    # theirs is divided by the 3 positives, ours by all 4 samples
    assert loss[0] * 4 / 3 == pytest.approx(case["expected"])


def test_rpn_losses_by_hand():
    """Two pictures, three samples in all: each picture's sum times 2 / 3."""
    labels = tensor([[1, 0, -1], [0, -1, -1]], "int32")
    logits = tensor([[0.0, np.log(3), 50], [-np.log(3), 50, -50]])
    # -log(1/2), -log(1 - 3/4); -log(1 - 1/4)
    expected = [(np.log(2) + np.log(4)) * 2 / 3, np.log(4 / 3) * 2 / 3]
    np.testing.assert_allclose(array(rpn_class_loss((logits, labels))), expected, rtol=1e-6)
    deltas = np.full((2, 3, 4), 9.0)
    targets = deltas - [0, 1 / 9, 1 / 18, -1]
    # beta = 1/9: 0, beta/2, (beta/2)^2 / 2 beta = beta/8, 1 - beta/2; only the one object counts
    expected = [(0.5 / 9 + 0.125 / 9 + 1 - 0.5 / 9) * 2 / 3, 0]
    np.testing.assert_allclose(array(rpn_box_loss((tensor(deltas), tensor(targets), labels))), expected, rtol=1e-5)


def test_roi_losses_by_hand():
    """K = 2: label 2 is the background, which has scores but no box."""
    labels = tensor([[1, 2, -1]], "int32")
    logits = tensor(np.log([[[1, 2, 1], [1, 1, 8], [1, 1, 1]]]))
    np.testing.assert_allclose(
        array(roi_class_loss((logits, labels))), [(np.log(4 / 2) + np.log(10 / 8)) / 2], rtol=1e-6
    )
    deltas = np.full((1, 3, 2, 4), 100.0)
    deltas[0, 0, 1] = [1, 2, 3, 4]
    targets = np.tile([1.0, 2.0, 3.0, 2.0], (1, 3, 1))
    np.testing.assert_allclose(
        array(roi_box_loss((tensor(deltas), tensor(targets), labels))), [(2 - 0.5 / 9) / 2], rtol=1e-5
    )


def test_cross_entropy_punishes_a_confident_mistake_and_rewards_a_confident_hit():
    """keras-frcnn took the target's logarithm: its loss was 0 or enormous whatever the network said."""
    labels = tensor([[1], [0]], "int32")
    right, wrong = (array(rpn_class_loss((tensor([[logit], [-logit]]), labels))) for logit in (20.0, -20.0))
    np.testing.assert_allclose(right, 0, atol=1e-6)
    np.testing.assert_allclose(wrong, 20, rtol=1e-6)
    right, wrong = (array(roi_class_loss((tensor([[[20.0, 0, 0]]]), tensor([[k]], "int32")))) for k in (0, 1))
    np.testing.assert_allclose([right, wrong], [[0], [20]], atol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -3.0, 0.0, 3.0, 200.0])
@pytest.mark.parametrize("label", [0, 1])
def test_slope_of_the_rpn_class_loss_is_score_minus_target(logit, label):
    """Also at a logit of exactly 0, where every anchor over black padding begins."""
    slope = gradient(lambda x: ops.sum(rpn_class_loss((x, tensor([[label]], "int32")))), [[logit]])
    np.testing.assert_allclose(slope, [[1 / (1 + np.exp(-logit)) - label]], atol=1e-6)


def random_arguments(loss, labels, seed=0):
    """Arguments of a loss with K = 3 for given (B, S) labels."""
    rng = np.random.default_rng(seed)
    parts = {
        rpn_class_loss: [()],
        rpn_box_loss: [(4,), (4,)],
        roi_class_loss: [(4,)],
        roi_box_loss: [(3, 4), (4,)],
    }[loss]
    return [rng.normal(0, 2, (*labels.shape, *part)).astype(np.float32) for part in parts]


def evaluate(loss, arguments, labels):
    return array(loss((*map(tensor, arguments), tensor(labels, "int32"))))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), huge=st.sampled_from([0.0, 6e9, -1e18, np.inf]))
def test_padding_slots_change_nothing(loss, seed, huge):
    labels = np.random.default_rng(seed).integers(-1, 2, (3, 8))
    arguments = random_arguments(loss, labels, seed)
    padded = [np.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2), constant_values=huge) for x in arguments]
    more_labels = np.pad(labels, [(0, 0), (0, 5)], constant_values=-1)
    np.testing.assert_allclose(
        evaluate(loss, padded, more_labels), evaluate(loss, arguments, labels), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("loss", "background"), [(rpn_box_loss, 0), (roi_box_loss, 3)], ids=["rpn", "roi"])
@pytest.mark.parametrize("empty", ["background", "padding"])
def test_without_objects_box_losses_are_exactly_zero_and_gradients_finite(loss, background, empty):
    labels = np.full((2, 6), background if empty == "background" else -1)
    deltas, targets = random_arguments(loss, labels)
    targets[:, ::2] = 6e9  # what encoding an empty slot may give
    assert evaluate(loss, (deltas, targets), labels).tolist() == [0, 0]
    slope = gradient(lambda x: ops.sum(loss((x, tensor(targets), tensor(labels, "int32")))), deltas)
    assert not slope.any()
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", [rpn_class_loss, roi_class_loss], ids=lambda loss: loss.__name__)
def test_without_samples_class_losses_are_zero_and_gradients_finite(loss):
    labels = np.full((2, 6), -1)
    (logits,) = random_arguments(loss, labels)
    assert evaluate(loss, (logits,), labels).tolist() == [0, 0]
    assert not gradient(lambda x: ops.sum(loss((x, tensor(labels, "int32")))), logits).any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradient_equals_finite_differences(loss):
    labels = np.asarray([[0, 1, -1, 1], [3, 0, 2, -1]] if "roi" in loss.__name__ else [[0, 1, -1, 1], [1, 0, 0, -1]])
    first, *rest = random_arguments(loss, labels)

    def total(x):
        return ops.sum(loss((x, *map(tensor, rest), tensor(labels, "int32"))))

    slope = gradient(total, first).ravel()
    for place in range(0, first.size, 5):
        step = np.zeros(first.size, np.float32)
        step[place] = 1e-2
        ahead, behind = (float(array(total(tensor(first + sign * step.reshape(first.shape))))) for sign in (1, -1))
        assert slope[place] == pytest.approx((ahead - behind) / 2e-2, abs=5e-3)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_compile_with_free_sizes_and_are_saved_by_name(loss):
    labels = np.asarray([[0, 1, -1], [1, 1, 0]])
    arguments = random_arguments(loss, labels)
    together = compiled(lambda *inputs: loss(inputs), *map(tensor, arguments), tensor(labels, "int32"))
    np.testing.assert_allclose(together, evaluate(loss, arguments, labels), rtol=1e-5)
    assert keras.saving.get_registered_object(f"frcnn>{loss.__name__}") is loss


def test_giou_loss_by_hand():
    """K = 2. The RoI (0, 0, 10, 20) belongs to class 1: its object is itself moved by its width, its answer itself.

    Side by side IoU is 0 and nothing around them is free: GIoU 0, loss 1 x 10, over the two samples of the picture.
    """
    weights = (10.0, 10.0, 5.0, 5.0)
    roi, thing = tensor([[0.0, 0, 10, 20]]), tensor([[10.0, 0, 20, 20]])
    target = array(encode_boxes(thing, roi, weights))[0]
    deltas = np.full((1, 3, 2, 4), 1e30)
    deltas[0, 0, 1] = 0
    targets = np.stack([[target, np.full(4, 1e30), np.full(4, np.nan)]])
    inputs = tensor(deltas), tensor(targets), tensor([[1, 2, -1]], "int32")
    np.testing.assert_allclose(array(roi_giou_loss(inputs, weights)), [10 / 2], rtol=1e-5)
    np.testing.assert_allclose(array(decode_deltas(tensor(target), roi, weights))[0], array(thing)[0], atol=1e-5)
    slope = gradient(lambda x: ops.sum(roi_giou_loss((x, *inputs[1:]), weights)), deltas)
    assert np.isfinite(slope).all() and slope[0, 0, 1, 0] < 0, "to the right"
    assert not slope[0, 1:].any() and not slope[0, 0, 0].any()
    deltas[0, 0, 1] = target
    assert array(roi_giou_loss((tensor(deltas), *inputs[1:]), weights)).tolist() == pytest.approx([0], abs=1e-5)
