"""`frcnn classify` as a user runs it: the three actions, weights between detectors and classifiers, every mistake."""

import csv
import json
import re

import keras
import numpy as np
import pytest

from frcnn.cli import main
from frcnn.config import load_run_config, save_config
from frcnn.data.images import read_image, write_image
from frcnn.models.detector import build_detector
from frcnn.training import build_model
from tests.oracles.shapes import SETTINGS, SHAPES, draw_shape
from tests.oracles.tiny import tiny_config

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with class folders, the same as an npz file, and a trained run."""
    folder = tmp_path_factory.mktemp("classify")
    for part, count in (("train", 16), ("test", 6)):
        for index in range(count):
            name = folder / "shapes" / part / SHAPES[index % 2] / f"{index}.png"
            write_image(name, draw_shape(index % 2, index + 100 * (part == "test")))
    images = [draw_shape(index % 2, index + 100) for index in range(6)]
    np.savez(folder / "test.npz", x_test=images, y_test=SHAPES * 3)
    arguments = ["-p", "shapes", "--output", "runs/shapes", "--validation", "test", *SETTINGS, "train.epochs=6"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["classify", "train", *arguments]) == 0
    return folder


@pytest.fixture
def classify(work, monkeypatch, capsys):
    """Run an action in the folder of `work`: classify("predict", ...) -> exit code, stdout, stderr."""
    monkeypatch.chdir(work)

    def call(*arguments):
        capsys.readouterr()
        code = main(["classify", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def assert_one_sentence(result, *words):
    code, _, error = result
    assert code == 2
    assert error.startswith("frcnn ") and len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert all(word in error for word in words), error


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_evaluate_takes_the_test_part_and_writes_everything(classify, tmp_path):
    code, out, error = classify("evaluate", "-p", "shapes", "--output", tmp_path, "--top-k", 2)
    assert (code, error) == (0, "")
    assert "classifier runs/shapes" in out and re.search(r"6 pictures in .* s, .*/s", out)
    assert "top-2 accuracy 1.0000" in out and "precision" in out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["pictures"] == 6 and result["accuracy"] >= 0.8
    matrix = read_table(tmp_path / "confusion_matrix.csv")
    assert matrix[0] == ["true class", *SHAPES] and [row[0] for row in matrix[1:]] == list(SHAPES)
    assert [[int(cell) for cell in row[1:]] for row in matrix[1:]] == result["confusion_matrix"]
    assert read_image(tmp_path / "confusion_matrix.png").shape[0] > 300


def test_predict_prints_the_probabilities_of_a_picture(classify, work):
    code, out, error = classify("predict", "-p", "shapes/test/wide/1.png", "--run", "runs/shapes", "--output", "none")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert "shapes/test/wide/1.png: wide" in lines
    values = {name: float(line.split()[1]) for name in SHAPES for line in lines if line.startswith(f"{name} ")}
    assert values["wide"] > values["tall"] and sum(values.values()) == pytest.approx(1, abs=2e-4)
    assert not (work / "none").exists()


def test_predict_writes_a_table_and_a_sheet_and_reports_what_it_cannot_read(classify, tmp_path):
    for index in range(6):
        write_image(tmp_path / "in" / f"{index}.png", draw_shape(index % 2, index + 100))
    (tmp_path / "in" / "1a.png").write_bytes(b"no picture")
    settings = ("--run", "runs/shapes", "--output", tmp_path / "out")
    code, out, error = classify("predict", "-p", tmp_path / "in", *settings)
    assert code == 1 and "7 pictures in" in out
    assert error.startswith("frcnn classify: skipped: ") and "1a.png" in error and len(error.splitlines()) == 1
    header, *rows = read_table(tmp_path / "out" / "predictions.csv")
    assert header == ["file", "class", "probability", *SHAPES]
    assert [row[0] for row in rows] == [f"{index}.png" for index in range(6)]
    for _, name, best, *values in rows:
        assert float(best) == max(map(float, values)) == float(values[SHAPES.index(name)])
    assert read_image(tmp_path / "out" / "contact_sheet.png").shape[:2] == (2 * (96 + 22), 3 * 96)
    # So do lists of them, with classes, without, and with boxes; and they may have moved.
    lists = {
        "plain.txt": "gone/{}.png\n",
        "classes.csv": "gone/{0}.png,{0}\n",
        "boxes.txt": "gone/{}.png,0,0,9,9,tall\n",
    }
    for name, line in lists.items():
        (tmp_path / name).write_text("".join(map(line.format, range(6))))
        code, _, error = classify("predict", "-p", tmp_path / name, *settings)
        assert code == 2 and "--images FOLDER" in error
        assert classify("predict", "-p", tmp_path / name, "--images", tmp_path / "in", *settings)[0] == 0
        again = read_table(tmp_path / "out" / "predictions.csv")[1:]
        assert [row[1:] for row in again] == [row[1:] for row in rows] and again[2][0].endswith("2.png")
    # Arrays of the same pictures get the same probabilities.
    assert classify("predict", "-p", "test.npz", *settings)[0] == 0
    again = read_table(tmp_path / "out" / "predictions.csv")[1:]
    assert again[4][0] == "test.npz x_test[4]" and [row[1:] for row in again] == [row[1:] for row in rows]


def test_a_whole_model_is_scored_and_used(classify, tmp_path):
    images = keras.Input((32, 32, 3))
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.GlobalAveragePooling2D()(images))
    keras.Model(images, outputs).save(tmp_path / "model.keras")
    code, out, _ = classify("evaluate", "-p", "test.npz", "--model", tmp_path / "model.keras")
    assert code == 0 and (tmp_path / "evaluation.json").exists() and "accuracy" in out
    settings = ("--model", tmp_path / "model.keras", "--output", tmp_path / "out")
    assert classify("predict", "-p", "shapes/test", *settings)[0] == 0
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == 7
    result = classify("predict", "-p", "shapes/test", "--run", "runs/shapes", *settings)
    assert_one_sentence(result, "--model and --run name two classifiers")


def test_pictures_and_batches_have_a_size_where_none_is_set(classify, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((6, 20, 24), np.uint8), y=[0, 1] * 3)
    settings = ("classify.blocks=[1]", "train.epochs=1", "data.colour_jitter=0.2", "--output", tmp_path / "run")
    code, out, _ = classify("train", "-p", tmp_path / "x.npz", *settings)
    assert code == 0 and "brought to 28x28; augmentation: horizontal_flip, colour_jitter 0.2" in out
    config, class_names = load_run_config(tmp_path / "run", "classifier")
    assert (config.data.im_size, config.train.batch_size, class_names) == (28, 32, ("0", "1"))


def test_a_backbone_goes_both_ways(classify, tmp_path):
    """All 100 tensors of the five stages; the two of fc and the ten of the detector's heads are said to be left."""
    detector = build_detector(tiny_config("train.seed=7"), ["a"])
    save_config(detector.config, tmp_path / "detector", ["a"])
    detector.save_weights(tmp_path / "detector" / "best.weights.h5")
    settings = ("model.depth=18", "train.epochs=1", "data.im_size=32", "train.precision=float32", "train.batch_size=4")
    flags = ("--backbone-from", tmp_path / "detector", "--output", tmp_path / "classifier")
    code, out, _ = classify("train", "-p", "test.npz", "--validation", "test", *flags, *settings)
    assert_one_sentence((code, out, _), "test.npz holds pictures to test with, none to train on")
    code, out, _ = classify("train", "-p", "shapes", "--validation", "test", *flags, *settings)
    assert code == 0
    lines = out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("loaded "))
    assert (
        lines[first].startswith("loaded 100 of 102 tensors from ") and "ResNet-18 detector of 1 classes" in lines[first]
    )
    assert lines[first + 1] == "  not in it, left as they were (2): fc/kernel, fc/bias"
    assert lines[first + 2].startswith("  in it, without a place here (10): rpn_conv1/kernel")
    report = build_model(
        tiny_config("model.norm=auto", f"model.weights={tmp_path / 'classifier'}"), ["a"]
    ).weights_report
    assert str(report).startswith("loaded 100 of 110 tensors from ") and "classifier of 2 classes" in str(report)
    assert report.unexpected == ("fc/kernel", "fc/bias") and len(report.missing) == 10


