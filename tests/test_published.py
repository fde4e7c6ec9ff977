import hashlib
import pickle
import socket
from pathlib import Path

import keras
import numpy as np
import pytest

from frcnn.cli import main
from frcnn.config import load_config, load_run_config
from frcnn.inference import detect, load_detector
from frcnn.models.detector import detection_model
from frcnn.published import COCO_NAMES, PUBLISHED, fetch
from frcnn.training import build_model
from frcnn.weights import convert, describe, load_weights
from tests.oracles.small_torchvision import FPN, small_state
from tests.oracles.tensors import array
from tests.oracles.tiny import tiny_config, tiny_images

TINY = [text for text in FPN if "anchor" in text] + [
    "model.rpn_channels=16",
    "model.roi_pool_size=2",
    "data.im_size=64",
]


def test_coco_has_91_entries_with_their_gaps():
    """Category numbers as everybody knows them; the background is not among ours."""
    known = {1: "person", 3: "car", 13: "stop sign", 18: "dog", 44: "bottle", 62: "chair", 67: "dining table"}
    known |= {70: "toilet", 72: "tv", 84: "book", 90: "toothbrush"}
    assert {number: COCO_NAMES[number - 1] for number in known} == known
    gaps = {number for number, name in enumerate(COCO_NAMES, 1) if name == f"N/A {number}"}
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert len(set(COCO_NAMES)) == len(COCO_NAMES) == 90


def write_state(path, state=None):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.tensor(x) for name, x in (state or small_state()).items()}, path)
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A small detector in the place of the first published file, behind a faked download; what was asked of it."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    source, asked = write_state(tmp_path / "there.pth", small_state(first_names=True)), []
    digits = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, "coco", f"small_coco-{digits}.pth")

    def download(url, target, progress):
        asked.append((url, socket.getdefaulttimeout()))
        Path(target).write_bytes(source.read_bytes())

    monkeypatch.setattr(keras.src.utils.file_utils, "urlretrieve", download)
    return source, asked


def test_the_files_and_their_digits_are_the_published_ones():
    assert PUBLISHED == {
        "coco": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "coco-v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    }


def test_a_file_is_downloaded_once_checked_and_kept(stand_in, tmp_path):
    _, asked = stand_in
    before = socket.getdefaulttimeout()
    first, again = fetch("coco"), fetch("coco")
    assert first == again == tmp_path / "keras" / "models" / PUBLISHED["coco"]
    assert asked == [(f"https://download.pytorch.org/models/{PUBLISHED['coco']}", 20)]
    assert socket.getdefaulttimeout() == before
    first.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"damaged: its SHA-256 does not begin with \w{8}; delete it"):
        fetch("coco")


