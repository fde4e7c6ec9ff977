import csv
import gc
import json
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from frcnn.checkpoints import checkpoint_files, read_checkpoint
from frcnn.config import load_config, load_run_config, with_overrides
from frcnn.data.batches import batch_files, make_batch, split_records
from frcnn.data.images import read_image
from frcnn.data.readers import read_records
from frcnn.inference import detect, load_detector
from frcnn.models.detector import LOSSES, FasterRCNN
from frcnn.models.resnet import ConvNorm
from frcnn.optimizer import CoupledSGD, WarmupDecay, build_optimizer
from frcnn.records import ImageRecord
from frcnn.training import TimedBatches, build_model, train, train_model
from tests.contracts import assert_is_detections
from tests.oracles.tensors import array, tensor
from tests.oracles.tiny import CLASS_NAMES, tiny_config, write_tiny_pictures

pytestmark = pytest.mark.tensorflow
RECORD = [ImageRecord("a.png", (10, 10), [[0, 0, 5, 5]], [1])]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frcnn-data")]


@pytest.fixture
def gives_back(tmp_path):
    """No file under `tmp_path` is open after the test, and no thread of Python's is left that was not there before."""

    def threads():
        return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}

    before = threads()
    yield
    gc.collect()
    assert threads() <= before
    handles = Path("/proc/self/fd")  # Linux
    links = [os.readlink(handle) for handle in handles.iterdir() if handle.is_symlink()] if handles.exists() else []
    assert not [link for link in links if link.startswith(str(tmp_path))]


# ---------------------------------------------------------------------------------------------------- optimizer


def torch_sgd(values, gradients, rates, *, momentum, decay, clip):
    """torch.nn.utils.clip_grad_norm_, then torch.optim.SGD: g += decay * w; v = momentum * v + g; w -= rate * v."""
    values = {name: value.astype(np.float64) for name, value in values.items()}
    velocity = {name: np.zeros_like(value) for name, value in values.items()}
    for step, rate in zip(gradients, rates, strict=True):
        norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in step.values()))
        for name, gradient in step.items():
            gradient = gradient * min(1.0, clip / norm) + (decay * values[name] if name == "kernel" else 0.0)
            velocity[name] = momentum * velocity[name] + gradient
            values[name] = values[name] - rate * velocity[name]
    return values


