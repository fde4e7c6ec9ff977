"""Trainings that are killed, stopped or out of room, and go on."""

import csv
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from benchmarks.kill_resume import compare
from frcnn import build_classifier, checkpoints
from frcnn.checkpoints import checkpoint_files, fingerprint, lock_run, newest_checkpoint, read_checkpoint
from frcnn.classification import train_classifier
from frcnn.cli import main
from frcnn.config import load_run_config
from frcnn.data.batches import batch_files
from frcnn.data.images import write_image
from frcnn.data.readers import read_records
from frcnn.records import LabelledImage
from frcnn.stopping import Interrupted, Stop
from frcnn.training import build_model, train_model
from tests.oracles.shapes import SHAPES, shape_records, shapes_config
from tests.oracles.tiny import CLASS_NAMES, tiny_config, write_tiny_pictures

pytestmark = pytest.mark.tensorflow
ROOT = Path(__file__).parents[1]
STEPS = 4  # in an epoch of the runs below


def train_shapes(output, *changes, saved=None, stop=None, count=16):
    """Two epochs of four steps of the smallest classifier, with a checkpoint after each step."""
    changes = ["train.epochs=2", "train.checkpoint_minutes=1e-9", "data.colour_jitter=0.2", *changes]
    model = build_model(shapes_config(*changes), SHAPES, build_classifier, resumed=bool(saved))
    records = {"records": shape_records(count), "validation": shape_records(5, 100)}
    return train_classifier(model, **records, output=output, verbose=0, saved=saved, stop=stop)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was not disturbed, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "KEPT", 100)
        history = train_shapes(folder)
    return folder, history.history


def copy_until(run, folder, epoch, step):
    """A copy of a run as it was when a checkpoint had just been written."""
    shutil.copytree(run, folder)
    for path in checkpoint_files(folder):
        header = read_checkpoint(path)[1]
        if (header["epoch"], header["step"]) > (epoch, step):
            path.unlink()
    for name in ("history.csv", "steps.csv", "curves.png", "best.weights.h5", "last.weights.h5"):
        (folder / name).unlink()  # all of them come from the checkpoint
    return folder


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------ killed, resumed

KILLED = """
import hashlib, os, pathlib, signal, sys, traceback
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from benchmarks import kill_resume
from frcnn import backend, checkpoints, files, run_folder

folder = pathlib.Path(sys.argv[1])
real_sha256, real_replace, real_end = hashlib.sha256, os.replace, run_folder.RunFolder.on_train_batch_end

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(calls, real):
    count = iter(range(calls))
    return lambda *arguments, **named: real(*arguments, **named) if next(count, None) is not None else die()

class Digest:  # the first is that of the pictures; the third checkpoint's dies before the tenth part of it is written
    written = 0

    def __init__(self):
        Digest.written += 1
        self.real = real_sha256()
        self.update = after(9, self.real.update) if Digest.written == 4 else self.real.update
        self.digest, self.hexdigest = self.real.digest, self.real.hexdigest

kills = {
    "between two steps": lambda: setattr(run_folder.RunFolder, "on_train_batch_end", after(5, real_end)),
    "in a half written checkpoint": lambda: setattr(
        hashlib, "sha256", lambda *data: real_sha256(*data) if data else Digest()
    ),
    "before a checkpoint gets its name": lambda: setattr(os, "replace", after(6, real_replace)),
    "in validation": lambda: setattr(run_folder.RunFolder, "on_test_begin", die),
    "not at all": lambda: None,
}

def attempt(name, run):
    child = os.fork()
    if not child:
        try:
            saved = checkpoints.newest_checkpoint(run)[:2] if checkpoints.checkpoint_files(run) else None
            kills[name]()
            backend.make_deterministic(0)
            kill_resume.train_classifier(run, saved)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    print(name, status, *(path.stem for path in checkpoints.checkpoint_files(run)), flush=True)
    assert os.WTERMSIG(status) == (0 if name == "not at all" else signal.SIGKILL), name

attempt("not at all", folder / "undisturbed")
for name in kills:
    attempt(name, folder / "killed")
drafts = [path.name for path in folder.glob("killed/**/.*.tmp*")]
assert not drafts, drafts  # what was half written is cleared away
print(kill_resume.compare(folder / "undisturbed", folder / "killed") or "equal")
"""


