"""Classifiers from pictures to a run folder and back, and models that Keras saved whole."""

import base64
import csv
import dataclasses
import json
import marshal

import h5py
import keras
import numpy as np
import pytest

from frcnn import build_classifier
from frcnn.classification import classify_stream, load_classifier, load_whole_model, train_classifier
from frcnn.config import load_config, load_run_config
from frcnn.inference import load_detector
from frcnn.records import LabelledImage
from tests.oracles.shapes import SHAPES, shape_records, shapes_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Eight epochs on 16 pictures and 5 to validate on: (folder, history, model)."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    model = build_classifier(shapes_config("train.epochs=8", "classify.label_smoothing=0.1"), SHAPES)
    history = train_classifier(model, shape_records(16), validation=shape_records(5, 100), output=folder, verbose=0)
    return folder, history.history, model


def probabilities(classifier, records):
    return np.array(list(classify_stream(classifier, records)))


def test_a_few_steps_tell_tall_from_wide(run):
    _, history, model = run
    records = shape_records(20, 200)
    found = probabilities(model, records)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(found.argmax(axis=1) == [record.label for record in records]) >= 0.9
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_the_history_of_a_run(run):
    folder, history, _ = run
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "pictures_per_second", "data_wait"}
    assert set(history) >= names
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and set(rows[0]) >= {"epoch", *names}
    # Five pictures in batches of four: each counts once.
    assert all(float(row["val_accuracy"]) * 5 % 1 == pytest.approx(0, abs=1e-5) for row in rows)
    assert all(float(row["pictures_per_second"]) > 0 for row in rows)


def test_the_last_validation_is_that_of_the_last_weights(run):
    folder, history, _ = run
    records = shape_records(5, 100)
    found = probabilities(load_classifier(folder, weights="last"), records)
    targets = np.eye(2)[[record.label for record in records]] * 0.9 + 0.05  # smoothed by 0.1
    loss = -(targets * np.log(found)).sum(axis=1).mean()
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-3)
    assert history["val_accuracy"][-1] == pytest.approx(np.mean(found.argmax(axis=1) == targets.argmax(axis=1)))


def test_the_run_folder(run):
    folder, _, model = run
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "best.weights.h5", "last.weights.h5", "curves.png", "card.json", "card.html"}
    assert load_run_config(folder, "classifier") == (model.config, SHAPES)
    assert json.loads((folder / "card.json").read_text())["initial_weights"] == ["random"]
    loaded = load_classifier(folder, weights="last")
    assert (loaded.class_names, loaded.spec) == (SHAPES, model.spec)
    records = shape_records(3)
    np.testing.assert_allclose(probabilities(loaded, records), probabilities(model, records), rtol=1e-5, atol=1e-6)


def test_a_classifier_is_no_detector(run):
    with pytest.raises(ValueError, match=r"is of a classifier, not of a detector: frcnn classify predict takes it"):
        load_detector(run[0])


def test_damaged_weights(run, tmp_path):
    for name in ("config.pickle", "best.weights.h5"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes()[: None if name == "config.pickle" else 5000])
    with pytest.raises(ValueError, match=r"truncated file.*; it is damaged or does not fit the config.pickle"):
        load_classifier(tmp_path)
    with h5py.File(tmp_path / "best.weights.h5", "w") as file:
        file["layers"] = h5py.ExternalLink(run[0] / "best.weights.h5", "layers")
    with pytest.raises(ValueError, match=r"best.weights.h5: layers lies in another file"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match=r"best.weights.h5: Keras .* cannot load .*: layers lies in another file"):
        load_whole_model(tmp_path / "best.weights.h5", None, load_config())


def test_a_run_is_not_written_over(run):
    model = build_classifier(shapes_config(), SHAPES)
    with pytest.raises(ValueError, match="holds a run already"):
        train_classifier(model, shape_records(4), output=run[0], verbose=0)


