"""The examples run and do what they say."""

import importlib.util
import json
import re
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from frcnn.records import Detections
from tests.contracts import assert_is_detections

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def run_notebook(**parameters):
    """Execute the code cells one after the other, the first one's names replaced; return the names that they define."""
    names = {}
    for number, cell in enumerate(code_cells()):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name} cell {number}", "exec"), names)
        if number == 0:
            assert parameters.keys() <= names.keys()
            names.update(parameters)
    return names


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def multi_output():
    return load_example("multi_output")


def test_multi_output_model_learns_from_its_own_outputs(multi_output, tmp_path, capsys):
    assert multi_output.main(["--epochs", "4", "--graph", str(tmp_path / "graph.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines[:4]]
    for total, class_loss, box_loss in values:
        assert total == pytest.approx(class_loss + box_loss, abs=0.002)
    assert values[-1][1] < 0.5 * values[0][1] and values[-1][2] < 0.7 * values[0][2]
    assert float(re.search(r"(\d+)%", lines[4])[1]) > 90
    assert (tmp_path / "graph.png").exists() == lines[5].startswith("graph: ")


def test_multi_output_losses_are_numbers_a_picture(multi_output):
    inputs = next(multi_output.batches(0))[0]
    model = multi_output.build_model()
    found = model.predict_on_batch(inputs)
    assert len(model.inputs) == len(inputs) == 3 and len(found) == 5
    np.testing.assert_allclose(found["box_loss"], np.abs(found["box"] - inputs["true_box"]).mean(axis=1), rtol=1e-5)
    probability = found["class_scores"][np.arange(len(inputs["true_class"])), inputs["true_class"]]
    np.testing.assert_allclose(found["class_loss"], -np.log(probability), rtol=1e-4)


def test_multi_output_without_graphviz_says_so(multi_output, monkeypatch, tmp_path, capsys):
    def missing(*_, **__):
        raise ImportError("no pydot")

    monkeypatch.setattr(keras.utils, "plot_model", missing)
    assert multi_output.main(["--epochs", "1", "--graph", str(tmp_path / "graph.png")]) == 0
    assert "pip install pydot" in capsys.readouterr().out.splitlines()[-1]


def test_degradation_trains_four_networks_that_differ_in_depth_and_shortcuts(tmp_path, capsys):
    """Twelve pictures in the tutorials' layout: white ones are class 1, black ones 0, so any network learns them."""
    for part in ("train", "test"):
        labels = np.arange(12) % 2
        pictures = np.repeat(labels * 255, 32 * 32 * 3).reshape(12, 32, 32, 3).astype(np.uint8)
        with h5py.File(tmp_path / f"{part}_signs.h5", "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"] = pictures, labels[None]
    chart = tmp_path / "charts" / "d.png"
    sizes = ["--blocks", "1", "2", "--epochs", "3", "--side", "28", "--width", "4", "--batch", "4"]
    assert load_example("degradation").main([str(tmp_path), "--output", str(chart), *sizes]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[:4]]
    assert [row[0] for row in rows] == ["plain-8", "plain-14", "residual-8", "residual-14"]
    parameters = [int(row[1].replace(",", "")) for row in rows]
    assert parameters[0] < parameters[1] < parameters[3] and parameters[0] < parameters[2]
    errors = [[float(number) for number in re.findall(r"([\d.]+) %", " ".join(row))] for row in rows]
    assert all(0 <= error <= 100 for row in errors for error in row) and errors[2][0] < 20
    assert chart.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.tensorflow
def test_notebook_goes_from_annotations_to_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    small = ["data.im_size=96", "data.max_size=144", "train.precision=float32", "detect.score_threshold=0.001"]
    names = run_notebook(PICTURES=12, TEST_PICTURES=3, EPOCHS=1, OVERRIDES=small)
    assert isinstance(names["found"], Detections) and len(names["found"]) and len(names["all_found"]) == 3
    assert_is_detections(names["found"], names["class_names"])
    assert (names["RUN"] / "best.weights.h5").exists()
    assert "circle" in (out := capsys.readouterr().out) and "epoch 1: loss" in out and "total, mAP" in out


def test_notebook_is_committed_as_it_ran():
    """Top to bottom, without an error, with pictures, and without what is of one machine only."""
    cells, text = code_cells(), NOTEBOOK.read_text()
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert sum(kind.startswith("image/") for kind in kinds) == 2
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|work|Users|usr)/", text)