def test_five_steps_of_coupled_sgd_equal_torchs():
    generator = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "gamma": (4,), "beta": (4,)}
    values = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # Norms around 5 and 0.5: clipped at 1 in some steps and not in others.
    gradients = [
        {name: (scale * generator.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        for scale in (1.0, 0.1, 1.0, 0.1, 1.0)
    ]
    variables = [keras.Variable(value, name=name) for name, value in values.items()]
    optimizer = CoupledSGD(0.1, 0.9, kernel_decay=0.2, global_clipnorm=1.0)
    for step in gradients:
        optimizer.apply([tensor(gradient) for gradient in step.values()], variables)
    expected = torch_sgd(values, gradients, [0.1] * 5, momentum=0.9, decay=0.2, clip=1.0)
    for variable in variables:
        np.testing.assert_allclose(array(variable.value), expected[variable.name], rtol=1e-5, atol=1e-6)


def test_only_kernels_decay():
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias", "gamma", "beta", "kernel_scale")]
    optimizer = CoupledSGD(0.1, kernel_decay=0.5)
    optimizer.apply([tensor(np.zeros(2))] * len(variables), variables)
    assert [array(variable.value).tolist() for variable in variables] == [pytest.approx([0.95, 0.95]), *[[1, 1]] * 4]


def test_the_optimizer_survives_serialization():
    optimizer = build_optimizer(load_config().train, 100)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert (twin.kernel_decay, twin.momentum, twin.global_clipnorm) == (1e-4, 0.9, 10.0)
    assert twin.get_config() == optimizer.get_config()


def test_adam_by_hand_and_its_decay():
    """Two steps of AdamW (Loshchilov and Hutter 2019) on one kernel and one bias, which does not decay."""
    settings = load_config(None, ["train.optimizer=adam", "train.weight_decay=0.5", "train.warmup_steps=0"]).train
    optimizer = build_optimizer(settings, 10**9)
    assert optimizer.global_clipnorm == 10.0
    variables = [keras.Variable(np.ones(1), name=name) for name in ("kernel", "bias")]
    gradients, rate, expected = [0.5, -0.25], settings.learning_rate, {"kernel": 1.0, "bias": 1.0}
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        optimizer.apply([tensor(np.full(1, gradient, np.float32))] * 2, variables)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        change = rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-7)
        expected = {name: value * (1 - rate * 0.5 * (name == "kernel")) - change for name, value in expected.items()}
    for variable in variables:
        assert array(variable.value).tolist() == pytest.approx([expected[variable.name]], rel=1e-5)


def test_cosine_by_hand():
    # 100 steps, 4 of warm-up: (step + 1) / 5 until step 4; (1 + cos(pi * step / 100)) / 2 all the way.
    schedule = WarmupDecay(2.0, 4, 100, "cosine")
    expected = {0: 0.4, 4: 2 * 0.996057, 25: 2 * 0.853553, 50: 1.0, 75: 2 * 0.146447, 100: 0.0, 200: 0.0}
    for step, rate in expected.items():
        assert float(array(schedule(step))) == pytest.approx(rate, abs=1e-5), step
    assert float(array(schedule(1))) == pytest.approx(2 * 0.4 * 0.999753, abs=1e-5)


def test_steps_by_hand():
    # 90 steps: a tenth from 60 on, a hundredth from 80 on.
    schedule = WarmupDecay(2.0, 1, 90, "step")
    expected = {0: 1.0, 1: 2.0, 59: 2.0, 60: 0.2, 79: 0.2, 80: 0.02, 89: 0.02}
    assert {step: round(float(array(schedule(step))), 6) for step in expected} == expected


def test_a_short_runs_warm_up_takes_a_quarter_of_it():
    settings = load_config().train
    assert [build_optimizer(settings, steps)._learning_rate.warmup_steps for steps in (8, 100_000)] == [2, 200]


# -------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs on four pictures and one of validation, the step traced once: (folder, history, config, records)."""
    folder = tmp_path_factory.mktemp("training")
    records = [*write_tiny_pictures(folder / "a"), *write_tiny_pictures(folder / "b", 1)]
    config = tiny_config("train.epochs=2", "data.val_fraction=0.2", "train.seed=1", "train.learning_rate=0.005")
    calls, traces, step = [], [], FasterRCNN.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frcnn.health.detect", lambda *given: calls.append(len(given[1])) or detect(*given))
        patch.setattr(FasterRCNN, "train_step", lambda *given: traces.append(1) or step(*given))
        history = train(config, records, class_names=CLASS_NAMES, output=folder / "run", verbose=0)
    assert traces == [1]
    assert calls == [1, 1]  # the card shows what validation has found, and detects nothing itself
    return folder / "run", history.history, config, records


def test_history_holds_every_loss_of_both_parts(run):
    folder, history, *_ = run
    losses = ["loss", *LOSSES]
    expected = {*losses, *(f"val_{name}" for name in losses), "val_map", "val_rpn_recall", "val_best_score"}
    expected |= {"pictures_per_second", "data_wait"}
    assert set(history) >= expected
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and set(rows[0]) >= {"epoch", *expected}
    for epoch, row in enumerate(rows):
        assert all(float(row[name]) == pytest.approx(history[name][epoch], rel=1e-4) for name in expected)
        assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in LOSSES), rel=1e-4)
        assert float(row["pictures_per_second"]) > 0
        assert all(0 <= float(row[name]) <= 1 for name in ("data_wait", "val_map", "val_rpn_recall", "val_best_score"))


def test_the_run_folder_says_how_the_run_was_made(run):
    folder, _, config, _ = run
    settled = with_overrides(config, ["model.conventions=frcnn", "model.norm=batch"])  # what auto stood for
    assert load_run_config(folder) == (settled, CLASS_NAMES)
    assert load_config(folder / "config.yaml") == settled
    card = json.loads((folder / "card.json").read_text())
    assert (card["seed"], card["initial_weights"]) == (1, ["random"])
    assert card["versions"]["keras"] == keras.__version__
    assert card["machine"]["device"].startswith(keras.backend.backend())
    height, width, _ = read_image(folder / "curves.png").shape
    assert height > 100 and width > 100


