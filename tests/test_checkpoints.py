import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from frcnn import checkpoints
from frcnn.checkpoints import (
    DamagedCheckpoint,
    best_epoch,
    checkpoint_files,
    fingerprint,
    flags_of,
    is_finished,
    lock_run,
    newest_checkpoint,
    read_checkpoint,
    require_same_run,
    with_flags,
    write_checkpoint,
)
from frcnn.config import load_config, with_overrides
from frcnn.records import ImageRecord, LabelledImage

ARRAYS = {
    "weights/0": np.arange(6, dtype=np.float32).reshape(2, 3),
    "iterations": np.array(7, np.int64),
    "crowd": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
}


def write(run, epoch=0, step=0, **header):
    return write_checkpoint(run, ARRAYS, {"epoch": epoch, "step": step, **header})


# ---------------------------------------------------------------------------------------------------- the files


def test_what_is_written_comes_back(tmp_path):
    path = write(tmp_path, 3, 42, rows=[{"loss": 0.1, "val_map": float("nan")}], classes=["ä\udcff"])
    assert path.relative_to(tmp_path).as_posix() == "checkpoints/epoch-00003-step-0000042.ckpt"
    arrays, header = read_checkpoint(path)
    assert {name: (array.dtype, array.shape, array.tolist()) for name, array in arrays.items()} == {
        name: (array.dtype, array.shape, array.tolist()) for name, array in ARRAYS.items()
    }
    assert (header["epoch"], header["step"], header["classes"]) == (3, 42, ["ä\udcff"])
    assert header["rows"][0]["loss"] == 0.1 and np.isnan(header["rows"][0]["val_map"])


def test_arrays_that_are_not_contiguous_come_back(tmp_path):
    transposed = ARRAYS["weights/0"].T
    path = write_checkpoint(tmp_path, {"a": transposed}, {"epoch": 0, "step": 0})
    assert np.array_equal(read_checkpoint(path)[0]["a"], transposed)


def test_the_last_two_are_kept_in_the_order_of_their_names(tmp_path):
    for step in (9, 10):
        write(tmp_path, 0, step)
    write(tmp_path, 99_999, 1)
    path = write(tmp_path, 100_000, 0)  # more digits than there is room for
    os.utime(path, (0, 0))  # and a clock that was set back
    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "epoch-99999-step-0000001.ckpt",
        "epoch-100000-step-0000000.ckpt",
    ]
    assert newest_checkpoint(tmp_path)[1] == {"epoch": 100_000, "step": 0}


def test_every_byte_counts(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(DamagedCheckpoint, match="is damaged or only half written"):
            read_checkpoint(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint):
            read_checkpoint(path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", ["cut off", "unreadable"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path, damage):
    write(tmp_path, 0, 5)
    path = write(tmp_path, 1, 0)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
        path.mkdir()
    arrays, header, sentences = newest_checkpoint(tmp_path)
    assert header == {"epoch": 0, "step": 5} and np.array_equal(arrays["weights/0"], ARRAYS["weights/0"])
    assert len(sentences) == 1 and str(path) in sentences[0] and sentences[0].endswith("the one before is taken")


def test_a_run_without_a_whole_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint: nothing can be resumed"):
        newest_checkpoint(tmp_path)
    path = write(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no checkpoint that can be read \(.*is damaged.*\): nothing"):
        newest_checkpoint(tmp_path)


def test_another_format_is_named_and_nothing_older_is_taken(tmp_path, monkeypatch):
    write(tmp_path, 0, 0)
    monkeypatch.setattr(checkpoints, "FORMAT", 12)
    write(tmp_path, 0, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"step-0000001.ckpt is of format 12, this frcnn reads format 1: resume with"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, call):
    for step in (1, 2):
        write(tmp_path, 0, step)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"frcnn.files.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 0, 3)
    monkeypatch.undo()
    assert [path.name[-6] for path in checkpoint_files(tmp_path)] == ["1", "2"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert newest_checkpoint(tmp_path)[1]["step"] == 2


# --------------------------------------------------------------------------------------------------- may it go on?


def header_of(config, class_names=("car", "dog")):
    return json.loads(json.dumps({"config": config.model_dump(mode="json"), "class_names": list(class_names)}))


def test_a_run_goes_on_with_its_own_config_and_with_safe_changes():
    config = load_config(None, ["model.anchor_sizes=[20, 36]"])
    require_same_run("run", header_of(config), config, ("car", "dog"))
    for change in ("data.workers=7", "detect.batch_size=9", "train.checkpoint_minutes=3", "train.patience=4"):
        require_same_run("run", header_of(config), with_overrides(config, [change]), ("car", "dog"))


def test_what_differs_is_named_with_both_values_and_with_what_may_change():
    config = load_config()
    changed = with_overrides(config, ["train.learning_rate=0.5", "model.anchor_sizes=[9]", "data.workers=7"])
    with pytest.raises(ValueError, match=r"only data.workers, .*train.patience may change") as caught:
        require_same_run("run", header_of(config), changed, ("car", "dog"))
    text = str(caught.value)
    assert "train.learning_rate 0.005 (now 0.5)" in text and "model.anchor_sizes [128.0, 256.0, 512.0] (now [9" in text
    assert "data.workers 2" not in text and "model.weights=run" in text and "\n" not in text


def test_another_list_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"the classes car, dog, but its config.pickle names dog, car: put"):
        require_same_run("run", header_of(load_config()), load_config(), ("dog", "car"))


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.5], 0), ([0.1, 0.3, 0.2], 1), ([0.3, 0.3], 0), ([np.nan, 0.0], 1), ([np.nan, np.nan], 1)],
)
def test_the_best_epoch(scores, best):
    assert best_epoch([{"val_map": score} for score in scores], "val_map") == best
    assert best_epoch([{"loss": -score} for score in scores], "loss") == best