def test_early_stopping_and_no_validation(tmp_path):
    """At a learning rate of nearly nothing no epoch is better than the first but by chance."""
    config = shapes_config("train.epochs=9", "train.patience=2", "train.learning_rate=1e-12", "data.val_fraction=0.5")
    history = train_classifier(build_classifier(config, SHAPES), shape_records(4), output=tmp_path / "a", verbose=0)
    assert len(history.epoch) < 9 and "val_accuracy" in history.history
    settings = {"validation": [], "output": tmp_path / "b", "verbose": 0}
    once = shapes_config("train.epochs=1", "train.optimizer=adam")
    history = train_classifier(build_classifier(once, SHAPES), shape_records(4), **settings)
    assert "val_accuracy" not in history.history and (tmp_path / "b" / "best.weights.h5").exists()


def test_predictions_come_in_order_and_errors_between_them(run, tmp_path):
    model, records = run[2], shape_records(9)
    records.insert(2, LabelledImage(str(tmp_path / "missing.png"), 0))
    found = list(classify_stream(model, records))
    assert isinstance(found.pop(2), ValueError)
    expected = [next(classify_stream(model, [record])) for record in shape_records(9)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_grey_rgba_and_other_sizes_are_brought_to_the_same(run):
    (record,) = shape_records(1)
    grey = np.full((32, 32), 200, np.uint8)
    kinds = [
        grey,
        grey[..., None],
        np.dstack([grey] * 3),
        np.dstack([grey] * 3 + [grey // 2]),
        np.full((64, 99), 200, np.uint8),
    ]
    found = probabilities(run[2], [dataclasses.replace(record, pixels=pixels) for pixels in kinds])
    np.testing.assert_allclose(found, np.repeat(found[:1], 5, axis=0), rtol=1e-5)


# --------------------------------------------------------------------------------------------------- whole models


def whole_model(input_shape=(32, 32, 3), dtype="float32", classes=6):
    images = keras.Input(input_shape, dtype=dtype)
    x = keras.layers.Rescaling(1 / 255)(images) if dtype == "uint8" else images
    x = keras.layers.Conv2D(4, 3, 4, activation="relu")(x)
    return keras.Model(images, keras.layers.Dense(classes, "softmax")(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("name", ["x.h5", "x.keras"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_whole_model_sees_pictures_as_the_tutorials_do(tmp_path, name, dtype):
    model, images = whole_model(dtype=dtype), np.stack([record.pixels for record in shape_records(3)])
    model.save(tmp_path / name)
    classifier = load_whole_model(tmp_path / name, None, load_config())
    assert classifier.class_names == ("0", "1", "2", "3", "4", "5")
    expected = model.predict_on_batch(images if dtype == "uint8" else images.astype(np.float32) / 255)
    np.testing.assert_allclose(probabilities(classifier, shape_records(3)), expected, rtol=1e-4, atol=1e-6)


def keras_2_layer(kind, name, inbound, **config):
    nodes = [[[source, 0, 0, {}] for source in inbound]] if inbound else []
    return {
        "class_name": kind,
        "name": name,
        "config": {"name": name, "trainable": True, **config},
        "inbound_nodes": nodes,
    }


def write_keras_2(path, extra=()):
    """An HDF5 file as Keras 2.1 wrote it: names of initialisers, `batch_input_shape`, lists of nodes, ":0"."""
    uniform = {
        "class_name": "VarianceScaling",
        "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": 0},
    }
    numbers = {
        "kernel_initializer": uniform,
        "bias_initializer": {"class_name": "Zeros", "config": {}},
        "use_bias": True,
    }
    convolution = {"filters": 4, "kernel_size": [3, 3], "strides": [2, 2], "padding": "same", "activation": "relu"}
    layers = [
        keras_2_layer("InputLayer", "input_1", [], batch_input_shape=[None, 32, 32, 3], dtype="float32", sparse=False),
        keras_2_layer("Conv2D", "conv1", ["input_1"], **convolution, data_format="channels_last", **numbers),
        keras_2_layer("BatchNormalization", "bn_conv1", ["conv1"], axis=3, momentum=0.99, epsilon=0.001),
        keras_2_layer("Flatten", "flatten_1", ["bn_conv1"]),
        *extra,
        keras_2_layer(
            "Dense", "fc6", [extra[0]["name"] if extra else "flatten_1"], units=6, activation="softmax", **numbers
        ),
    ]
    config = {
        "name": "ResNet50",
        "layers": layers,
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["fc6", 0, 0]],
    }
    generator = np.random.default_rng(0)
    weights = {
        "conv1": {"kernel": generator.normal(0, 0.2, (3, 3, 3, 4)), "bias": np.zeros(4)},
        "bn_conv1": {name: np.ones(4) for name in ("gamma", "beta", "moving_mean", "moving_variance")},
        "fc6": {"kernel": generator.normal(0, 0.02, (1024, 6)), "bias": np.arange(6) / 10},
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": config})
        file.attrs["keras_version"], file.attrs["backend"] = "2.1.6", "tensorflow"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [layer["name"].encode() for layer in layers]
        for layer in layers:
            arrays = weights.get(layer["name"], {})
            part = group.create_group(layer["name"])
            part.attrs["weight_names"] = [f"{layer['name']}/{name}:0".encode() for name in arrays]
            for name, values in arrays.items():
                part[f"{layer['name']}/{name}:0"] = values.astype(np.float32)
    return weights


def test_a_model_of_keras_2(tmp_path):
    """Of a black picture the convolution gives 0, and so the normalisation (0 - 1) / sqrt(1.001) + 1 everywhere."""
    weights = write_keras_2(tmp_path / "old.h5")
    classifier = load_whole_model(tmp_path / "old.h5", list("abcdef"), load_config())
    (found,) = probabilities(classifier, [LabelledImage("black", 0, np.zeros((32, 32), np.uint8))])
    logits = (1 - 1 / np.sqrt(1.001)) * weights["fc6"]["kernel"].sum(axis=0) + weights["fc6"]["bias"]
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_code_in_a_model_is_not_run(tmp_path):
    trap = (lambda x: __import__("pathlib").Path("TRAP").touch() or x).__code__
    trap = trap.replace(co_consts=tuple(str(tmp_path / "ran") if x == "TRAP" else x for x in trap.co_consts))
    function = [base64.b64encode(marshal.dumps(trap)).decode(), None, None]
    settings = {"function": function, "function_type": "lambda", "module": "m", "output_shape": None, "arguments": {}}
    write_keras_2(tmp_path / "evil.h5", [keras_2_layer("Lambda", "lambda_1", ["flatten_1"], **settings)])
    with pytest.raises(ValueError, match=r"evil.h5: Keras .* cannot load this model \(.*Lambda"):
        load_whole_model(tmp_path / "evil.h5", None, load_config())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("input_shape", "classes", "message"),
    [
        ((32, 48, 3), 6, r"maps \(None, 32, 48, 3\) to \(None, 6\): expected"),
        ((32, 32, 1), 6, r"maps \(None, 32, 32, 1\)"),
        ((None, None, 3), 6, r"maps \(None, None, None, 3\)"),
        ((32, 32, 3), 4, r"has 4 classes, the pictures 6 \(a, b, c, d, e, f\)"),
    ],
)
def test_a_whole_model_of_another_kind(tmp_path, input_shape, classes, message):
    whole_model(input_shape, classes=classes).save(tmp_path / "x.keras")
    with pytest.raises(ValueError, match=message):
        load_whole_model(tmp_path / "x.keras", list("abcdef"), load_config())


@pytest.mark.parametrize("name", ["x.h5", "x.keras", "x.txt"])
def test_a_file_that_is_no_model(tmp_path, name):
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ValueError, match=rf"{name}: Keras .* cannot load this model") as caught:
        load_whole_model(tmp_path / name, None, load_config())
    assert len(str(caught.value).splitlines()) == 1
