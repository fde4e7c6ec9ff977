import base64
import errno
import json
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from frcnn import run_card
from frcnn.records import Detections, ImageRecord, LabelledImage
from frcnn.run_card import RunCard, describe_progress, describe_run, read_history, record_digest
from tests.oracles.tiny import CLASS_NAMES, SIZE, tiny_config, write_tiny_pictures
from tests.test_doctor_report import Page

NAMES = CLASS_NAMES
ROWS = [  # as Keras's CSVLogger writes them
    "epoch,loss,pictures_per_second,val_loss,val_map",
    "0,2.0,3.0,2.5,0.25",
    "1,1.0,5.0,inf,0.5",
    "2,1.5,4.0,2.0,0.5",
]


def a_model(*overrides, class_names=NAMES):
    return SimpleNamespace(config=tiny_config(*overrides), class_names=class_names, weights_report=None)


def a_card(output, records=(), validation=(), found=(), monitor="val_map", model=None):
    output.mkdir(exist_ok=True)
    model = model or a_model("train.epochs=3")
    return RunCard(output, model, list(records), list(validation), 7, found, monitor)


def write_history(output, rows):
    (output / "history.csv").write_text("\n".join(ROWS[: rows + 1]) + "\n")


def read(output):
    return json.loads((output / "card.json").read_text()), (output / "card.html").read_text()


# ------------------------------------------------------------------------------------------------- what it holds


BASE = {"path": "a.png", "size": (10, 20), "boxes": [[1, 2, 3, 4]], "labels": [0]}


@pytest.mark.parametrize(
    "change",
    [
        {"path": "b.png"},
        {"size": (10, 21)},
        {"boxes": [[1, 2, 3, 5]]},
        {"labels": [1]},
        {"difficult": [True]},
        {"crowd": [True]},
        {"boxes": [[1, 2, 3, 4]] * 2, "labels": [0, 0]},
    ],
    ids=str,
)
def test_the_digest_sees_every_change_of_a_record(change):
    assert record_digest(ImageRecord(**(BASE | change)), NAMES) != record_digest(ImageRecord(**BASE), NAMES)


def test_the_digest_is_of_names_and_not_of_numbers():
    one, other = ImageRecord(**BASE), ImageRecord(**(BASE | {"labels": [1], "source": "elsewhere", "lines": [3]}))
    assert record_digest(one, NAMES) == record_digest(other, NAMES[::-1])
    assert record_digest(one, NAMES) != record_digest(one, ("other", "wide"))
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert record_digest(LabelledImage("x", 0, pixels), NAMES) != record_digest(
        LabelledImage("x", 0, pixels + 1), NAMES
    )
    assert record_digest(LabelledImage("\udcff", 0), NAMES)  # a file name that is no UTF-8


def test_the_counts_by_hand_and_the_hashes(tmp_path):
    first, second, empty, last = write_tiny_pictures(tmp_path)  # tall + wide, wide, nothing, tall
    (tmp_path / "train.txt").touch()
    data = describe_run(a_model(), [first, second, empty], [last], tmp_path)["data"]
    assert data["classes"] == [
        {"name": "tall", "train": {"boxes": 1, "pictures": 1}, "validation": {"boxes": 1, "pictures": 1}},
        {"name": "wide", "train": {"boxes": 2, "pictures": 2}, "validation": {"boxes": 0, "pictures": 0}},
    ]
    assert (data["train"]["pictures"], data["train"]["boxes"], data["train"]["file"]) == (3, 3, "train.txt")
    assert (data["validation"]["pictures"], data["validation"]["file"]) == (1, None)
    other = describe_run(a_model(), [last, empty, second], [first], tmp_path)["data"]
    assert other["sha256"] == data["sha256"]
    assert other["train"]["sha256"] != data["train"]["sha256"]
    swapped = describe_run(a_model(), [second, first, empty], [last], tmp_path)["data"]
    assert (swapped["sha256"], swapped["validation"]) == (data["sha256"], data["validation"])
    assert swapped["train"]["sha256"] != data["train"]["sha256"]
    assert describe_run(a_model(), [first, second], [last], tmp_path)["data"]["sha256"] != data["sha256"]


def test_what_differs_from_the_defaults(tmp_path):
    changed = describe_run(a_model(), [], [], tmp_path)["changed"]
    assert (changed["data.im_size"], changed["model.anchor_sizes"]) == ("64", "[20.0, 36.0]")
    assert not {"train.momentum", "model.architecture", "train.batch_size"} & set(changed)