def test_the_card_says_how_the_run_went(run):
    folder, history, *_ = run
    card = json.loads((folder / "card.json").read_text())
    assert (card["state"], card["epochs"], card["steps"]) == ("finished", 2, 4)
    # How many: those of the batches that had been made by then, some of the next epoch's among them.
    assert re.match(r"epoch 1: of class 'tall' no anchor overlaps any of the \d boxes by", card["warnings"][0])
    assert (card["data"]["train"]["pictures"], card["data"]["validation"]["file"]) == (4, "validation.txt")
    best = history["val_map"].index(max(history["val_map"]))
    for name, epoch in (("last_epoch", 1), ("best_epoch", best)):
        assert card[name]["epoch"] == epoch + 1
        assert card[name]["val_map"] == pytest.approx(history["val_map"][epoch], abs=1e-6)
    page = (folder / "card.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("data:image/jpeg;base64,") == 1  # curves; one picture
    assert "annotated; " in page and "</details>" in page


def test_the_split_can_be_read_again(run):
    folder, _, config, records = run
    expected = split_records(records, 0.2, config.train.seed)
    assert [len(part) for part in expected] == [4, 1]
    for name, part in zip(("train", "validation"), expected):
        found, _ = read_records(folder / f"{name}.txt", class_names=CLASS_NAMES)
        assert [(record.path, record.size) for record in found] == [(record.path, record.size) for record in part]
        for again, record in zip(found, part):
            assert again.boxes.tolist() == record.boxes.tolist() and again.labels.tolist() == record.labels.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"records": RECORD}, r"a.png: label 1 is no class: labels count from 0, .*\(cat\) allow 0 to 0"),
        ({"records": [], "validation": RECORD}, r"a.png: label 1 is no class"),
        ({"records": []}, "records is empty"),
        ({"class_names": "cat"}, "class_names 'cat' is one string"),
        ({"config": "demo.yaml"}, "config is a str: give what frcnn.load_config returns"),
    ],
    ids=str,
)
def test_wrong_arguments_are_told_before_a_model_is_built(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr("frcnn.training.build_model", None)
    given = {"config": tiny_config(), "records": [], "class_names": ["cat"], "output": tmp_path / "run"} | arguments
    with pytest.raises(ValueError, match=message):
        train(**given)
    assert not (tmp_path / "run").exists()


def test_crowds_are_not_trained_on(monkeypatch, tmp_path):
    """A box around many objects would teach that the space between them is one."""
    record = ImageRecord("a.png", (10, 10), [[0, 0, 5, 5], [0, 0, 9, 9], [1, 1, 2, 2]], [0, 1, 2], [0, 0, 1], [0, 1, 0])
    model, seen = SimpleNamespace(config=tiny_config(), class_names=CLASS_NAMES), []

    def fit(model, records, validation, *_, **__):
        seen.extend([*records, *validation])

    for name in ("compile_model", "write_run_files", "write_annotations"):
        monkeypatch.setattr(f"frcnn.training.{name}", lambda *_: None)
    monkeypatch.setattr("frcnn.training.fit_model", fit)
    train_model(model, [record], validation=[record], output=tmp_path / "run")
    assert seen[0].labels.tolist() == [0, 2] and seen[0].boxes[:, 2].tolist() == [5, 2]
    assert seen[0].difficult.tolist() == [False, True] and not seen[0].crowd.any()
    assert seen[1] is record


def test_both_weights_detect(run):
    folder, _, _, records = run
    for weights in ("best", "last"):
        detector = load_detector(folder, weights=weights, overrides=["detect.score_threshold=0"])
        found = detect(detector, records[0].path)
        assert_is_detections(found, CLASS_NAMES, size=records[0].size)
        assert len(found)


# ------------------------------------------------------------------------------------------------ initial weights


def stages(model, choose):
    """{our name: values} of the backbone's and the head's convolutions whose stage number `choose` accepts."""
    layers = [*model.get_layer("backbone").layers, *model.get_layer("roi_head").layers]
    return {
        f"{layer.name}/{weight.name}": array(weight.value)
        for layer in layers
        if isinstance(layer, ConvNorm) and choose(int(layer.name[3]) if layer.name.startswith("res") else 1)
        for weight in layer.weights
    }


def _name_of_2016(name):
    """res2a_branch2a/gamma -> bn2a_branch2a/gamma."""
    if name.endswith(("kernel", "bias")):
        return name
    return f"bn_{name}" if name.startswith("conv1") else name.replace("res", "bn")


@pytest.fixture(scope="module")
def conventional(tmp_path_factory):
    """Two steps that start from a file of weights with conventions of its own: (folder, model, values before)."""
    folder = tmp_path_factory.mktemp("pretrained")
    source = build_model(tiny_config("model.conventions=keras2016"), CLASS_NAMES)
    np.savez(folder / "x.npz", **{_name_of_2016(name): values for name, values in stages(source, bool).items()})
    config = tiny_config(f"model.weights={folder / 'x.npz'}", "model.norm=batch", "train.epochs=1", "train.seed=7")
    model = build_model(config, CLASS_NAMES)
    before = stages(model, bool)
    assert all(np.array_equal(before[name], values) for name, values in stages(source, bool).items())
    train_model(model, write_tiny_pictures(folder / "a"), validation=[], output=folder / "run", verbose=0)
    (folder / "x.npz").unlink()
    return folder / "run", model, before


def test_the_first_stages_of_pretrained_weights_stay_as_they_are(conventional):
    """Three of five train: the stem and stage 2 keep everything, their statistics too; the rest learns."""
    _, model, before = conventional
    after = stages(model, bool)
    still = {name for name, values in after.items() if np.array_equal(values, before[name])}
    assert set(stages(model, lambda stage: stage <= 2)) == still
    assert len(still) == 5 * 6  # convolutions of 6 tensors


@pytest.mark.parametrize(("count", "frozen"), [(5, set()), (4, {1}), (1, {1, 2, 3, 4})])
def test_trainable_stages_are_the_last_ones(conventional, count, frozen):
    folder, *_ = conventional
    changes = [f"model.weights={folder}", "model.norm=frozen", f"model.trainable_stages={count}"]
    model = build_model(tiny_config(*changes), CLASS_NAMES)
    backbone = [layer for layer in model.get_layer("backbone").layers if isinstance(layer, ConvNorm)]
    found = {int(layer.name[3]) if layer.name.startswith("res") else 1 for layer in backbone if not layer.trainable}
    assert found == frozen
    assert all(layer.trainable for layer in model.get_layer("roi_head").layers)


def test_a_run_needs_its_initial_weights_no_more(conventional):
    folder, model, _ = conventional
    config, _ = load_run_config(folder)
    assert (config.model.conventions, config.model.norm) == ("keras2016", "batch")
    detector = load_detector(folder, weights="last")
    assert detector.get_layer("normalize").settings["channel_order"] == "BGR"
    conv1 = detector.get_layer("backbone").get_layer("conv1")
    assert (conv1.epsilon, conv1.use_bias) == (1e-3, True)
    assert np.array_equal(array(conv1.kernel.value), stages(model, bool)["conv1/kernel"])
    card = json.loads((folder / "card.json").read_text())
    assert card["initial_weights"][0].startswith("loaded 120 of 130 tensors from ")


def test_a_folder_that_holds_a_run_is_refused(run):
    folder, _, config, records = run
    before = (folder / "config.yaml").stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds a run already: choose another output folder"):
        train(config, records, class_names=CLASS_NAMES, output=folder)
    assert (folder / "config.yaml").stat().st_mtime_ns == before


def test_steps_that_are_not_finite_one_after_the_other_end_the_run_and_are_named(tmp_path):
    records = write_tiny_pictures(tmp_path)
    config = tiny_config("train.learning_rate=1e30", "train.clip_norm=1e30", "train.epochs=4")
    with pytest.warns(UserWarning, match="not finite") as warned, pytest.raises(FloatingPointError) as caught:
        train(config, records, class_names=CLASS_NAMES, validation=[], output=tmp_path / "run", verbose=0)
    assert "epoch 3, step 2" in str(caught.value) and "the 5th in a row" in str(caught.value)
    assert ", ".join(batch_files(records, config, config.train.seed, 2, 1)) in str(caught.value)
    assert "train.learning_rate" in str(caught.value)
    (first,) = [str(one.message) for one in warned if "not finite" in str(one.message)]
    assert "epoch 1, step 2" in first and ", ".join(batch_files(records, config, config.train.seed, 0, 1)) in first
    assert json.loads((tmp_path / "run" / "card.json").read_text())["state"] == f"stopped: {caught.value}"
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["skipped_steps"] for row in rows] == ["1.0", "2.0", "2.0"] and rows[1]["loss"] == "nan"