def test_a_run_killed_four_times_is_the_undisturbed_one_bit_for_bit(tmp_path):
    """With the trace of the losses, all measures of the epochs and the weights, best and last."""
    arguments = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "equal", result.stdout


@pytest.mark.parametrize(("epoch", "step"), [(0, STEPS - 1), (1, 0), (1, 2), (2, 0)])
def test_a_run_goes_on_from_any_checkpoint(run, tmp_path, epoch, step):
    """From the last step before validation, the start of an epoch, its middle, the end of the run."""
    folder, history = run
    again = copy_until(folder, tmp_path / "again", epoch, step)
    *saved, _ = newest_checkpoint(again)
    assert (saved[1]["epoch"], saved[1]["step"]) == (epoch, step)
    found = train_shapes(again, saved=saved)
    assert found.epoch == [0, 1] and set(found.history) == set(history)
    # TensorFlow adds in any order unless told otherwise: not to the last bit here.
    for name in ("loss", "accuracy", "val_loss"):
        assert found.history[name] == pytest.approx(history[name], rel=1e-3), name
    steps, expected = read_csv(again / "steps.csv"), read_csv(folder / "steps.csv")
    assert [(row["epoch"], row["step"]) for row in steps] == [(str(e), str(s)) for e in (0, 1) for s in range(STEPS)]
    for row, other in zip(steps, expected, strict=True):
        assert float(row["mean_loss"]) == pytest.approx(float(other["mean_loss"]), rel=1e-3)
    assert (again / "curves.png").exists() and len(read_csv(again / "history.csv")) == 2
    assert len(checkpoint_files(again)) == (2 if epoch < 2 else len(checkpoint_files(folder)))


