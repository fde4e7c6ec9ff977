from types import SimpleNamespace

import numpy as np
import pytest

from frcnn import check
from frcnn.check import Progress, choose_pictures, diagnose, learn_by_heart, uncovered
from frcnn.cli import main
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.records import ImageRecord
from frcnn.training import build_model
from tests.oracles.tiny import CLASS_NAMES, OVERRIDES, tiny_config, write_tiny_pictures


def records_with(*labels):
    """A record for each tuple of labels."""
    return [
        ImageRecord(f"{index}.png", (64, 64), [[0, 0, 9, 9]] * len(of_one), of_one)
        for index, of_one in enumerate(labels)
    ]


# ------------------------------------------------------------------------------------------------------- pictures


def test_four_pictures_show_as_many_classes_as_four_can():
    records = records_with([0], [0], [], [0, 1, 2], [0], [3], [0, 1], [4], [0], [5])
    for seed in range(10):
        chosen = choose_pictures(records, seed)
        assert len(chosen) == 4 and len({record.path for record in chosen}) == 4
        # The one of three classes comes first, and then one new class at a time: of 3, 4, 5 and no other.
        assert {label for record in chosen for label in record.labels.tolist()} == {0, 1, 2, 3, 4, 5}
    assert [record.path for record in choose_pictures(records, 3)] == [
        record.path for record in choose_pictures(records, 3)
    ]


def test_the_draw_depends_on_the_seed_where_classes_do_not_decide():
    records = records_with(*[[0]] * 20)
    assert len({tuple(record.path for record in choose_pictures(records, seed)) for seed in range(5)}) > 1


def test_fewer_than_four_pictures_are_enough_and_background_is_not():
    assert [record.path for record in choose_pictures(records_with([], [1]), 0)] == ["1.png"]
    with pytest.raises(ValueError, match="none of the 2 pictures shows an object"):
        choose_pictures(records_with([], []), 0)


def test_crowds_are_no_objects():
    crowd = ImageRecord("a.png", (9, 9), [[0, 0, 5, 5]], [0], crowd=[True])
    with pytest.raises(ValueError, match="shows an object"):
        choose_pictures([crowd], 0)


# -------------------------------------------------------------------------------------------------------- anchors


def test_anchors_that_miss_half_of_a_class():
    """Squares of 16 px on the grid points: IoU 1 with their own anchor, 256 / 1024 = 0.25 with one of 32 px."""
    on_grid = [[8, 8, 24, 24], [24, 24, 40, 40]]
    records = [ImageRecord("a.png", (64, 64), [*on_grid, [16, 16, 48, 48]], [0, 0, 1])]
    config = tiny_config("model.anchor_sizes=[32,64]", "model.anchor_ratios=[1.0]")
    text = uncovered(records, config, CLASS_NAMES)
    assert "'tall' 0.25, below rpn.negative_iou 0.3" in text and "'wide'" not in text
    assert "Try model.anchor_sizes=[" in text
    config = tiny_config("model.anchor_sizes=[32]", "model.anchor_ratios=[1.0]")  # one size for both meets none better
    assert "Try more anchors" in uncovered(records, config, CLASS_NAMES)
    assert uncovered(records, tiny_config("model.anchor_sizes=[16,32]", "model.anchor_ratios=[1.0]"), CLASS_NAMES) == ""


# ------------------------------------------------------------------------------------------------------ diagnosis


def progress(steps, loss, mean_ap, any_class_ap, recall):
    return Progress(steps, 60.0, loss, mean_ap, any_class_ap, recall)


@pytest.mark.parametrize(
    ("last", "stage"),
    [
        ((0.1, 0.1, 0.89), "RPN: its best 300 proposals (or rpn.test_post_nms) cover 89% of the boxes"),
        ((0.5, 0.95, 0.85), "RPN"),  # boxes found by chance are no excuse
        ((0.5, 0.9, 0.9), "head: the boxes are found (AP50 0.90 if all classes were one), their classes are not"),
        ((0.5, 0.89, 1.0), "head: the proposals cover 100% of the boxes"),
    ],
)
def test_the_first_stage_that_fails_is_named(last, stage):
    history = [progress(step, 1.0, *last) for step in range(4)]
    text = diagnose(history, 60.0)
    assert f"AP50 {last[0]:.2f} after 60 s and 3 steps. What fails is the {stage}" in text