def test_a_step_that_is_not_finite_changes_nothing_also_in_a_run_that_is_resumed_behind_it(tmp_path, monkeypatch):
    """NaN in a box of the second of four steps of an epoch."""
    records = write_tiny_pictures(tmp_path / "pictures")
    config = tiny_config("model.norm=batch", "train.epochs=2", "train.batch_size=1", "train.checkpoint_minutes=1e-9")

    def broken(*arguments, **settings):
        batch = make_batch(*arguments, **settings)
        if arguments[3:5] == (0, 1):
            batch["gt_boxes"][0, 0], batch["gt_labels"][0, 0] = np.nan, 0
        return batch

    def fit(folder, **settings):
        model = build_model(config, CLASS_NAMES, resumed="saved" in settings)
        return train_model(model, records, validation=[], output=folder, verbose=0, **settings).history, model

    monkeypatch.setattr("frcnn.training.make_batch", broken)
    monkeypatch.setattr("frcnn.checkpoints.KEPT", 100)
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="epoch 1, step 2, with the pictures .*: the step changed nothing"):
        history, model = fit(folder)
    assert history["skipped_steps"] == [1, 0] and np.isfinite(history["loss"]).all()
    states = [read_checkpoint(path) for path in checkpoint_files(folder)]
    before, after = states[0][0], states[1][0]
    counter = next(i for i, one in enumerate(model.metrics_variables) if one is model.skipped_steps.variables[0])
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["losses", f"metrics/{counter}"]
    assert np.isnan(after["losses"]).tolist() == [False, True]
    text = (folder / "steps.csv").read_text()
    assert text.splitlines()[2] == "0,1,," and ",," not in text.replace("0,1,,", "")
    resumed, _ = fit(folder, saved=states[2])
    for name in ("loss", "skipped_steps"):
        assert resumed[name] == pytest.approx(history[name], rel=1e-3)
    assert (folder / "steps.csv").read_text().splitlines()[2] == "0,1,,"


