import functools
import json
import os
import pickle
import re
import shutil
import socket

import h5py
import keras
import numpy as np
import pytest

from frcnn import load_weights
from frcnn.config import load_config, save_config
from frcnn.models.classifier import ResNet50, build_classifier, build_resnet
from frcnn.models.detector import build_detector
from frcnn.models.resnet import CONVENTIONS, ConvNorm, ResNetSpec, resnet_stage, resnet_stem
from frcnn.weights import describe, prepare
from tests.oracles.golden import draw, golden, read_json, torchvision_state
from tests.oracles.shapes import shapes_config
from tests.oracles.tensors import array
from tests.oracles.tiny import CLASS_NAMES, tiny_config, tiny_images

BLOCK_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def bare_resnet(depth, conventions, norm="frozen"):
    """Images, normalised -> the four stages' features."""
    spec = ResNetSpec(depth, norm, conventions=CONVENTIONS[conventions])
    images = keras.Input((None, None, 3))
    features = [resnet_stem(images, spec)]
    for stage in (2, 3, 4, 5):
        features.append(resnet_stage(features[-1], stage, spec))
    model = keras.Model(images, features[1:])
    model.config = load_config(None, [f"model.depth={depth}", f"model.conventions={conventions}", f"model.norm={norm}"])
    return model


def normalised(image, conventions):
    settings = CONVENTIONS[conventions]
    image = image[..., ::-1] if settings.channel_order == "BGR" else image
    return ((image[None] - np.array(settings.mean)) / settings.deviation).astype(np.float32)


