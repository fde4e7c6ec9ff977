"""`frcnn evaluate` on detections that are there already, so that no detector is needed."""

import contextlib
import csv
import json

import cv2
import numpy as np
import pytest

from frcnn.cli import main
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.files import locked
from frcnn.outputs import write_json
from frcnn.records import Detections
from tests.oracles.tiny import CLASS_NAMES, write_tiny_pictures

FILES = {"evaluation.json", "precision_recall.csv", "precision_recall.png"} | {
    "confusion_matrix.csv",
    "confusion_matrix.png",
}
XML = """<annotation><filename>{name}.png</filename><object><name>{label}</name>
<bndbox><xmin>11</xmin><ymin>5</ymin><xmax>26</xmax><ymax>56</ymax></bndbox></object></annotation>"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four annotated pictures, and detections of them: all right but a wide box taken for a tall one."""
    monkeypatch.chdir(tmp_path)
    records = write_tiny_pictures(tmp_path / "pictures")
    write_annotations("all.txt", records, CLASS_NAMES)
    labels = [record.labels.copy() for record in records]
    labels[1][0] = 0
    found = [
        Detections(record.boxes, np.linspace(0.9, 0.6, len(record.boxes)), label, CLASS_NAMES, record.path)
        for record, label in zip(records, labels, strict=True)
    ]
    write_json(tmp_path / "found" / "detections.json", found)
    return tmp_path


@pytest.fixture
def run(capsys):
    def call(*arguments, path="all.txt", file="found/detections.json"):
        code = main(["evaluate", "-p", path, "--detections", file, *arguments])
        return code, *capsys.readouterr()

    return call


def change_entry(found, index, **values):
    entries = json.loads(found.read_text())
    entries[index] |= values
    found.write_text(json.dumps(entries))


def rows(path):
    return list(csv.reader(path.read_text().splitlines()))


@pytest.mark.parametrize(("metric", "mean"), [("voc07", 0.69697), ("voc12", 0.66667), ("coco", 0.66997)])
def test_writes_every_file(folder, run, metric, mean):
    """Tall: true, false, true of 2 boxes; wide: true of 2. The false one is the second of three equal scores, which
    keep the order of the pictures. Half of the area at 1 and half at 2/3, and at 1 and 0: (5/6 + 1/2) / 2. With 6 of 11
    or 51 of 101 recalls in the first half: (6 + 5 * 2/3 + 6) / 22, (51 + 50 * 2/3 + 51) / 202.
    """
    code, out, error = run("--metric", metric, "--output", "scores")
    assert (code, error) == (0, "")
    assert out.startswith(metric) and out.endswith("precision_recall and confusion_matrix, .csv and .png\n")
    assert {path.name for path in (folder / "scores").iterdir()} == FILES
    plain = json.loads((folder / "scores" / "evaluation.json").read_text())
    assert (plain["metric"], plain["mean_ap"]) == (metric, pytest.approx(mean, abs=1e-5))
    assert rows(folder / "scores" / "confusion_matrix.csv") == [
        ["true class", "tall", "wide", "missed"],
        ["tall", "2", "0", "0"],
        ["wide", "1", "1", "0"],
        ["background", "0", "0", "0"],
    ]
    assert rows(folder / "scores" / "precision_recall.csv") == [
        ["class", "score", "precision", "recall"],
        ["tall", "0.9", "1.0", "0.5"],
        ["tall", "0.9", "0.5", "0.5"],
        ["tall", "0.9", "0.666667", "1.0"],
        ["wide", "0.6", "1.0", "0.5"],
    ]
    assert all(cv2.imread(str(path)) is not None for path in (folder / "scores").glob("*.png"))


def test_writes_beside_the_detections_and_counts_from_a_score(folder, run):
    assert run("--confusion-score", "0.7")[0] == 0
    assert {path.name for path in (folder / "found").iterdir()} == FILES | {"detections.json", "detections.images.json"}
    assert rows(folder / "found" / "confusion_matrix.csv")[2] == ["wide", "1", "0", "1"]


def test_a_matrix_of_very_many_classes_is_a_list_of_its_counts(folder, run, monkeypatch):
    monkeypatch.setattr("frcnn.cli.evaluate.MOST_COLUMNS", 2)
    assert run()[0] == 0
    assert rows(folder / "found" / "confusion_matrix.csv") == [
        ["true class", "taken for", "count"], ["tall", "tall", "2"], ["wide", "tall", "1"], ["wide", "wide", "1"]
    ]  # fmt: skip


def test_pictures_are_found_by_name_where_the_folder_is_another(folder, run):
    (folder / "pictures").rename(folder / "moved")
    (folder / "all.txt").write_text((folder / "all.txt").read_text().replace("/pictures/", "/moved/"))
    assert run()[0] == 0


