"""The same numbers on TensorFlow, JAX and PyTorch: a tiny detector and a tiny classifier with given weights, forward
and one step of `fit`.

What they should give lies in tests/golden/tiny_detector.npz and tiny_classifier.npz, made once with TensorFlow. To make
them anew, where the models are meant to have changed: `python -m tests.test_backends`.
"""

import json
import signal
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

from frcnn.backend import top_k, training_data
from frcnn.checkpoints import newest_checkpoint
from frcnn.classification import train_classifier
from frcnn.cli import main
from frcnn.config import save_config
from frcnn.models.classifier import build_classifier
from frcnn.models.detector import LOSSES, build_detector, detection_model
from frcnn.ops.nms import non_max_suppression
from frcnn.optimizer import build_optimizer
from frcnn.stopping import Interrupted, Stop
from tests.oracles.nms import greedy_nms
from tests.oracles.shapes import SHAPES, draw_shape, shape_records, shapes_config
from tests.oracles.tensors import array, bound, tensor
from tests.oracles.tiny import CLASS_NAMES, tiny_batch, tiny_config, write_tiny_pictures

GOLDEN = Path(__file__).parent / "golden" / "tiny_detector.npz"
CLASSIFIER = GOLDEN.with_name("tiny_classifier.npz")
SETTINGS = ("detect.score_threshold=0.1", "detect.max_detections=24", "detect.batch_size=3")


def named_weights(weights):
    """{"res2a_branch2a/kernel": weight}, by name: what neither an initialiser nor the order of variables changes."""
    names = {"/".join(weight.path.split("/")[-2:]): weight for weight in weights}
    assert len(names) == len(weights)
    return dict(sorted(names.items()))


def draw_weights(model):
    """Give every weight numbers drawn by its name alone."""
    for name, weight in named_weights(model.weights).items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if weight.name == "kernel":
            gain = 0.05 if name.startswith(("rpn_out", "class_logits", "box_predictor")) else 1.5
            values = generator.normal(0, np.sqrt(gain / np.prod(weight.shape[:-1])), weight.shape)
        elif weight.name in ("gamma", "moving_variance"):
            values = generator.uniform(0.6, 1.2, weight.shape)
        else:
            values = generator.normal(0, 0.1, weight.shape)
        weight.assign(values.astype(np.float32))
    return model


def tiny_detector(norm):
    return draw_weights(build_detector(tiny_config(*SETTINGS, f"model.norm={norm}"), CLASS_NAMES))


def forward_numbers(model):
    """{name: array} of the training losses and of every stage of detection."""
    detector, batch = detection_model(model), tiny_batch()
    rpn = dict(zip(("rpn_logits", "rpn_deltas", "anchors"), detector.get_layer("test_proposals").input))
    names = ("proposals", "proposal_scores", "class_logits", "box_deltas")
    stages = rpn | dict(zip(names, detector.get_layer("detections").input)) | detector.output
    inputs = {name: batch[name] for name in ("images", "image_sizes")}
    found = keras.Model(detector.input, stages).predict_on_batch(inputs)
    return {**model.predict_on_batch(batch), **found}


def tiny_classifier():
    return draw_weights(build_classifier(shapes_config("classify.blocks=[1,1]"), ["a", "b", "c"]))


def classifier_numbers():
    """{name: array}: probabilities of two pictures, then what `fit_numbers` gives."""
    model = tiny_classifier()
    images = np.stack([draw_shape(label, label) for label in (0, 1)])
    probabilities = model.predict_on_batch(images)
    settings = {"loss": keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "metrics": ["accuracy"]}
    return {"probabilities": probabilities, **fit_numbers(model, (images, np.eye(3, dtype=np.float32)[:2]), **settings)}


def fit_numbers(model, batch=None, **settings):
    """{name: array}: the losses of one step of `fit`, and how far it moves every weight that learns (L2 norms)."""
    model.compile(optimizer=build_optimizer(model.config.train, 4), **settings)
    weights, batch = named_weights(model.trainable_weights), batch or (tiny_batch(),)
    before = [array(weight.value) for weight in weights.values()]
    data = training_data(lambda: iter([batch]), batch)
    history = model.fit(data, steps_per_epoch=1, shuffle=False, verbose=0).history
    assert history.pop("skipped_steps") == [0]
    moves = [np.linalg.norm(array(weight.value) - old) for weight, old in zip(weights.values(), before)]
    return {"moved": np.array(moves), **{f"fit_{name}": np.array(values) for name, values in history.items()}}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return tiny_detector("frozen")


def test_losses_and_every_stage_of_detection_agree(golden, model):
    found = forward_numbers(model)
    assert set(found) == {name for name in golden if name != "moved" and not name.startswith("fit_")}
    assert set(LOSSES) < set(found)
    assert set(golden["labels"].ravel()) == {-1, 0, 1}, "a stricter test: both classes, and an empty slot"
    for name, expected in golden.items():
        if name in found:
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_one_step_of_fit_agrees(golden):
    """Batch normalisation, the backward pass of everything, clipping, momentum, weight decay."""
    found = fit_numbers(tiny_detector("batch"))
    for name in ("loss", *LOSSES):
        np.testing.assert_allclose(found[f"fit_{name}"], golden[f"fit_{name}"], rtol=1e-3, err_msg=name)
    assert (found["moved"] > 0).all()
    # Steps of 1e-4 on weights of about 1, of which float32 keeps seven digits.
    np.testing.assert_allclose(found["moved"], golden["moved"], rtol=0.02)