def test_a_run_of_the_other_kind(classify, tmp_path, work, capsys):
    save_config(tiny_config(), tmp_path, ["a", "b"])
    (tmp_path / "best.weights.h5").touch()
    for action in ("evaluate", "predict"):
        result = classify(action, "-p", "shapes", "--run", tmp_path, "--output", tmp_path / "out")
        assert_one_sentence(result, "is of a detector, not of a classifier: frcnn detect takes it")
    capsys.readouterr()
    (tmp_path / "x.txt").write_text(f"{work}/shapes/test/tall/0.png,,,,,\n")
    for arguments in (["detect", "-p", "shapes"], ["evaluate", "-p", tmp_path / "x.txt"]):
        code = main([*map(str, arguments), "--run", "runs/shapes", "--output", str(tmp_path / "out")])
        assert_one_sentence(
            (code, *capsys.readouterr()), "is of a classifier, not of a detector: frcnn classify predict"
        )
    assert not (tmp_path / "out" / "predictions.csv").exists()


MISTAKES = {
    "nothing there": (["train", "-p", "nowhere"], "nowhere: no such file or folder"),
    "too small": (
        ["train", "-p", "shapes", "data.im_size=20"],
        "data.im_size (20) must be greater than or equal to 28",
    ),
    "other depth": (["train", "-p", "shapes", "model.weights=runs/shapes"], "its stages 2 to 4 have (1, 0, 0) blocks"),
    "no part": (["evaluate", "-p", "test.npz", "--split", "val"], "test.npz has no part 'val', only test"),
    "no run": (
        ["predict", "-p", "shapes", "--run", "shapes"],
        "shapes is not a finished run: config.pickle is missing",
    ),
    "no model": (["predict", "-p", "shapes", "--model", "test.npz"], "test.npz: Keras"),
    "top-k": (["evaluate", "-p", "test.npz", "--top-k", "0"], "top_k (0) at least 1"),
    "run there": (["train", "-p", "shapes", "--output", "runs/shapes"], "runs/shapes holds a run already"),
    "field": (["train", "-p", "shapes", "classify.block=[1]"], "did you mean classify.blocks?"),
    "blocks": (["train", "-p", "shapes", "classify.blocks=[]"], "classify.blocks"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(classify, work, name):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    arguments, words = MISTAKES[name]
    output = [] if "--output" in arguments else ["--output", "new"]
    assert_one_sentence(classify(*arguments, *output), words)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_a_pickle_that_wants_to_run_code(classify, tmp_path):
    (tmp_path / "config.pickle").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    (tmp_path / "best.weights.h5").touch()
    result = classify("predict", "-p", "shapes", "--run", tmp_path)
    assert_one_sentence(result, "config.pickle holds more than plain values (os.system): refused")


def test_weights_of_another_depth(classify, tmp_path):
    detector = build_detector(tiny_config(), ["a"])
    save_config(detector.config, tmp_path / "detector", ["a"])
    detector.save_weights(tmp_path / "detector" / "best.weights.h5")
    flags = ("--backbone-from", tmp_path / "detector", "--output", tmp_path / "new")
    for setting in ("model.depth=50", "classify.blocks=[2,2]"):
        result = classify("train", "-p", "shapes", "data.im_size=32", *flags, "model.depth=18", setting)
        assert_one_sentence(result, "ResNet-18 detector of 1 classes) does not fit a ResNet")
    assert not (tmp_path / "new").exists()