def test_a_loss_that_falls_asks_for_more_time():
    # Means of two: (2 + 1.8) / 2 = 1.9, (1.7 + 1.6) / 2 = 1.65, below 0.9 * 1.9 = 1.71.
    falling = [progress(step, loss, 0.1, 0.1, 0.5) for step, loss in enumerate((2.0, 1.8, 1.7, 1.6))]
    text = "3 steps, and the loss still falls (2 to 1.6): try --check 240. What is behind is the RPN"
    assert text in diagnose(falling, 60.0)
    assert "still falls" in diagnose(falling[:1], 60.0)  # one look says nothing
    flat = [progress(step, loss, 0.1, 0.1, 0.5) for step, loss in enumerate((2.0, 1.8, 1.75, 1.7))]
    assert "still falls" not in diagnose(flat, 60.0)  # 1.725


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.tensorflow
def test_pictures_are_learned_by_heart(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_EVERY", 0.5)
    records = choose_pictures(write_tiny_pictures(tmp_path), 0)
    history = list(learn_by_heart(build_model(tiny_config(), CLASS_NAMES), records, 300.0))
    assert history[-1].mean_ap >= 0.9 and all(item.mean_ap < 0.9 for item in history[:-1])
    assert history[-1].recall >= 0.5 and history[-1].any_class_ap >= 0.5
    assert history[-1].loss < history[0].loss and history[-1].seconds < 300


class FakeModel:
    """Learns nothing; a step takes a second, and so does a look at it."""

    def __init__(self, monkeypatch):
        self.config, self.layers, self.now, self.rates = tiny_config("model.norm=batch"), [], 0.0, []
        monkeypatch.setattr(check, "open_twin", lambda model: None)
        monkeypatch.setattr(check, "look", lambda twin, records: None)
        monkeypatch.setattr(check, "_scores", self.scores)
        monkeypatch.setattr(check.time, "perf_counter", lambda: self.now)

    def compile(self, optimizer):
        self.optimizer = optimizer

    def scores(self, twin, records):
        self.now += 1.0
        return 0.1, 0.2, 0.3

    def train_on_batch(self, batch, return_dict):
        assert batch["images"].shape[0] == 3 and len(set(batch["sampling_seeds"].tolist())) == 3
        self.rates.append(float(self.optimizer.learning_rate))
        self.now += 1.0
        return {"loss": float(len(self.rates))}


@pytest.mark.tensorflow
def test_the_time_ends_it_by_hand(tmp_path, monkeypatch):
    """Three pictures, one batch: the clock starts behind the first step."""
    records, model = choose_pictures(write_tiny_pictures(tmp_path), 0), FakeModel(monkeypatch)
    history = list(learn_by_heart(model, records, 25.0))
    # Looks behind steps 11 (10 s, then 11 with the look) and 21 (21 s), and at the end: step 24 is over at 25 s.
    assert [(item.steps, item.seconds) for item in history] == [(11, 10.0), (21, 21.0), (24, 25.0)]
    # Means of the losses 1 to 11, 12 to 21, 22 to 24.
    assert [item.loss for item in history] == [6.0, 16.5, 23.0]
    assert history[0][3:] == (0.1, 0.2, 0.3)
    # Warm-up by tenths, times (1 + cos(pi * s / 25)) / 2, s seconds before the step: 4 at step 6, 9 at step 11.
    assert model.rates[:2] == pytest.approx([1e-4, 2e-4])
    assert model.rates[5] == pytest.approx(6e-4 * 0.5 * (1 + np.cos(np.pi * 4 / 25)), rel=1e-5)
    assert model.rates[10] == pytest.approx(1e-3 * 0.5 * (1 + np.cos(np.pi * 9 / 25)), rel=1e-5)


@pytest.fixture
def trained(monkeypatch, tmp_path, capsys):
    """Run `frcnn train --check` on the tiny pictures with a training that goes as `given.history` says."""
    monkeypatch.chdir(tmp_path)
    write_annotations("all.txt", write_tiny_pictures(tmp_path / "a"), CLASS_NAMES)
    given = SimpleNamespace(history=[], seconds=None)

    def learn(model, records, seconds):
        given.seconds, given.records = seconds, records
        yield from given.history

    monkeypatch.setattr("frcnn.check.learn_by_heart", learn)
    monkeypatch.setattr("frcnn.training.build_model", lambda config, names: SimpleNamespace(config=config))

    def call(*arguments):
        code = main(["train", "-p", "all.txt", "data.val_fraction=0", *map(str, arguments), *OVERRIDES])
        return code, *capsys.readouterr()

    call.given = given
    return call


def test_the_command_says_how_it_goes_and_writes_nothing(trained, tmp_path):
    before = set(tmp_path.rglob("*"))
    trained.given.history = [progress(3, 2.0, 0.2, 0.3, 0.5), progress(9, 1.0, 0.95, 0.95, 1.0)]
    code, out, error = trained("--check")
    assert (code, error) == (0, "") and trained.given.seconds == 60
    assert "step    3  loss 2.000  proposals cover 50%  AP50 0.20" in out and "check passed" in out
    assert "3 pictures, 4 boxes of tall, wide" in out and len(trained.given.records) == 3
    assert set(tmp_path.rglob("*")) == before


def test_the_command_names_what_fails(trained, tmp_path):
    trained.given.history = [progress(3, 2.0, 0.2, 0.3, 0.5)]
    code, out, error = trained("--check", 5)
    assert (code, error) == (1, "") and trained.given.seconds == 5
    assert "check failed: AP50 0.20 after 60 s and 3 steps, and" in out and "What is behind is the RPN" in out
    assert not (tmp_path / "runs").exists()


def test_anchors_fail_before_anything_is_trained(trained):
    code = main(["train", "-p", "all.txt", "--check", *OVERRIDES, "data.val_fraction=0", "model.anchor_sizes=[500]"])
    assert code == 1 and trained.given.seconds is None


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(trained, seconds):
    code, _, error = trained(f"--check={seconds}")
    assert code == 2 and "give a number of seconds above 0" in error and len(error.splitlines()) == 1


def test_the_same_seed_chooses_the_same():
    records = records_with(*np.arange(30).reshape(-1, 1) % 7)
    assert choose_pictures(records, 5) == choose_pictures(records, 5)