def assert_close(found, expected, tolerance=1e-4):
    """Relative to the largest value: deep features are sums of thousands of terms of either sign."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def values_of(model):
    return {weight.path: array(weight.value) for weight in model.weights}


def detector(*overrides, class_names=CLASS_NAMES):
    return build_detector(tiny_config("model.norm=frozen", *overrides), class_names)


# ------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(("name", "count"), [("resnet18", 100), ("resnet50", 265), ("resnet101", 520)])
def test_torchvision_stage_by_stage(name, count):
    model, expected = bare_resnet(int(name[6:]), "torchvision"), golden("torchvision_models_seed0.npz")
    report = load_weights(model, torchvision_state(name))
    assert (len(report.loaded), report.missing, report.unexpected) == (count, (), ("fc/kernel", "fc/bias"))
    features = model.predict_on_batch(normalised(expected["image"], "torchvision"))
    for stage, found in enumerate(features, 1):
        assert found.transpose(0, 3, 1, 2).shape == tuple(expected[f"{name}__layer{stage}_shape"])
        assert_close(found.mean(axis=(1, 2)), expected[f"{name}__layer{stage}_mean"])
        assert_close(found[0, :3, :3, :4].transpose(2, 0, 1), expected[f"{name}__layer{stage}_corner"])


def write_safetensors(path, arrays):
    """As the format's documentation says."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in arrays.items():
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[str(values.dtype)]
        header[name] = {"dtype": kind, "shape": values.shape, "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_torch(path, arrays):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.tensor(values) for name, values in arrays.items()}, path)


@pytest.mark.parametrize("write", [lambda path, arrays: np.savez(path, **arrays), write_safetensors, write_torch])
def test_a_state_dict_comes_from_a_file_of_any_suffix(write, tmp_path):
    state = dict(torchvision_state("resnet18"))
    state["bn1.num_batches_tracked"] = np.array(3, np.int64)
    write(tmp_path / "x.npz", state)
    (tmp_path / "x.npz").rename(tmp_path / "x.bin")
    found = describe(tmp_path / "x.bin")
    assert (found.kind, found.depth, found.conventions, found.norm) == ("torchvision", 18, "torchvision", "frozen")
    assert (found.num_classes, found.unexpected) == (None, ())
    assert str(found) == f"{tmp_path / 'x.bin'} (torchvision, ResNet-18 backbone)"
    assert_same_tensors(found, describe(state))


def assert_same_tensors(first, second):
    assert first.tensors.keys() == second.tensors.keys()
    assert all(np.array_equal(values, second.tensors[name]) for name, values in first.tensors.items())


def test_safetensors_of_the_package_itself(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    state = torchvision_state("resnet18")
    numpy_format.save_file(state, tmp_path / "x.safetensors")
    assert_same_tensors(describe(tmp_path / "x.safetensors"), describe(state))


def test_the_stride_of_resnet_18_has_one_place_only():
    """So torchvision's weights fit a network of ours; those of ResNet-50 do not, and the model stays as it was."""
    assert not load_weights(bare_resnet(18, "frcnn"), torchvision_state("resnet18")).missing
    config = tiny_config("model.depth=50")
    model = keras.Sequential([ConvNorm(64, 7, 2, name="conv1")])
    model.build((None, None, None, 3))
    model.config, before = config, values_of(model)
    with pytest.raises(ValueError, match=r"style v1.5 \(not v1\): set model.conventions=torchvision"):
        load_weights(model, torchvision_state("resnet50"))
    assert all(np.array_equal(value, before[name]) for name, value in values_of(model).items())


# ------------------------------------------------------------------------------------------- keras.applications


@pytest.fixture(scope="module")
def applications():
    """keras.applications's ResNet-50 with weights that leave nothing at its neutral value."""
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in network.layers:
        for weight in layer.weights:
            last = weight.name == "gamma" and layer.name.endswith(("_0_bn", "_3_bn"))
            fan_in = np.prod(weight.shape[:-1]) if weight.name == "kernel" else 100
            kind = ("uniform", 0.5, 1.5) if weight.name in ("gamma", "moving_variance") else ("normal", 0, fan_in**-0.5)
            weight.assign(draw(f"{layer.name}/{weight.name}", weight.shape, *kind) * (0.5 if last else 1))
    return network


@pytest.fixture(scope="module")
def applications_arrays(applications):
    return {
        f"{layer.name}/{weight.name}": array(weight.value) for layer in applications.layers for weight in layer.weights
    }


def test_keras_applications_stages_4_and_5(applications, applications_arrays):
    model = bare_resnet(50, "keras")
    report = load_weights(model, applications_arrays)
    assert (len(report.loaded), report.missing, report.unexpected) == (318, (), ())
    image = golden("torchvision_models_seed0.npz")["image"][:64, :64]
    outputs = [applications.get_layer(name).output for name in ("conv4_block6_out", "conv5_block3_out")]
    expected = keras.Model(applications.input, outputs).predict_on_batch(normalised(image, "keras"))
    for found, reference in zip(model.predict_on_batch(normalised(image, "keras"))[2:], expected):
        assert_close(found, reference)


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5", "x.keras"])
def test_the_layouts_of_keras(applications, applications_arrays, name, tmp_path):
    save = applications.save_weights if name == "x.weights.h5" else applications.save
    save(tmp_path / name)
    found = describe(tmp_path / name)
    assert (found.kind, found.depth, found.conventions) == ("keras", 50, "keras")
    assert_same_tensors(found, describe(applications_arrays))


def write_legacy_hdf5(path, rows):
    """Keras 1 and 2: a group for each layer, whose attribute lists its datasets. Rows: (layer, dataset, values)."""
    groups = {}
    with h5py.File(path, "w") as file:
        for layer, dataset, values in rows:
            file.create_dataset(f"{layer}/{dataset}", data=values)
            groups.setdefault(layer, []).append(dataset.encode())
        file.attrs["layer_names"] = [layer.encode() for layer in groups]
        for layer, datasets in groups.items():
            file[layer].attrs["weight_names"] = datasets


def test_the_file_of_2016(applications_arrays, tmp_path):
    """`resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5`: names of Keras 1, conv2_block1_0 was res2a_branch1."""
    leaves = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}
    rows = []
    for name, values in applications_arrays.items():
        layer, leaf = name.split("/")
        stage, block, number, part = re.fullmatch(r"conv(\d)(?:_block(\d)_(\d))?_(\w+)", layer).groups()
        place = (
            f"{stage}{BLOCK_LETTERS[int(block) - 1]}_branch{['1', '2a', '2b', '2c'][int(number)]}" if block else None
        )
        old = ({"conv": "res", "bn": "bn"}[part] + place) if place else {"conv": "conv1", "bn": "bn_conv1"}[part]
        rows.append((old, f"{old}_{leaves.get(leaf, leaf)}_1:0", values))
    write_legacy_hdf5(tmp_path / "x.h5", rows)
    found = describe(tmp_path / "x.h5")
    assert (found.kind, found.depth, found.conventions, found.num_classes) == ("keras2016", 50, "keras2016", None)
    assert_same_tensors(found, describe(applications_arrays))


# ------------------------------------------------------------------------------------------------- classifiers


def random_arrays(network):
    """Draw the weights of a keras.applications network; the last norm of a block is small, to keep the sums in hand."""
    arrays = {}
    for layer in network.layers:
        for weight in layer.weights:
            last = weight.name == "gamma" and layer.name.endswith("_3_bn")
            fan_in = np.prod(weight.shape[:-1]) if weight.name == "kernel" else 100
            kind = ("uniform", 0.5, 1.5) if weight.name in ("gamma", "moving_variance") else ("normal", 0, fan_in**-0.5)
            name = f"{layer.name}/{weight.name}"
            arrays[name] = draw(name, weight.shape, *kind) * np.float32(0.3 if last else 1)
            weight.assign(arrays[name])
    return arrays


@pytest.mark.parametrize(
    ("name", "conventions", "count", "sides"),
    [
        ("ResNet50", "keras", 320, (64, 64)),
        ("ResNet101", "keras", 626, (64, 64)),
        ("ResNet152", "keras", 932, (64, 64)),
        ("ResNet50V2", "keras_v2", 272, (64, 70)),
    ],
)
def test_the_whole_networks_of_keras_applications(name, conventions, count, sides):
    make, shape = getattr(keras.applications, name), (*sides, 3)
    network = make(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    arrays = random_arrays(network)
    spec = ResNetSpec(int(name[6:].removesuffix("V2")), conventions=CONVENTIONS[conventions])
    model = build_resnet(spec, shape, 10, activation=None)
    report = load_weights(model, arrays)
    assert (len(report.loaded), report.missing, report.unexpected) == (count, (), ())
    image = golden("torchvision_models_seed0.npz")["image"][: sides[0], : sides[1]]
    x = normalised(image, conventions)
    assert_close(model.predict_on_batch(x), network.predict_on_batch(x))


@functools.cache
def resnet_50_v2():
    network = keras.applications.ResNet50V2(weights=None, input_shape=(64, 64, 3), classes=10)
    return network, random_arrays(network)


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5"])
def test_the_layouts_of_a_network_of_style_v2(name, tmp_path):
    network, arrays = resnet_50_v2()
    network.save_weights(tmp_path / name) if name == "x.weights.h5" else network.save(tmp_path / name)
    found = describe(tmp_path / name)
    assert (found.kind, found.depth, found.conventions, found.norm) == ("keras_v2", 50, "keras_v2", "frozen")
    assert_same_tensors(found, describe(arrays))


def test_a_network_of_style_v2_fits_no_detector(tmp_path):
    np.savez(tmp_path / "v2.npz", **resnet_50_v2()[1])
    config = tiny_config("model.depth=50", "model.norm=auto", f"model.weights={tmp_path / 'v2.npz'}")
    with pytest.raises(ValueError, match=r"v2.npz .*: no config describes a ResNet of style v2: take weights of"):
        prepare(config)


@pytest.mark.parametrize("depth", [None, 50])
def test_weights_of_another_depth_fit_no_classifier(depth):
    blocks, name = (None, "ResNet-50") if depth else ((2, 2, 2, 2), "ResNet of blocks of its own")
    model = build_resnet(ResNetSpec(depth, conventions=CONVENTIONS["torchvision"], blocks=blocks), (32, 32, 3), 2)
    with pytest.raises(ValueError, match=f"ResNet-18 backbone.* does not fit a {name}: set model.depth=18"):
        load_weights(model, torchvision_state("resnet18"))


@pytest.mark.parametrize(("name", "count"), [("resnet18", 102), ("resnet50", 267), ("resnet101", 522)])
def test_the_whole_networks_of_torchvision(name, count):
    expected = golden("torchvision_models_seed0.npz")
    spec = ResNetSpec(int(name[6:]), conventions=CONVENTIONS["torchvision"])
    model = build_resnet(spec, expected["image"].shape, 10, activation=None)
    report = load_weights(model, torchvision_state(name))
    assert (len(report.loaded), report.missing, report.unexpected) == (count, (), ())
    found = model.predict_on_batch(normalised(expected["image"], "torchvision"))
    assert_close(found, expected[f"{name}__logits"])


def test_the_last_layer_of_other_classes_is_refused_or_left():
    state = torchvision_state("resnet18")
    other = build_resnet(ResNetSpec(18, conventions=CONVENTIONS["torchvision"]), (64, 64, 3), 7)
    before = values_of(other)
    with pytest.raises(ValueError, match=r"fc/kernel has shape \(512, 10\), the model expects \(512, 7\)"):
        load_weights(other, state)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(other).items())
    report = load_weights(other, state, reinitialise=True)
    assert (len(report.loaded), report.missing) == (100, ("fc/kernel", "fc/bias"))
    assert all(np.array_equal(array(weight.value), before[weight.path]) for weight in other.get_layer("fc").weights)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_tutorials_network_as_a_classifier_of_ours(tmp_path):
    network = ResNet50((64, 64, 3), 6)
    network.save_weights(tmp_path / "x.weights.h5")
    network.save(tmp_path / "x.h5")
    network.save(tmp_path / "x.keras")
    for path in tmp_path.iterdir():
        found = describe(path)
        assert (found.kind, found.depth, found.conventions, found.norm) == ("tutorial", 50, "tutorial", "frozen")
        assert_same_tensors(found, describe(tmp_path / "x.h5"))
    settings = ["model.conventions=tutorial", "data.im_size=64", "train.precision=float32", "train.seed=1"]
    model = build_classifier(load_config(None, settings), list("abcdef"))
    report = load_weights(model, tmp_path / "x.h5")
    assert (len(report.loaded), report.missing, report.unexpected) == (320, (), ())
    # Before the last pooling both have 2x2 cells: one average of them all.
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert_close(model.predict_on_batch(images), network.predict_on_batch(images.astype(np.float32) / 255))


def test_the_last_layer_of_2016_is_no_tutorials():
    layers = {"conv1": (7, 7, 3, 64), "res2a_branch2a": (1, 1, 64, 64), "res2a_branch2c": (1, 1, 64, 256)}
    blocks = [
        f"res{stage}{letter}_branch2a"
        for stage, letters in (("2", "bc"), ("3", "abcd"), ("4", "abcdef"))
        for letter in letters
    ]
    arrays = {f"{layer}/kernel": np.zeros(layers.get(layer, (1, 1, 1, 1))) for layer in [*layers, *blocks]}
    for top, kind in (("fc1000", "keras2016"), ("fc6", "tutorial")):
        assert describe({**arrays, f"{top}/kernel": np.zeros((2048, 6))}).kind == kind


def test_the_last_layer_of_other_names_is_left(tmp_path):
    """As many classes, but others: the numbers of `fc` mean something else."""
    config = shapes_config("classify.blocks=null", "model.depth=18")
    model = build_classifier(config, ("a", "b"))
    save_config(config, tmp_path, ("a", "b"), "classifier")
    model.save_weights(tmp_path / "best.weights.h5")
    assert str(describe(tmp_path)).endswith("(frcnn, ResNet-18 classifier of 2 classes)")
    for names, missing in ((("a", "b"), ()), (("b", "a"), ("fc/kernel", "fc/bias"))):
        other = build_classifier(config, names)
        assert load_weights(other, tmp_path, reinitialise=True).missing == missing


# -------------------------------------------------------------------------------------------------- keras-frcnn


@pytest.fixture(scope="module")
def old_detector(tmp_path_factory):
    """The HDF5 that keras-frcnn would have written with the golden weights: 3 classes and background."""
    path = tmp_path_factory.mktemp("old") / "model_frcnn.hdf5"
    rows = read_json("keras_frcnn_seed0.json")["weights"]
    write_legacy_hdf5(path, [(layer, dataset, draw(key, *rule)) for layer, dataset, key, *rule in rows])
    return path


def test_keras_frcnns_detector_gives_its_own_numbers(old_detector):
    config = load_config(None, ["model.norm=frozen", "model.conventions=keras_frcnn", "train.precision=float32"])
    assert config.model.anchor_ratios == (0.5, 1.0, 2.0)  # keras-frcnn's are 1, 2, 0.5
    model, expected = build_detector(config, ["a", "b", "c"]), golden("keras_frcnn_seed0.npz")
    report = load_weights(model, old_detector)
    assert str(report) == f"loaded 328 of 328 tensors from {old_detector} (keras_frcnn, ResNet-50 detector of 3 " + (
        "classes, names unknown)"
    )
    image = expected["image"][None]
    pixels = model.get_layer("normalize")(image, np.array([image.shape[1:3]], np.int32))
    features = model.get_layer("backbone").predict_on_batch(pixels)
    assert features.shape == tuple(expected["features_shape"])
    assert_close(features.mean(axis=(1, 2)), expected["features_mean"])
    assert_close(features[0, :3, :3, :16], expected["features_corner"])
    logits, deltas = model.get_layer("rpn").predict_on_batch(features)
    assert_close(1 / (1 + np.exp(-_their_anchors(logits[..., None]))), expected["rpn_class"])
    assert_close(_their_anchors(deltas), expected["rpn_regress"])
    pooled = np.maximum(np.random.default_rng(99).standard_normal((3, 14, 14, 1024)).astype(np.float32), 0)
    logits, deltas = model.get_layer("roi_head").predict_on_batch(pooled[:, ::2, ::2])  # ours reads no others
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert_close(scores[None], expected["head_class"])
    assert_close(deltas.reshape(1, 3, 12), expected["head_regress"])


def _their_anchors(values):
    """(1, A, n) of ours -> (1, 11, 13, 9 n): sizes outside, ratios 1, 2, 0.5 inside."""
    cells = values.reshape(1, 11, 13, 3, 3, -1)  # our ratios 0.5, 1, 2, then sizes
    return np.stack([cells[:, :, :, ratio] for ratio in (1, 2, 0)], axis=4).reshape(1, 11, 13, -1)


def test_keras_frcnns_anchors_by_hand():
    """2 sizes, 3 ratios: channel 3 * size + ratio of theirs is channel 2 * ratio + size of ours."""
    model = detector("model.conventions=keras_frcnn", "model.anchor_ratios=[0.25,1,4]")
    mapping = _as_keras_frcnn(model)
    mapping["rpn_out_class/bias"] = np.arange(6)  # theirs: small 1, 4, 0.25; large 1, 4, 0.25
    mapping["rpn_out_regress/bias"] = np.arange(24)
    with pytest.raises(ValueError, match=r"height / width \(1.0, 2.0, 0.5\): set model.anchor_ratios to them"):
        load_weights(model, mapping)
    load_weights(model, mapping, anchor_ratios=(1, 4.0004, 0.25))
    bias = {name: array(model.get_layer("rpn").get_layer(name).bias) for name in ("rpn_out_class", "rpn_out_regress")}
    ours = [2, 5, 0, 3, 1, 4]  # 0.25 small, 0.25 large, 1 small, ...
    assert bias["rpn_out_class"].tolist() == ours
    assert bias["rpn_out_regress"].tolist() == [4 * anchor + corner for anchor in ours for corner in range(4)]


def _as_keras_frcnn(model):
    """The tensors of a detector of ours under keras-frcnn's names."""
    mapping, count = {}, len(model.class_names) + 1
    for part in ("backbone", "rpn", "roi_head"):
        for layer in model.get_layer(part).layers:
            for weight in layer.weights:
                name = {"class_logits": f"dense_class_{count}", "box_predictor": f"dense_regress_{count}"}.get(
                    layer.name, layer.name
                )
                if weight.name not in ("kernel", "bias"):
                    name = "bn_conv1" if name == "conv1" else name.replace("res", "bn")
                mapping[f"{name}/{weight.name}"] = array(weight.value)
    return mapping


# ------------------------------------------------------------------------------------------------------ our own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, and its model."""
    folder = tmp_path_factory.mktemp("run")
    model = detector()
    model.compile(optimizer=keras.optimizers.SGD(momentum=0.9))
    model.optimizer.build(model.trainable_variables)  # its variables are in the file, too
    model.save_weights(folder / "best.weights.h5")
    save_config(model.config, folder, CLASS_NAMES)
    return folder, model


@pytest.fixture(scope="module")
def twin():
    return detector("train.seed=5")


def predictor_rows(model):
    """{class: (score weights, box weights)}, "background" among them."""
    head = model.get_layer("roi_head")
    scores = np.vstack([array(head.get_layer("class_logits").kernel), array(head.get_layer("class_logits").bias)])
    boxes = np.vstack([array(head.get_layer("box_predictor").kernel), array(head.get_layer("box_predictor").bias)])
    rows = {name: (scores[:, i], boxes[:, 4 * i : 4 * i + 4]) for i, name in enumerate(model.class_names)}
    return rows | {"background": (scores[:, -1],)}


def assert_same_rows(first, second):
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_run_gives_everything(run, twin):
    folder, model = run
    assert not np.array_equal(values_of(twin)["conv1/kernel"], values_of(model)["conv1/kernel"])
    report = load_weights(twin, folder)
    assert (len(report.loaded), report.missing, report.unexpected, report.reinitialised) == (110, (), (), ())
    assert all(np.array_equal(value, values_of(model)[name]) for name, value in values_of(twin).items())
    image = np.stack(tiny_images(1)).astype(np.float32)
    first, second = (x.get_layer("backbone").predict_on_batch(image) for x in (model, twin))
    assert np.array_equal(first, second)
    found = describe(folder)
    assert (found.kind, found.depth, found.conventions, found.class_names) == ("frcnn", 18, "frcnn", CLASS_NAMES)


def test_weights_alone_do_not_say_what_they_need(run, twin, tmp_path):
    shutil.copy(run[0] / "best.weights.h5", tmp_path / "model_frcnn.hdf5")
    found = describe(tmp_path / "model_frcnn.hdf5")
    assert (found.kind, found.conventions, found.class_names, found.num_classes) == ("frcnn", None, None, 2)
    assert len(load_weights(twin, found).loaded) == 110
    with pytest.raises(ValueError, match=r"keep its config.pickle beside it, or set model.conventions"):
        prepare(tiny_config(f"model.weights={tmp_path / 'model_frcnn.hdf5'}"))
    save_config(twin.config, tmp_path, ("x", "y", "z"))  # of another run: it names no model_frcnn.hdf5
    assert describe(tmp_path / "model_frcnn.hdf5").class_names is None


def test_other_classes_take_the_rows_they_share(run):
    """tall, wide -> wide, round, tall: copied by name, the background too; round keeps what it had."""
    folder, model = run
    other = detector("train.seed=5", class_names=("wide", "round", "tall"))
    before, theirs = predictor_rows(other), predictor_rows(model)
    with pytest.raises(
        ValueError, match=r"its classes \(tall, wide\) are not those of the model \(wide, round, tall\)"
    ):
        load_weights(other, folder)
    assert_same_rows(predictor_rows(other)["wide"], before["wide"])
    report = load_weights(other, folder, reinitialise=True)
    after = predictor_rows(other)
    for name in ("tall", "wide", "background"):
        assert_same_rows(after[name], theirs[name])
    assert_same_rows(after["round"], before["round"])
    assert report.reinitialised == ("round",) and len(report.loaded) == 110
    assert str(report).splitlines()[1].endswith("predictor rows left as they were (1): round")


def test_the_order_of_the_same_classes_does_not_matter(run):
    turned = detector("train.seed=5", class_names=CLASS_NAMES[::-1])
    assert not load_weights(turned, run[0]).reinitialised
    for name, rows in predictor_rows(run[1]).items():
        assert_same_rows(predictor_rows(turned)[name], rows)


def test_classes_of_unknown_names_are_compared_by_number(run, twin, tmp_path):
    shutil.copy(run[0] / "best.weights.h5", tmp_path / "x.h5")
    other = detector(class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"detector of 2 classes, names unknown\): its classes"):
        load_weights(other, tmp_path / "x.h5")
    assert load_weights(other, tmp_path / "x.h5", reinitialise=True).reinitialised == ("a", "b", "c")


def test_a_backbone_leaves_the_heads_as_they_were(twin):
    before = predictor_rows(twin)
    report = load_weights(twin, torchvision_state("resnet18"))
    assert len(report.loaded) == 100 and len(report.missing) == 10
    assert report.missing[:2] == ("rpn_conv1/kernel", "rpn_conv1/bias") and "class_logits/bias" in report.missing
    lines = str(report).splitlines()
    assert lines[0] == "loaded 100 of 110 tensors from mapping (torchvision, ResNet-18 backbone)"
    assert lines[1].startswith("  not in it, left as they were (10): rpn_conv1/kernel, ") and "and 4 more" in lines[1]
    assert lines[2] == "  in it, without a place here (2): fc/kernel, fc/bias"
    for name, rows in predictor_rows(twin).items():
        assert_same_rows(rows, before[name])


# ------------------------------------------------------------------------------------------------------- errors


def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(twin):
    state = torchvision_state("resnet18") | {"layer4.1.conv2.weight": np.zeros((512, 512, 1, 1), np.float32)}
    before = values_of(twin)
    expected = r"res5b_branch2b/kernel has shape \(1, 1, 512, 512\), the model expects \(3, 3, 512, 512\)"
    with pytest.raises(ValueError, match=expected):
        load_weights(twin, state)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(twin).items())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_loaded(twin, value):
    broken = torchvision_state("resnet18")["layer4.1.conv2.weight"].astype(np.float64)
    broken[1, 2, 0, 1] = value
    state = torchvision_state("resnet18") | {"layer4.1.conv2.weight": broken}
    before = values_of(twin)
    with pytest.raises(ValueError, match="1 of the 2359296 values of res5b_branch2b/kernel are not finite"):
        load_weights(twin, state)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(twin).items())