def test_pictures_that_are_not_annotated_are_counted(folder, run):
    lines = (folder / "all.txt").read_text().splitlines(keepends=True)
    (folder / "all.txt").write_text("".join(line for line in lines if "2.png" not in line))
    code, out, _ = run()
    assert code == 0 and "1 pictures of found/detections.json are not annotated: left out" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "coco", "--iou", "0.7"], "coco averages over 0.50 to 0.95"),
        (["--iou", "50"], "iou_threshold is 50"),
        (["--confusion-score", "2"], "score_threshold 2.0: both must be 0..1"),
        (["--run", "runs/one"], "runs no detector: leave out --run"),
        (["train.epochs=1"], "leave out --run and field=value"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_any_work(run, arguments, words):
    code, out, error = run(*arguments, path="nothing.txt", file="nothing.json")
    assert (code, out) == (2, "") and words in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("in_the_way", ["file", "folder", "process"])
def test_where_nothing_can_be_written_is_said_before_any_work(folder, run, in_the_way):
    blocked = {"file": folder / "o", "folder": folder / "o" / "confusion_matrix.png"}.get(in_the_way)
    words = {"file": "o: nothing can be written to", "folder": "confusion_matrix.png is a folder where a file"}
    with locked(folder / "o" / ".evaluate.lock", "", "") if not blocked else contextlib.nullcontext():
        if blocked:
            blocked.parent.mkdir(exist_ok=True)
            blocked.touch() if in_the_way == "file" else blocked.mkdir()
        code, out, error = run("--output", "o", path="nothing.txt", file="nothing.json")
    assert (code, out) == (2, "") and words.get(in_the_way, "o is being evaluated into by process") in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.unlink(), "found/detections.json"),
        (lambda found: found.write_text("[{"), "as `frcnn detect` writes them (JSONDecodeError"),
        (lambda found: found.write_text("[" * 100_000), "detections.json: damaged, or not detections as"),
        (lambda found: found.write_text("[" + "9" * 5000 + "]"), "detections.json: Exceeds the limit (4300 digits)"),
        (lambda found: found.write_bytes(b"\xff\xfe["), "detections.json: damaged, or not detections as"),
        (lambda found: found.write_text("{}"), "expected a list, got {}"),
        (lambda found: change_entry(found, 1, bbox=[1, 2, float("nan"), 4]), "detections.json: [1] needs a bbox of"),
        (lambda found: change_entry(found, 2, bbox=[1, 2, 10**400, 4]), "detections.json: [2] needs a bbox of four"),
        (lambda found: change_entry(found, 0, bbox="1234"), "detections.json: [0] needs a bbox of four numbers and a"),
        (lambda found: change_entry(found, 0, bbox=[1, 2, 3]), "detections.json: [0] needs a bbox of four numbers"),
        (lambda found: change_entry(found, 0, score="0.5"), "got [10.0, 4.0, 16.0, 52.0] and '0.5'"),
        (lambda found: change_entry(found, 0, score=True), "and True"),
        (lambda found: change_entry(found, 1, category_id=3), "[1]: category_id 3 is of no category in"),
        (lambda found: change_entry(found, 1, category_id=[1]), "[1]: category_id [1] is of no category in"),
        (lambda found: change_entry(found, 1, file_name="x.png"), "[1]: file_name 'x.png' is of no picture in"),
        (lambda found: found.write_text("[7]"), "detections.json: [0] (7) is no detection"),
        (
            lambda found: found.with_suffix(".images.json").write_text('{"categories": [{"id": 1}]}'),
            "detections.images.json: categories[0] ({'id': 1}) has no name",
        ),
        (lambda found: found.write_text('[{"image_id": 1}]'), "[0] needs a bbox of four numbers and a score, got None"),
        (lambda found: found.with_suffix(".images.json").write_text("[]"), "images.json: not as `frcnn detect`"),
    ],
)
def test_damaged_detections_are_named(folder, run, change, words):
    change(folder / "found" / "detections.json")
    code, _, error = run()
    assert code == 2 and words in error and len(error.splitlines()) == 1


def test_a_picture_without_detections_is_not_one_that_was_never_looked_at(folder, run):
    images = folder / "found" / "detections.images.json"
    listing = json.loads(images.read_text())
    listing["images"] = [image for image in listing["images"] if "2.png" not in image["file_name"]]
    images.write_text(json.dumps(listing))
    code, _, error = run()
    assert code == 2
    assert "lacks 1 of the 4 pictures" in error and "2.png for one: detect in all of them" in error


def test_pictures_of_one_name_in_other_folders_are_not_mixed_up(folder, run):
    write_json(
        folder / "found" / "detections.json", [Detections([], [], [], CLASS_NAMES, f"{i}/0.png") for i in (1, 2)]
    )
    (folder / "all.txt").write_text("pictures/0.png,1,2,30,40,tall\n")
    code, _, error = run()
    assert code == 2 and "in different ones have the same name: detect anew" in error


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        ("train trainval val test", "test"),
        ("train trainval val", "val"),
        ("train", "train"),
        ("", "none, every XML file"),
    ],
)
def test_a_voc_tree_is_read_by_its_test_split(folder, run, splits, taken):
    """The split that is taken holds 0.png, the others 1.png."""
    for name in ("Annotations", "ImageSets/Main"):
        (folder / "tree" / name).mkdir(parents=True)
    (folder / "pictures").rename(folder / "tree" / "JPEGImages")
    for name in "01":
        (folder / "tree" / "Annotations" / f"{name}.xml").write_text(XML.format(name=name, label="tall"))
    for split in splits.split():
        (folder / "tree" / "ImageSets" / "Main" / f"{split}.txt").write_text("0\n" if split == taken else "1\n")
    code, out, _ = run(path="tree")
    assert code == 0 and out.startswith(f"split: {taken}\n")
    counted = json.loads((folder / "found" / "evaluation.json").read_text())["classes"][0]["num_ground_truth"]
    assert counted == (1 if splits else 2)
    assert ("3 pictures" if splits else "2 pictures") in out
    if splits:
        assert not run("--split", "train", path="tree")[1].startswith("split:")
