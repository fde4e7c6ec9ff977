import json

import numpy as np
import pytest

from frcnn.data.readers import read_records
from frcnn.data.readers.labelled import read_labelled
from frcnn.data.readers.pictures import PictureFolder
from frcnn.data.readers.problems import ELSEWHERE
from frcnn.doctor_report import CURES


@pytest.fixture
def place(tmp_path):
    """Make empty files below `new`, and return a function that finds a name there: its path within `new`, or None."""

    def find(files, *names):
        for file in files.split():
            (tmp_path / "new" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "new" / file).touch()
        folder = PictureFolder(tmp_path / "new")
        found = [folder.find(name) for name in names]
        return [path and str(path).removeprefix(f"{tmp_path}/new/") for path in found]

    return find


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        ("cam1/a.png a.png", "old/root/cam1/a.png", "cam1/a.png"),
        ("b/a.png a.png", "old/root/cam1/a.png", "a.png"),
        ("x/cam1/a.png x/cam2/a.png a.png", "/old/cam1/a.png", "x/cam1/a.png"),
        ("deep/down/a.png", "a.png", "deep/down/a.png"),
        ("a.jpg", r"C:\Users\me\a.jpg", "a.jpg"),
        ("cam1/a.jpg a.jpg", r"cam1\a.jpg", "cam1/a.jpg"),
        ("my_cat.jpg my%20cat.jpg", "my%20cat.jpg", "my%20cat.jpg"),
        ("größe.jpg", "file:///data/gr%C3%B6%C3%9Fe.jpg", "größe.jpg"),
        ("größe.jpg", "gro\u0308ße.jpg", "größe.jpg"),
        ("a.jpg", "https://host/data/a.jpg?size=1#top", "a.jpg"),
        ("cam1/a.jpg", "/data/local-files/?d=old/cam1/a.jpg", "cam1/a.jpg"),
        ("a.JPG b/a.jpg", "a.jpg", "b/a.jpg"),
        ("a.JPG", "IMG/A.jpg", "a.JPG"),
        ("b.jpg .hidden/a.jpg", "a.jpg", None),
        ("a.jpg", "", None),
    ],
)
def test_the_longest_tail_of_a_name_is_found(place, files, name, found):
    assert place(files, name) == [found]


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        ("one/a.png two/a.png", ["old/a.png"], r"old/a.png may be .*/new/one/a.png or .*/new/two/a.png: name a folder"),
        ("a.JPG a.Jpg", ["a.jpg"], r"a.jpg may be .*/new/a.J(PG|pg) or "),
        ("a.png", ["cam1/a.png", "cam2/a.png"], r"cam1/a.png and cam2/a.png would both be .*/new/a.png"),
    ],
)
def test_what_may_be_two_pictures_is_an_error(place, files, names, message):
    with pytest.raises(ValueError, match=message):
        place(files, *names)


def test_one_picture_of_two_spellings_is_no_error(place):
    assert place("cam1/a.png", "old/cam1/a.png", r"D:\old\cam1\a.png", "a.png") == ["cam1/a.png"] * 3


XML = "<annotation><filename>{}</filename><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
XML += "<ymax>9</ymax></bndbox></object></annotation>"


@pytest.fixture
def sets(tmp_path, draw_picture):
    """Data sets in `data` whose picture has moved to `new`; a dict from the format to the path of the annotations."""
    draw_picture("new/images/train/a.png")
    coco = {"images": [{"id": 1, "file_name": "train/a.png"}], "categories": [{"id": 1, "name": "cat"}]}
    files = {
        "old.txt": "C:\\data\\images\\train\\a.png,0,0,9,9,cat\n",
        "old.json": json.dumps(coco | {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]}),
        "voc/JPEGImages/other.png": "",
        "voc/Annotations/a.xml": XML.format("a.png"),
        "stem/JPEGImages/other.png": "",
        "stem/Annotations/a.xml": XML.format("renamed.png"),
        "folder/data.yaml": "path: /old\ntrain: images/train\nnames: [cat]\n",
        "folder/labels/train/a.txt": "0 0.075 0.1125 0.15 0.225\n",
        "list/data.yaml": "train: train.txt\nnames: [cat]\n",
        "list/train.txt": "images/train/a.png\n",
        "list/labels/train/a.txt": "0 0.075 0.1125 0.15 0.225\n",
    }
    for name, text in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    return {name: tmp_path / "data" / name for name in ("old.txt", "old.json", "voc", "stem", "folder", "list")}


@pytest.mark.parametrize("name", ["old.txt", "old.json", "voc", "stem", "folder", "list"])
def test_every_reader_finds_moved_pictures(sets, tmp_path, name):
    with pytest.raises(ValueError, match=r"no (picture|folder)") as caught:
        read_records(sets[name], "auto")
    assert str(caught.value).endswith(f"\n{ELSEWHERE}") and str(caught.value).count("--images") == 1
    for outside in ("warning", "error"):
        (record,), _ = read_records(sets[name], "auto", images=tmp_path / "new", outside=outside)
        assert record.path == str(tmp_path / "new/images/train/a.png")
        np.testing.assert_allclose(record.boxes, [[0, 0, 9, 9]], atol=1e-4)
    with pytest.raises(ValueError, match=r"images: .*nowhere is no folder"):
        read_records(sets[name], "auto", images=tmp_path / "nowhere")


def test_labels_that_moved_with_their_pictures_come_first(sets, tmp_path):
    (tmp_path / "new/labels/train").mkdir(parents=True)
    (tmp_path / "new/labels/train/a.txt").write_text("0 0.5 0.5 1 1\n")
    for name in ("folder", "list"):
        (record,), _ = read_records(sets[name], "auto", images=tmp_path / "new")
        np.testing.assert_allclose(record.boxes, [[0, 0, 60, 40]], atol=1e-4)


def test_a_picture_where_its_name_says_stays(sets, tmp_path, draw_picture):
    here = draw_picture("data/train/a.png")
    assert read_records(sets["old.json"], "auto", images=tmp_path / "new")[0][0].path == str(here)


def test_an_ambiguous_name_is_a_mistake_of_its_line(sets, tmp_path, draw_picture):
    draw_picture("new/old/train/a.png", seed=1)
    for name in ("old.json", "voc"):
        with pytest.raises(ValueError, match=r"(images\[0\] \(id 1\)|a.xml line 1): .*a.png may be .* or "):
            read_records(sets[name], "auto", images=tmp_path / "new")
    problems = []
    read_records(sets["voc"], "auto", problems=problems, images=tmp_path / "new")
    assert {problem.kind for problem in problems} == {"missing-picture"}
    assert "--images" in CURES["missing-picture"]


def test_a_list_of_pictures_with_classes(sets, tmp_path):
    (tmp_path / "x.csv").write_text("old/train/a.png,cat\ntrain/a.png,dog\n")
    parts, _ = read_labelled(tmp_path / "x.csv", images=tmp_path / "new")
    assert [record.path for record in parts["all"]] == [str(tmp_path / "new/images/train/a.png")] * 2
    with pytest.raises(ValueError, match=r"images: .* holds its pictures itself"):
        read_labelled(tmp_path / "new", images=tmp_path / "new")