def test_a_classifier_agrees():
    found = classifier_numbers()
    with np.load(CLASSIFIER) as golden:
        assert set(found) == set(golden)
        for name, rtol in (("probabilities", 1e-4), ("fit_loss", 1e-3), ("fit_accuracy", 0), ("moved", 0.02)):
            np.testing.assert_allclose(found[name], golden[name], rtol=rtol, err_msg=name)


def test_a_run_stopped_within_an_epoch_goes_on(tmp_path):
    """Weights, statistics, momentum, iterations and the means of the epoch, as if nothing had happened."""

    class StopAt(Stop):
        def __init__(self, step):
            super().__init__()
            self.steps = step

        def check(self):
            self.steps -= 1
            self.signal = None if self.steps else signal.SIGTERM
            super().check()

    def train(folder, stop=None, saved=None):
        model = build_classifier(shapes_config("train.epochs=2", "train.checkpoint_minutes=1e-9"), SHAPES)
        records = {"records": shape_records(12), "validation": shape_records(4, 100)}
        history = train_classifier(model, **records, output=tmp_path / folder, verbose=0, stop=stop, saved=saved)
        return history.history, named_weights(model.weights)

    history, weights = train("undisturbed")
    with pytest.raises(Interrupted):
        train("stopped", StopAt(2))  # of three steps
    *saved, _ = newest_checkpoint(tmp_path / "stopped")
    assert (saved[1]["epoch"], saved[1]["step"]) == (0, 2)
    again, found = train("stopped", saved=saved)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert again[name] == pytest.approx(history[name], rel=1e-4), name
    for name, weight in found.items():
        np.testing.assert_allclose(array(weight.value), array(weights[name].value), rtol=1e-3, atol=1e-5, err_msg=name)


def test_kept_indices_are_exactly_those_of_nested_loops():
    """Corners on a grid of 4 pixels and scores of one decimal: overlaps equal the threshold, and scores each other."""
    generator = np.random.default_rng(0)
    corners, sides = 4.0 * generator.integers(0, 20, (2, 250, 2)), 4.0 * generator.integers(1, 12, (2, 250, 2))
    boxes = np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)
    scores = generator.integers(0, 10, (2, 250)).astype(np.float32) / 10
    found = array(bound(non_max_suppression, iou_threshold=0.5, max_outputs=250)(tensor(boxes), tensor(scores)))
    for indices, *picture in zip(found, boxes, scores):
        expected = greedy_nms(*picture, 0.5)
        assert indices.tolist() == expected + [-1] * (250 - len(expected))
        assert 20 < len(expected) < 200


def test_of_equal_values_the_lower_index_is_the_larger():
    x = np.random.default_rng(0).integers(0, 50, (2, 3000)).astype(np.float32)
    x[0, ::3] = -np.inf
    values, indices = array(top_k(tensor(x), 700))
    assert indices.dtype == np.int32
    assert np.array_equal(indices, np.argsort(-x, axis=1, kind="stable")[:, :700])
    assert np.array_equal(values, np.take_along_axis(x, indices, axis=1))


def test_detect_command_writes_what_the_golden_detector_finds(golden, model, tmp_path, capsys):
    save_config(model.config, tmp_path / "run", CLASS_NAMES)
    model.save_weights(tmp_path / "run" / "best.weights.h5")
    write_tiny_pictures(tmp_path / "pictures", 3)
    arguments = {"-p": "pictures", "--run": "run", "--output": "found"}
    flags = [text for flag, name in arguments.items() for text in (flag, str(tmp_path / name))]
    assert main(["detect", *flags, "--score", "0.2"]) == 0
    assert f"{keras.backend.backend()} on " in capsys.readouterr().out
    assert len(list((tmp_path / "found" / "pictures").iterdir())) == 3
    assert (tmp_path / "found" / "detections.csv").exists()
    results = json.loads((tmp_path / "found" / "detections.json").read_text())
    for picture in (0, 1):
        keep = golden["scores"][picture] >= 0.2
        entries = [entry for entry in results if entry["image_id"] == picture + 1]
        assert [entry["category_id"] - 1 for entry in entries] == golden["labels"][picture, keep].tolist()
        boxes = np.array([entry["bbox"] for entry in entries])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, golden["boxes"][picture, keep], atol=0.011)  # two decimals
        np.testing.assert_allclose([e["score"] for e in entries], golden["scores"][picture, keep], atol=1e-4)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **forward_numbers(tiny_detector("frozen")), **fit_numbers(tiny_detector("batch")))
    np.savez_compressed(CLASSIFIER, **classifier_numbers())