def test_progress_by_hand(tmp_path):
    """Speeds 3, 5 and 4 have the mean 4; the best mAP comes first in epoch 2; inf becomes null."""
    write_history(tmp_path, 3)
    rows = read_history(tmp_path / "history.csv")
    progress = describe_progress(rows, "val_map", 7)
    assert (progress["epochs"], progress["steps"], progress["pictures_per_second"]) == (3, 21, 4.0)
    assert (progress["last_epoch"]["epoch"], progress["best_epoch"]["epoch"]) == (3, 2)
    assert progress["best_epoch"]["val_loss"] is None
    assert describe_progress(rows, "loss", 7)["best_epoch"]["loss"] == 1.0
    assert describe_progress(rows, "val_loss", 7)["best_epoch"]["val_loss"] == 2.5
    assert describe_progress([], "val_map", 7) == {
        "epochs": 0,
        "steps": 0,
        "pictures_per_second": None,
        "last_epoch": None,
        "best_epoch": None,
        "no_best_epoch": "",
    }
    assert progress["no_best_epoch"] == ""
    nowhere = describe_progress([row | {"val_map": None} for row in rows], "val_map", 7)
    assert nowhere["no_best_epoch"].endswith("best.weights.h5 holds the last epoch's weights")


def test_a_history_that_is_not_there_yet(tmp_path):
    assert read_history(tmp_path / "absent.csv") == []
    (tmp_path / "history.csv").touch()  # Keras opens it before it knows the columns
    assert read_history(tmp_path / "history.csv") == []


# ------------------------------------------------------------------------------------------------ when it is written


def test_the_life_of_a_run(tmp_path):
    output = tmp_path / "run"
    card = a_card(output)
    with card.written():
        found, page = read(output)
        assert (found["epochs"], found["steps"], len(found["parts"])) == (0, 0, 1)
        assert "running when this was written" in found["state"] and "it was interrupted" in page
        for epoch in range(3):
            write_history(output, epoch + 1)
            card.model.findings = (*getattr(card.model, "findings", ()), f"odd thing {epoch}")
            card.on_epoch_end(epoch)
        found, page = read(output)
        assert "running" in found["state"] and found["epochs"] == 3
        assert found["warnings"] == ["odd thing 0", "odd thing 1", "odd thing 2"] and "odd thing 1" in page
    assert read(output)[0]["state"] == "finished"


def test_a_run_that_stops_early_and_goes_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_card.time, "monotonic", lambda: now[0])
    output = tmp_path / "run"
    for part, rows in enumerate((1, 3)):
        card = a_card(output)
        with card.written():
            card.model.findings = (f"of part {part}",)
            write_history(output, rows)
            now[0] += 10.5
        assert read(output)[0]["state"] == ("stopped after 1 of 3 epochs", "finished")[part]
    found, page = read(output)
    assert [part["seconds"] for part in found["parts"]] == [10.5, 10.5]
    assert found["warnings"] == ["of part 0", "of part 1"]
    assert "0:00:21" in page


def test_an_error_is_on_the_card_and_goes_on(tmp_path):
    for error, state in (
        (FloatingPointError("the loss is not finite"), "stopped: the loss is not finite"),
        (KeyboardInterrupt(), "stopped: KeyboardInterrupt"),
    ):
        with pytest.raises(type(error)), a_card(tmp_path / "run").written():
            raise error
        assert read(tmp_path / "run")[0]["state"] == state


def test_a_full_disk_is_a_warning_and_the_card_before_stays(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    card = a_card(tmp_path / "run")
    with card.written():
        before = read(tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(run_card, "replacing", full)
            with pytest.warns(UserWarning, match=r"run: the run card is not written \(.*No space left on device"):
                card.on_epoch_end(0)
        assert read(tmp_path / "run") == before
    assert read(tmp_path / "run") != before


def test_a_damaged_history_is_a_warning_and_a_damaged_card_is_replaced(tmp_path):
    card = a_card(tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_bytes(b"\x00\xff\x00,\n" * 3)
    with pytest.warns(UserWarning, match="the run card is not written"):
        card.on_epoch_end(0)
    (tmp_path / "run" / "history.csv").unlink()
    (tmp_path / "run" / "card.json").write_text('{"parts": [{"star')
    with warnings.catch_warnings(action="error"):
        a_card(tmp_path / "run").on_epoch_end(0)
    assert len(read(tmp_path / "run")[0]["parts"]) == 1


# ----------------------------------------------------------------------------------------------------- the page


def detections(record, score=0.9):
    return Detections(record.boxes, [score] * len(record.boxes), record.labels, NAMES, record.path, record.size)


def jpegs(page):
    sources = [source for source in Page(page).images if source.startswith("data:image/jpeg;base64,")]
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(source.partition(",")[2], validate=True), np.uint8), 1)
        for source in sources
    ]