def test_without_a_network_the_place_is_named(stand_in, tmp_path, monkeypatch):
    source, _ = stand_in

    def fail(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(keras.src.utils.file_utils, "urlretrieve", fail)
    with pytest.raises(ValueError, match=r"download failed .*not known.* another machine and put it at ") as caught:
        fetch("coco")
    place = Path(str(caught.value).rpartition("put it at ")[2])
    assert place == tmp_path / "keras" / "models" / PUBLISHED["coco"] and not place.exists()
    place.write_bytes(source.read_bytes())
    assert fetch("coco") == place


def test_the_first_published_file_runs_without_an_epsilon_whatever_its_name(stand_in, tmp_path):
    source, _ = stand_in
    assert describe(source).conventions == "torchvision_coco"
    assert describe(write_state(tmp_path / "other.pth")).conventions == "torchvision"


def test_training_starts_from_the_published_detector(stand_in):
    config = tiny_config(*FPN, "model.norm=auto", "model.weights=coco", "model.trainable_stages=2")
    model = build_model(config, ["zebra"])
    assert (model.config.model.norm, model.config.model.conventions) == ("frozen", "torchvision_coco")
    assert model.get_layer("backbone").get_layer("res5a_branch2a").epsilon == 0.0
    assert model.weights_report.reinitialised == ("zebra",) and not model.weights_report.missing
    layers = model.get_layer("backbone").layers
    still = {layer.name[:4] for layer in layers if layer.weights and not layer.trainable}
    assert still == {"conv", "res2", "res3"}, "the pyramid learns"


# ------------------------------------------------------------------------------------------------------ conversion


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(state file, run folder made of it by the command)."""
    folder = tmp_path_factory.mktemp("converted")
    source = write_state(folder / "x.pth", scaled(small_state()))
    arguments = ["convert-weights", str(source), str(folder / "runs" / "x"), "--classes", "cat", "dog", "tree", *TINY]
    assert main(arguments) == 0
    return source, folder / "runs" / "x"


def scaled(state):
    """Numbers that count up, made small enough for a network to stand them."""
    rng = np.random.default_rng(0)
    parts = ("backbone.fpn", "rpn", "roi_heads")
    return {
        name: rng.normal(0, 0.05, x.shape).astype(np.float32) if name.startswith(parts) else x
        for name, x in state.items()
    }


def test_a_run_folder_holds_everything(converted):
    _, folder = converted
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "config.pickle", "best.weights.h5"}
    assert [path.name for path in folder.parent.iterdir()] == ["x"], "no draft is left"
    config, class_names = load_run_config(folder)
    assert class_names == ("cat", "dog", "tree")
    expected = {"architecture": "fpn", "depth": 18, "conventions": "torchvision", "norm": "frozen", "weights": "none"}
    assert {name: getattr(config.model, name) for name in expected} == expected
    assert (config.data.im_size, config.data.max_size) == (64, 1333)
    assert load_config(folder / "config.yaml") == config


def test_it_detects_what_the_state_dict_does(converted):
    source, folder = converted
    low = ["detect.score_threshold=0.01"]
    found = detect(load_detector(folder, overrides=low), tiny_images())
    model = build_model(load_config(folder / "config.yaml", low), ["cat", "dog", "tree"])
    load_weights(model, source)
    again = detect(detection_model(model), tiny_images())
    assert sum(map(len, found)) > 0
    for first, second in zip(found, again):
        assert np.array_equal(first.boxes, second.boxes) and np.array_equal(first.labels, second.labels)


def test_training_takes_it(converted):
    _, folder = converted
    config = tiny_config(*FPN, f"model.weights={folder}", "model.norm=auto")
    model = build_model(config, ["dog", "house"])
    report = model.weights_report
    assert (report.shared, report.reinitialised, report.missing) == (("dog",), ("house",), ())
    assert model.config.model.conventions == "torchvision"
    twin = load_detector(folder)
    kernels = [network.get_layer("backbone").get_layer("fpn_inner3").kernel for network in (model, twin)]
    assert np.array_equal(*map(array, kernels))


def refuse(capsys, *arguments):
    assert main(["convert-weights", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "Traceback" not in error
    return error


@pytest.fixture
def bad_files(tmp_path, converted):
    data = converted[0].read_bytes()
    (tmp_path / "truncated.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "malicious.pth").write_bytes(pickle.dumps({"backbone.body.conv1.weight": Malicious()}, 2))
    body = {name: x for name, x in small_state().items() if name.startswith("backbone.body")}
    np.savez(tmp_path / "backbone.npz", **{name.removeprefix("backbone.body."): x for name, x in body.items()})
    np.savez(tmp_path / "mobile.npz", **{"backbone.body.0.0.weight": np.zeros(3)})
    return tmp_path


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.pth", "damaged, or not weights"),
        ("malicious.pth", "no state dict of tensors, or damaged"),
        ("mobile.npz", "none of its 1 names (backbone.body.0.0.weight) is of a ResNet"),
        (
            "backbone.npz",
            "ResNet-18 backbone) is no detector of torchvision's: train from it with model.weights",
        ),
        ("missing.pth", "No such file"),
    ],
)
def test_what_is_no_detector_is_refused_and_nothing_is_written(bad_files, capsys, name, words):
    error = refuse(capsys, bad_files / name, bad_files / "out", "--classes", "a", "b", "c")
    assert words in error and name in error and "executed" not in error
    assert not (bad_files / "out").exists()


def test_classes_and_folder_must_fit(converted, capsys, tmp_path):
    source, folder = converted
    assert "name its 3 classes in the order of its labels, not 0" in refuse(capsys, source, tmp_path / "x")
    assert "3 classes in the order of its labels, not 2" in refuse(
        capsys, source, tmp_path / "x", "--classes", "a", "b"
    )
    assert f"{folder} is there already: name another folder" in refuse(capsys, source, folder, "--classes", *"abc")
    shape = "rpn_conv1/kernel has shape (3, 3, 256, 16), the model expects (3, 3, 256, 256)"
    assert shape in refuse(capsys, source, tmp_path / "x", "--classes", *"abc")
    assert not list(tmp_path.iterdir())


def test_a_detector_that_is_not_whole_is_refused(tmp_path):
    state = {name: x for name, x in small_state().items() if "inner_blocks.1" not in name}
    with pytest.raises(ValueError, match="lacks fpn_inner3/kernel, fpn_inner3/bias: it is not whole"):
        convert(state, tmp_path / "x", ["a", "b", "c"], TINY)
    assert not list(tmp_path.iterdir())