def test_a_layer_comes_whole_or_not_at_all(twin):
    state = {name: values for name, values in torchvision_state("resnet18").items() if name != "layer2.0.bn1.bias"}
    with pytest.raises(ValueError, match=r"res3a_branch2a/beta is not in both"):
        load_weights(twin, state)
    with pytest.raises(ValueError, match=r"conv1/moving_mean, conv1/moving_variance is not in both.*model.norm"):
        load_weights(bare_resnet(18, "torchvision", "group"), torchvision_state("resnet18"))


def test_another_depth_is_refused(twin):
    with pytest.raises(
        ValueError, match=r"\(torchvision, ResNet-50 backbone\) does not fit a ResNet-18: set model.depth=50"
    ):
        load_weights(twin, torchvision_state("resnet50"))


def test_a_model_without_its_layers_is_refused():
    model = keras.Sequential([keras.layers.Dense(2, name="other")])
    model.build((None, 3))
    model.config = tiny_config()
    with pytest.raises(ValueError, match="holds nothing for this model, whose tensors are other/kernel, other/bias"):
        load_weights(model, torchvision_state("resnet18"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "none of its 0 names is of a ResNet"),
        (("a", "b/kernel"), r"none of its 2 names \(a, b/kernel\) is of a ResNet"),
        (("backbone.body.0.0.weight", "x"), r"none of its 2 names \(backbone.body.0.0.weight, x\) is of a ResNet"),
        (("conv1.weight", "layer1.0.conv1.weight"), r"stages 2 to 4 have \(1, 0, 0\) blocks"),
    ],
)
def test_names_that_are_none_of_ours(names, expected):
    with pytest.raises(ValueError, match=expected):
        describe({name: np.zeros(2) for name in names})