def test_the_trace_gives_each_steps_own_loss(run):
    rows = read_csv(run[0] / "steps.csv")
    assert list(rows[0]) == ["epoch", "step", "loss", "mean_loss"]
    for epoch in "01":
        part = [row for row in rows if row["epoch"] == epoch]
        means = np.cumsum([float(row["loss"]) for row in part]) / np.arange(1, STEPS + 1)
        np.testing.assert_allclose([float(row["mean_loss"]) for row in part], means, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_holds_what_changes_in_training(run):
    arrays, header = read_checkpoint(checkpoint_files(run[0])[-1])
    assert int(arrays["optimizer/0"]) == 2 * STEPS  # iterations
    assert len(arrays["losses"]) == 2 * STEPS and len(header["rows"]) == 2
    assert header["versions"]["keras"] == keras.__version__ and header["class_names"] == list(SHAPES)
    groups = {name.partition("/")[0] for name in arrays}
    assert groups == {"losses", "weights", "optimizer", "metrics"}


def test_a_checkpoint_of_an_older_version_goes_on(run, tmp_path):
    """Its fingerprint knows the folders of the pictures, and it does not count steps that were skipped."""
    again = copy_until(run[0], tmp_path / "again", 1, 2)
    arrays, header, _ = newest_checkpoint(again)
    names = sorted(name for name in arrays if name.startswith("metrics/"))
    arrays = {name: array for name, array in arrays.items() if name != names[-1]}
    header["data"] = fingerprint([*shape_records(16), *shape_records(5, 100)], with_folders=True)
    found = train_shapes(again, saved=(arrays, header))
    assert found.history["loss"][0] == run[1]["loss"][0] and np.isfinite(found.history["loss"]).all()


def test_other_pictures_are_refused(run, tmp_path):
    again = copy_until(run[0], tmp_path / "again", 0, 2)
    with pytest.raises(ValueError, match="was trained on other pictures, sizes or boxes"):
        train_shapes(again, saved=newest_checkpoint(again)[:2], count=15)


def test_patience_counts_across_an_interruption(run, tmp_path):
    """A learning rate that changes nothing: no epoch is better than the first."""
    changes = ["train.epochs=9", "train.patience=3", "train.learning_rate=1e-12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "KEPT", 100)
        assert len(train_shapes(tmp_path / "run", *changes).epoch) == 4
    again = copy_until(tmp_path / "run", tmp_path / "again", 2, 1)
    assert len(train_shapes(again, *changes, saved=newest_checkpoint(again)[:2]).epoch) == 4
    # And then it is finished: nothing is trained any more.
    before = (again / "steps.csv").read_bytes()
    assert len(train_shapes(again, *changes, saved=newest_checkpoint(again)[:2]).epoch) == 4
    assert (again / "steps.csv").read_bytes() == before


# ----------------------------------------------------------------------------------------------------- faults


def failing(monkeypatch, error, calls):
    """Let the writes of these numbers, counted from 0, fail; returns the list of all that were tried."""
    tried, real = [], os.replace

    def replace(source, target):
        tried.append(Path(target).name)
        if len(tried) - 1 in calls:
            raise error
        real(source, target)

    monkeypatch.setattr("frcnn.files.os.replace", replace)
    return tried


@pytest.mark.filterwarnings("ignore:.*run card is not written")
def test_training_goes_on_when_nothing_can_be_written_and_tries_again(tmp_path, monkeypatch):
    """The config is written; then all fails from the second checkpoint on, up to the middle of the second epoch."""
    tried = failing(monkeypatch, OSError(errno.EROFS, os.strerror(errno.EROFS)), range(6, 16))
    with pytest.warns(UserWarning, match=r"Read-only file system.*training goes on") as warned:
        train_shapes(tmp_path / "run")
    assert len([warning for warning in warned if "training goes on" in str(warning.message)]) == 1
    assert len(tried) > 16
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"best.weights.h5", "last.weights.h5", "curves.png"}
    assert [path.stem[-7:] for path in checkpoint_files(tmp_path / "run")] == ["0000003", "0000000"]
    assert len(read_csv(tmp_path / "run" / "history.csv")) == 2
    assert not list((tmp_path / "run").glob("**/.*.tmp*"))


@pytest.mark.filterwarnings("ignore:.*run card is not written")
def test_the_last_good_checkpoint_survives_a_full_disk(tmp_path, monkeypatch):
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), range(6, 1000))
    with (
        pytest.warns(UserWarning, match="training goes on"),
        pytest.raises(ValueError, match=r"the results could not be written .*No space left.*: make room, then resume"),
    ):
        train_shapes(tmp_path / "run")
    monkeypatch.undo()
    *saved, damaged = newest_checkpoint(tmp_path / "run")
    assert (saved[1]["step"], damaged) == (2, [])
    assert len(train_shapes(tmp_path / "run", saved=saved).epoch) == 2
    assert (tmp_path / "run" / "best.weights.h5").exists()


def test_the_best_weights_that_found_no_room_are_written_later(tmp_path, monkeypatch):
    """The first of two epochs is the best, says a rule of the test; nothing of it can be written when it ends."""
    written, refused = {}, []

    def save(model, path):
        weights = [np.array(values) for values in model.get_weights()]
        if len(refused) < 2:
            refused.append(weights)
            raise OSError(errno.ENOSPC, "No space left on device")
        written[path.name] = weights

    monkeypatch.setattr("frcnn.run_folder.save_weights", save)
    monkeypatch.setattr("frcnn.run_folder.best_epoch", lambda rows, monitor: 0)
    with pytest.warns(UserWarning, match="No space left on device"):
        train_shapes(tmp_path / "run")
    for one, other in zip(written["best.weights.h5"], refused[0], strict=True):
        assert np.array_equal(one, other)
    assert not all(map(np.array_equal, written["last.weights.h5"], refused[0]))


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    class Vanish(Stop):
        calls = 0

        def check(self):
            self.calls += 1
            if self.calls == 3:
                shutil.rmtree(tmp_path / "run")

    train_shapes(tmp_path / "run", stop=Vanish())
    assert load_run_config(tmp_path / "run", "classifier")[1] == SHAPES
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "best.weights.h5", "last.weights.h5", "history.csv", "steps.csv", "card.json", "checkpoints"
    }  # fmt: skip
    assert newest_checkpoint(tmp_path / "run")[1]["epoch"] == 2