def test_a_picture_that_has_gone_is_named(tmp_path, gives_back):
    records = write_tiny_pictures(tmp_path)
    config = tiny_config("train.epochs=2")
    gone = batch_files(records, config, config.train.seed, 0, 1)[0]  # not of the first batch, which is read on its own
    Path(gone).unlink()
    with pytest.raises(ValueError, match=r"cannot read the picture") as caught:
        train(config, records, class_names=CLASS_NAMES, validation=[], output=tmp_path / "run", verbose=0)
    assert gone in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_patience_ends_a_run_even_while_pictures_are_slow_to_read(tmp_path, monkeypatch, gives_back):
    """A learning rate that changes nothing: no epoch beats the first. The generator is busy when the run ends."""

    def slowly(path, bit_depth):
        time.sleep(0.2)
        return read_image(path)

    monkeypatch.setattr("frcnn.data.batches.read_image", slowly)
    records = write_tiny_pictures(tmp_path)
    config = tiny_config("train.epochs=9", "train.patience=2", "train.learning_rate=1e-9")
    history = train(
        config, records[:2], class_names=CLASS_NAMES, validation=records[2:], output=tmp_path / "run", verbose=0
    ).history
    assert len(history["loss"]) == 3
    assert all(0 <= share <= 1 for share in history["data_wait"])


def test_batches_can_be_closed_while_another_thread_waits_for_one():
    started = threading.Event()

    def slow():
        started.set()
        time.sleep(0.2)
        yield 1

    batches, got = TimedBatches(slow()), []
    thread = threading.Thread(target=lambda: got.append(next(batches)))
    thread.start()
    started.wait()
    batches.close()
    thread.join()
    assert got == [1] and batches.seconds >= 0.2
    assert list(batches) == []