class Dangerous:
    def __reduce__(self):
        return print, ("executed",)


def write_objects(path):
    np.savez(path, **{"layer1.0.conv1.weight": np.array([Dangerous()], object)})
    (path.with_name(path.name + ".npz")).rename(path)


def write_truncated(path, write, share=0.5):
    write(path)
    path = path if path.exists() else path.with_name(path.name + ".npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    path.rename(path.with_name("x"))


def write_external_link(path):
    with h5py.File(path, "w") as file:
        file["vars"] = h5py.ExternalLink("/etc/secret.h5", "/")


def write_npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_safetensors_header(path, offsets, shape):
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


ARRAYS = {"a": np.zeros((20, 20), np.float32), "b": np.zeros(900, np.float32)}
FILES = {
    "missing": (lambda path: None, "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a file of weights"),
    "text": (lambda path: path.write_text("conv1, 3, 4\n"), "not a file of weights: HDF5"),
    "truncated HDF5": (
        lambda path: write_truncated(path, lambda p: write_legacy_hdf5(p, [("a", "kernel:0", ARRAYS["a"])])),
        "truncated file",
    ),
    "truncated npz": (lambda path: write_truncated(path, lambda p: np.savez(p, **ARRAYS)), "not a zip file"),
    "truncated safetensors": (
        lambda path: write_truncated(path, lambda p: write_safetensors(p, ARRAYS)),
        "[ab] declares .* which is not what the file holds",
    ),
    "header only": (lambda path: path.write_bytes(b"\xff\xff\0\0\0\0\0\0{"), "Expecting|property name"),
    "objects": (write_objects, "holds objects instead of numbers"),
    "another file": (lambda path: write_external_link(path), "lies in another file"),
    "text for numbers": (lambda path: write_npz(path, {"res2a_branch2a/gamma": np.array(["one"])}), "holds no numbers"),
    "overlap": (lambda path: write_safetensors_header(path, [0, 4], [10**15]), "a declares"),
    "before the data": (lambda path: write_safetensors_header(path, [-4, 0], [1]), "a declares"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "folder": (lambda path: path.mkdir(), "best.weights.h5: cannot be read as weights .No such file"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights(case, tmp_path, capfd):
    write, expected = FILES[case]
    write(tmp_path / "x")
    with pytest.raises(ValueError, match=expected) as caught:
        describe(tmp_path / "x")
    assert str(caught.value).startswith(str(tmp_path / "x")) and "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("protocol", [2, "zip"])
def test_a_pickle_that_wants_to_run_code_is_refused(protocol, tmp_path, capfd):
    torch = pytest.importorskip("torch")
    if protocol == 2:
        (tmp_path / "x.pth").write_bytes(pickle.dumps({"layer1.0.conv1.weight": Dangerous()}, 2))
    else:
        torch.save({"layer1.0.conv1.weight": Dangerous()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no state dict of tensors, or damaged") as caught:
        describe(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


def test_a_torch_file_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="needs PyTorch to be read: pip install torch, or save"):
        describe(tmp_path / "x.pth")


# ------------------------------------------------------------------------------------------ before the model


def test_without_weights_auto_means_ours_and_batch():
    config, source = prepare(tiny_config())
    assert source is None
    assert (config.model.conventions, config.model.norm, config.model.weights) == ("frcnn", "batch", "none")
    kept, _ = prepare(tiny_config("model.conventions=keras", "model.norm=group"))
    assert (kept.model.conventions, kept.model.norm) == ("keras", "group")


def test_weights_decide_conventions_and_norm(tmp_path, old_detector):
    np.savez(tmp_path / "x.npz", **torchvision_state("resnet18"))
    weights = f"model.weights={tmp_path / 'x.npz'}"
    config, source = prepare(tiny_config(weights))
    assert (config.model.conventions, config.model.norm) == ("torchvision", "frozen")
    assert config.model.weights == str(tmp_path / "x.npz") and source.kind == "torchvision"
    assert prepare(tiny_config(weights, "model.norm=batch"))[0].model.norm == "batch"
    with pytest.raises(ValueError, match=r"needs .*use_bias False \(not True\).*: set model.conventions=torchvision"):
        prepare(tiny_config(weights, "model.conventions=keras"))
    with pytest.raises(ValueError, match=r"set model\.depth=18"):
        prepare(tiny_config(weights, "model.depth=34"))
    config, _ = prepare(tiny_config(f"model.weights={old_detector}", "model.depth=50"))
    assert config.model.conventions == "keras_frcnn"


def test_imagenet_is_keras_applications(applications, applications_arrays, monkeypatch):
    asked, before = [], socket.getdefaulttimeout()

    def fake(**settings):
        asked.append((settings, socket.getdefaulttimeout()))
        return applications

    monkeypatch.setattr(keras.applications, "ResNet50", fake)
    config, source = prepare(tiny_config("model.weights=imagenet", "model.depth=50"))
    assert asked == [({"weights": "imagenet", "include_top": False}, 20)]
    assert socket.getdefaulttimeout() == before
    assert (config.model.conventions, config.model.norm, config.model.weights) == ("keras", "frozen", "imagenet")
    assert_same_tensors(source, describe(applications_arrays))


def test_imagenet_without_a_network_is_a_warning(monkeypatch):
    def fail(**settings):
        raise Exception("URL fetch failure on https://x/y.h5: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.applications, "ResNet50", fail)
    with pytest.warns(
        UserWarning, match=r"download failed \(URL fetch.*random weights.*set model.weights to a local file"
    ):
        config, source = prepare(tiny_config("model.weights=imagenet", "model.depth=50"))
    assert (source, config.model.weights, config.model.norm) == (None, "none", "batch")


def test_imagenet_of_a_depth_that_keras_does_not_have():
    with pytest.raises(ValueError, match="has no ResNet-18; download torchvision's resnet18"):
        prepare(tiny_config("model.weights=imagenet"))