@pytest.mark.parametrize(
    ("scores", "patience", "finished"),
    [
        ([], 1, False),
        ([0.1, 0.2, 0.3], 0, False),
        ([0.1, 0.2, 0.3, 0.4], 0, True),  # four epochs are asked for
        ([0.3, 0.2], 2, False),
        ([0.3, 0.2, 0.3], 2, True),  # the best is two epochs back
        ([0.3, 0.2, 0.4], 2, False),
    ],
)
def test_when_a_run_is_finished(scores, patience, finished):
    settings = load_config(None, ["train.epochs=4", f"train.patience={patience}"]).train
    assert is_finished([{"val_map": score} for score in scores], "val_map", settings) is finished


RECORDS = [
    ImageRecord("a.png", (10, 20), [[0, 0, 5, 5], [1, 1, 9, 9]], [0, 1], [True, False], [False, True]),
    ImageRecord("b.png", (10, 20), np.zeros((0, 4)), []),
    ImageRecord("c.png", (10, 20), [[2, 2, 3, 3]], [0], [False], [True]),
]


def test_the_fingerprint_sees_what_is_trained_on():
    image = LabelledImage("x[0]", 1, np.zeros((2, 2), np.uint8))
    others = [
        RECORDS[::-1],
        RECORDS[:2],
        [ImageRecord("a.png", (11, 20), RECORDS[0].boxes, [0, 1]), *RECORDS[1:]],
        [ImageRecord("a.png", (10, 20), RECORDS[0].boxes, [1, 1]), *RECORDS[1:]],
        [ImageRecord("a.png", (10, 20), RECORDS[0].boxes + 0.5, [0, 1]), *RECORDS[1:]],
        [ImageRecord("d.png", (10, 20), RECORDS[0].boxes, [0, 1]), *RECORDS[1:]],
        [image],
        [LabelledImage("x[0]", 1, np.ones((2, 2), np.uint8))],
        [LabelledImage("x[0]", 0, np.zeros((2, 2), np.uint8))],
    ]
    found = [fingerprint(records) for records in (RECORDS, *others)]
    assert len(set(found)) == len(found) and all(len(digits) == 64 for digits in found)
    # Flags and lines are not trained on, and the text format does not hold them; pictures may move.
    plain = [ImageRecord(os.path.abspath(f"new/{r.path}"), r.size, r.boxes, r.labels, source="f.txt") for r in RECORDS]
    assert fingerprint(plain) == found[0]


def test_flags_leave_the_records_and_come_back():
    flags = flags_of(RECORDS)
    assert flags["difficult"].tolist() == [True, False, False] and flags["crowd"].tolist() == [False, True, True]
    plain = [ImageRecord(record.path, record.size, record.boxes, record.labels) for record in RECORDS]
    for record, expected in zip(with_flags(plain, flags), RECORDS, strict=True):
        assert record.difficult.tolist() == expected.difficult.tolist()
        assert record.crowd.tolist() == expected.crowd.tolist()
    assert with_flags([], flags_of([])) == []
    with pytest.raises(ValueError, match=r"validation.txt has 2 boxes, the checkpoint 3"):
        with_flags(plain[:2], flags)


# ----------------------------------------------------------------------------------------------------- the lock


def test_a_second_training_in_a_folder_is_refused_and_told_of_the_first(tmp_path):
    with lock_run(tmp_path / "run"):
        program = f"from frcnn.checkpoints import lock_run\nwith lock_run({str(tmp_path / 'run')!r}): print('in')"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == ""
    assert f"run is being trained in by process {os.getpid()} on " in result.stderr and ", since 20" in result.stderr
    with lock_run(tmp_path / "run"):
        text = (tmp_path / "run" / "checkpoints" / "lock").read_text()
        assert text.startswith(f"process {os.getpid()} on ") and text.count("process") == 1


def test_what_a_killed_training_left_is_no_obstacle_and_is_cleared_away(tmp_path):
    path = write(tmp_path)
    drafts = [folder / ".frcnn-7-0123abcd.tmp" for folder in (path.parent, tmp_path)]
    for file in (*drafts, path.with_name("lock")):
        file.write_text("process 7 on a machine that was switched off, since 2020-01-01 00:00:00")
    with lock_run(tmp_path):
        assert not any(file.exists() for file in drafts)
        assert path.exists()


def test_a_file_system_without_locks_is_said_and_trained_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked here .*take care that nothing else"), lock_run(tmp_path):
        pass