@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_a_picture_that_is_lost_during_a_run_costs_no_more_than_the_step(tmp_path, damage):
    records = []
    for index, record in enumerate(shape_records(16)):
        write_image(tmp_path / f"{index}.png", record.pixels)
        records.append(LabelledImage(str(tmp_path / f"{index}.png"), record.label))
    config = shapes_config("train.epochs=2", "train.checkpoint_minutes=1e-9")
    victim = Path(batch_files(records, config, 0, 1, 3)[0])  # of the last step
    whole = victim.read_bytes()

    def spoil():
        victim.unlink()
        if damage == "cut off":
            victim.write_bytes(whole[:-300])

    def go_on(saved=None, stop=None):
        model = build_model(config, SHAPES, build_classifier, resumed=bool(saved))
        run = {"output": tmp_path / "run", "verbose": 0, "saved": saved, "stop": stop}
        return train_classifier(model, records, validation=[], **run)

    class Spoil(Stop):
        def check(self):
            if checkpoint_files(tmp_path / "run")[-1].stem == "epoch-00000-step-0000001":
                spoil()

    with pytest.raises(ValueError, match=re.escape(str(victim))):
        go_on(stop=Spoil())
    *saved, _ = newest_checkpoint(tmp_path / "run")
    assert saved[1]["epoch"] == 1 and saved[1]["step"] > 0
    victim.write_bytes(whole)
    assert len(go_on(saved=saved).epoch) == 2


def test_a_second_training_in_the_folder_is_refused(run, tmp_path):
    again = copy_until(run[0], tmp_path / "again", 0, 2)
    before = [path.name for path in checkpoint_files(again)]
    with lock_run(again), pytest.raises(ValueError, match=f"trained in by process {os.getpid()} on"):
        train_shapes(again, saved=newest_checkpoint(again)[:2])
    assert [path.name for path in checkpoint_files(again)] == before


# ---------------------------------------------------------------------------------------------------- signals


def test_a_signal_in_a_step_saves_that_step(tmp_path):
    class Signal(Stop):
        def check(self):
            self.signal = signal.SIGTERM if checkpoint_files(tmp_path / "run") else None
            super().check()

    with pytest.raises(Interrupted, match="terminated") as caught:
        train_shapes(tmp_path / "run", stop=Signal())
    assert caught.value.status == 143
    header = newest_checkpoint(tmp_path / "run")[1]
    assert (header["epoch"], header["step"]) == (0, 1)
    assert len(train_shapes(tmp_path / "run", saved=newest_checkpoint(tmp_path / "run")[:2]).epoch) == 2


def test_a_signal_asks_for_a_checkpoint_that_would_not_be_due(tmp_path):
    stop = Stop()
    stop.signal = signal.SIGINT
    with pytest.raises(Interrupted, match="interrupted"):
        train_shapes(tmp_path / "run", "train.checkpoint_minutes=100", stop=stop)
    assert newest_checkpoint(tmp_path / "run")[1]["step"] == 1


def test_a_signal_in_validation_ends_it_at_once_and_the_epoch_is_not_lost(tmp_path, monkeypatch):
    stop, awaited = Stop(), []

    def interrupt(*_, **__):
        awaited.append(stop.awaited)
        stop.handle(signal.SIGTERM)

    monkeypatch.setattr("frcnn.run_folder.RunFolder.on_test_batch_end", interrupt, raising=False)
    with pytest.raises(Interrupted):
        train_shapes(tmp_path / "run", "train.checkpoint_minutes=100", stop=stop)
    header = newest_checkpoint(tmp_path / "run")[1]
    assert awaited == [False] and (header["epoch"], header["step"]) == (0, STEPS - 1)


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Two epochs of two steps of the tiny detector, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("detector")
    records = write_tiny_pictures(folder / "pictures")
    hard = type(records[0])(records[0].path, records[0].size, records[0].boxes, records[0].labels, [1, 0], [0, 1])
    model = build_model(tiny_config("train.epochs=2", "train.checkpoint_minutes=1e-9"), CLASS_NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "KEPT", 100)
        history = train_model(model, records, validation=[hard], output=folder / "run", verbose=0)
    return folder / "run", history.history