def test_sample_pictures_show_what_is_annotated_and_what_is_found(tmp_path):
    records = write_tiny_pictures(tmp_path)
    found = []
    card = a_card(tmp_path / "run", validation=records, found=found)
    card.on_epoch_end(-1)
    assert not jpegs(read(tmp_path / "run")[1])
    found[:] = [detections(record, 0.9 if index else 0.3) for index, record in enumerate(records)]
    write_history(tmp_path / "run", 1)
    (tmp_path / "3.png").unlink()
    card.on_epoch_end(0)
    _, page = read(tmp_path / "run")
    first, second = jpegs(page)  # of four pictures one has no object, and one is gone
    assert first.shape == second.shape == (360, 2 * 360 + 8, 3)
    assert f"{records[0].path}: 2 annotated; 0 found by 0.5 or more, best 0.30" in page
    assert f"{records[1].path}: 1 annotated; 1 found by 0.5 or more, best 0.90" in page
    assert "3.png: cannot read the picture" in page and records[2].path not in page
    left, right = second[:, :360].astype(int), second[:, 368:].astype(int)
    assert np.abs(left - right)[-100:].max() < 40  # the same picture twice
    green = (second[..., 1] > 150) & (second[..., 2] < 120) & (second[..., 0] < 120)
    assert green[:, :360].sum() > 100 and green[:, 368:].sum() > 100
    green = (first[..., 1] > 150) & (first[..., 2] < 120) & (first[..., 0] < 120)
    assert green[:, :360].sum() > 100 and green[:, 368:].sum() < 20  # nothing sure enough


def test_no_more_than_six_pictures_spread_over_all(tmp_path):
    record = write_tiny_pictures(tmp_path, 1)[0]
    paths = [f"p{index:02}.png" for index in range(40)]
    validation = [ImageRecord(path, record.size, record.boxes, record.labels) for path in paths]
    card = a_card(tmp_path / "run", validation=validation, found=list(map(detections, validation)))
    card.on_epoch_end(0)
    _, page = read(tmp_path / "run")
    assert [path for path in paths if f"{path}: cannot read" in page] == paths[:36:6]


def test_nothing_on_the_page_is_markup_or_comes_from_elsewhere(tmp_path):
    evil = "<script>alert(1)</script>"
    names = (evil, "<img src=http://x/y>")
    path = tmp_path / "<img src=x onerror=alert(2)>.png"
    write_tiny_pictures(tmp_path, 1)
    (tmp_path / "0.png").rename(path)
    record = ImageRecord(str(path), (SIZE, SIZE), [[1, 1, 40, 40]], [0])
    found = [Detections(record.boxes, [0.9], [1], names, record.path, record.size)]
    model = a_model(f"model.weights='{evil}'", class_names=names)
    model.weights_report = f"loaded from {evil}\n  {evil}"
    output = tmp_path / "<b>run"
    card = a_card(output, [record], [record], found, model=model)
    model.findings = (f"{evil}\x1b[2J",)
    write_history(output, 2)
    (output / "curves.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    with warnings.catch_warnings(action="error"):
        card.on_epoch_end(1)
    _, text = read(output)
    page = Page(text)
    assert not page.tags & {"script", "b", "link", "iframe", "object"}
    assert page.text.count(evil) >= 5 and "<img src=http://x/y>" in page.text and "\x1b" not in text
    assert len(page.images) == 2 and all(source.startswith("data:image/") for source in page.images)
    assert "src=x" in page.text and len(jpegs(text)) == 1
    assert cv2.imdecode(np.frombuffer(base64.b64decode(page.images[0].partition(",")[2]), np.uint8), 1).shape == (
        4,
        4,
        3,
    )


def test_a_classifiers_card(tmp_path):
    records = [LabelledImage(f"{index}", index % 2, np.full((3, 3), index, np.uint8)) for index in range(5)]
    card = a_card(tmp_path / "run", records[:3], records[3:], monitor="val_accuracy")
    with warnings.catch_warnings(action="error"), card.written():
        pass
    assert read(tmp_path / "run")[0]["data"]["classes"][0]["train"] == {"boxes": 2, "pictures": 2}