def weights_in(path):
    with h5py.File(path) as file:
        found = []
        file.visititems(lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


def test_the_command_goes_on_with_a_detector(detector, tmp_path, capsys, monkeypatch):
    folder, history = detector
    again = copy_until(folder, tmp_path / "again", 1, 1)
    newest = checkpoint_files(again)[-1]
    later = newest.with_name("epoch-00009-step-0000000.ckpt")
    later.write_bytes(newest.read_bytes()[:-100])
    seen = {}

    def train(model, records, *, validation, **settings):
        seen.update(records=records, validation=validation)
        return train_model(model, records, validation=validation, **settings)

    monkeypatch.setattr("frcnn.training.train_model", train)
    monkeypatch.setattr("frcnn.checkpoints.KEPT", 1)
    for part in ("train.txt", "validation.txt"):  # the pictures have moved since
        (again / part).write_text(
            (again / part).read_text().replace(f"{os.sep}pictures{os.sep}", f"{os.sep}gone{os.sep}")
        )
    images = ["--images", shutil.copytree(folder.parent / "pictures", tmp_path / "moved")]
    assert (
        main(["train", "--resume", str(again), *map(str, images), "data.workers=2", "train.checkpoint_minutes=5"]) == 0
    )
    out = capsys.readouterr().out
    assert f"note: {later} is damaged or only half written: its checksum is wrong; the one before is taken" in out
    assert "resumed at epoch 2, step 2" in out and "2 epochs in " in out
    # All boxes to validate on are difficult or a crowd: no score, and so no best epoch.
    assert "no epoch has a validation score" in out and "no epoch has" in (again / "card.html").read_text()
    best, last = ([*weights_in(again / f"{name}.weights.h5")] for name in ("best", "last"))
    assert len(best) == len(last) > 10 and all(map(np.array_equal, best, last))
    assert (seen["validation"][0].difficult.tolist(), seen["validation"][0].crowd.tolist()) == (
        [True, False],
        [False, True],
    )
    for row, expected in zip(read_csv(again / "history.csv"), zip(*history.values()), strict=True):
        for name, value in zip(history, expected):
            if name not in ("pictures_per_second", "data_wait", "val_map"):
                assert float(row[name]) == pytest.approx(value, rel=1e-2, nan_ok=True), name
    records, _ = read_records(again / "train.txt", class_names=CLASS_NAMES, images=folder.parent)
    assert len(records) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "x.txt", "--num_epochs", "3"], ["leave out path, num_epochs"]),
        (["train.epochs=7"], ["train.epochs 2 (now 7)", "only data.workers"]),
    ],
    ids=str,
)
def test_what_a_resumed_run_cannot_take(detector, capsys, arguments, words):
    assert main(["train", "--resume", str(detector[0]), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)


def test_changed_files_of_a_run_are_sentences(detector, tmp_path, capsys):
    folder = tmp_path / "run"

    def sentence():
        assert main(["train", "--resume", str(folder)]) == 2
        error, _, hint = capsys.readouterr().err.partition("\n")
        assert not hint or "--images" in hint
        return error

    assert "is no run folder that could be resumed" in sentence()
    shutil.copytree(detector[0], folder)
    text = (folder / "train.txt").read_text()
    (folder / "train.txt").write_text("\n".join(text.splitlines()[1:]))
    assert "was trained on other pictures, sizes or boxes than its train.txt" in sentence()
    (folder / "train.txt").write_text(text.replace("/0.png", "/gone.png"))
    assert "gone.png" in sentence()
    (folder / "train.txt").write_text(text)
    shutil.rmtree(folder / "checkpoints")
    assert "holds no checkpoint: nothing can be resumed" in sentence()
    assert compare(detector[0], folder) == ""  # and nothing was touched
