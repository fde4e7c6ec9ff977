"""What the readers hand to a collector of problems instead of raising it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from frcnn.cli import main
from frcnn.data.batches import split_records
from frcnn.data.readers import read_records
from tests.contracts import assert_is_record

needs_data = pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")


def collect(path, *arguments, **options):
    problems = []
    records, class_names = read_records(path, *arguments, **options, problems=problems)
    for record in records:
        assert_is_record(record, class_names)
    return records, class_names, problems


def test_what_is_wrong_in_a_text_file_is_collected_and_the_rest_returned(tmp_path, draw_picture):
    for name in ("a.png", "b.png"):  # 40 high, 60 wide
        draw_picture(name)
    (tmp_path / "broken.png").write_text("no picture")
    lines = [
        ("file,x1,y1,x2,y2,class", "header-line"),
        ("a.png,1,1,5,5,cat", None),
        ("a.png,5,1,1,5,cat", "swapped-box"),
        ("a.png,1,5,5,5,cat", "degenerate-box"),
        ("a.png,60,1,70,5,cat", "outside-box"),
        ("a.png,50,30,61,40,cat", "clipped-box"),
        ("b.png,1,nan,5,5,cat", "bad-number"),
        ("b.png,1,1,5,5,", "missing-class"),
        ("b.png,1,1,5,5,bird", "unknown-class"),
        ("b.png,1,1,5,5", "field-count"),
        ("absent.png,1,1,5,5,cat", "missing-picture"),
        ("broken.png,1,1,5,5,cat", "unreadable-picture"),
    ]
    path = tmp_path / "annotations.txt"
    path.write_text("\n".join(line for line, _ in lines))
    records, _, problems = collect(path, class_names=("cat",))
    assert [(problem.kind, problem.line) for problem in problems] == [
        (kind, number) for number, (_, kind) in enumerate(lines, start=1) if kind
    ]
    assert {problem.kind for problem in problems if problem.severity == "warning"} == {"clipped-box"}
    assert {problem.file for problem in problems} == {"annotations.txt"}
    assert str(problems[1]) == "annotations.txt line 3: x2 (1) must be greater than x1 (5)"
    assert [Path(record.path).name for record in records] == ["a.png", "b.png"]
    np.testing.assert_array_equal(records[0].boxes, [[1, 1, 5, 5], [50, 30, 60, 40]])
    assert len(records[1].boxes) == 0


def test_what_is_wrong_in_a_voc_tree_is_collected_and_the_rest_returned(tmp_path, draw_picture):
    draw_picture("JPEGImages/a.png")
    (tmp_path / "Annotations").mkdir()
    box = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    texts = {
        "a": "<annotation>\n" + "".join(f"<object><name>cat</name>{box.format(x)}</object>\n" for x in (1, 9, 10, 0)),
        "b": "<coco/>",
        "c": "<annotation>",
        "d": "<annotation/>",
        "e": '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>',
        "f": "<annotation><filename>a.png</filename></annotation>",
    }
    texts["a"] += "<object/>\n</annotation>"
    for name, text in texts.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    (tmp_path / "Annotations" / "g.xml").symlink_to("absent")
    records, _, problems = collect(tmp_path, "voc")
    assert [(Path(problem.file).name, problem.line, problem.kind) for problem in problems] == [
        ("a.xml", 3, "degenerate-box"),
        ("a.xml", 4, "swapped-box"),
        ("a.xml", 5, "clipped-box"),
        ("a.xml", 6, "incomplete-object"),
        ("b.xml", 1, "broken-xml"),
        ("c.xml", 1, "broken-xml"),
        ("d.xml", 1, "missing-picture"),
        ("e.xml", 1, "xml-entities"),
        ("f.xml", 1, "repeated-picture"),
        ("g.xml", 1, "unreadable-file"),
    ]
    np.testing.assert_array_equal(records[0].boxes, [[0, 0, 9, 9], [0, 0, 9, 9]])
    assert len(records) == 1


def test_what_makes_a_source_unusable_is_raised_all_the_same(tmp_path):
    for data in (b"", b"\xff\xfe\x00", b"a.png,1,1,5,5,gr\xf6n"):
        (tmp_path / "annotations.txt").write_bytes(data)
        with pytest.raises(ValueError, match=r"annotations\.txt"):
            collect(tmp_path / "annotations.txt")
    with pytest.raises(ValueError, match="is no Pascal VOC tree"):
        collect(tmp_path, "voc")


def test_a_file_without_any_box_is_a_problem(tmp_path, draw_picture):
    draw_picture("a.png")
    (tmp_path / "annotations.txt").write_text("a.png,,,,,")
    records, class_names, (problem,) = collect(tmp_path / "annotations.txt")
    assert (len(records), class_names, problem.kind, problem.line) == (1, (), "no-boxes", None)


@pytest.fixture
def nothing_annotated(tmp_path, draw_picture):
    """Two pictures in every format, with class names where it declares them."""
    for name in ("a", "b"):
        draw_picture(f"images/{name}.png")
        draw_picture(f"voc/{name}.png")
        (tmp_path / f"voc/{name}.xml").write_text("<annotation/>")
    images = [{"id": number, "file_name": f"images/{name}.png"} for number, name in enumerate("ab")]
    crowd = {"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1}
    for name, annotations in (("coco", []), ("crowd", [crowd])):
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]")
    (tmp_path / "all.txt").write_text("images/a.png,,,,,\nimages/b.png,,,,,")
    return tmp_path


@pytest.mark.parametrize("name", ["all.txt", "voc", "coco.json", "crowd.json", "data.yaml"])
def test_where_nothing_is_annotated_there_is_nothing_to_learn_and_to_score(nothing_annotated, name, capsys):
    path = str(nothing_annotated / name)
    assert main(["doctor", path]) == 1
    assert "error no-boxes (1)" in capsys.readouterr().out
    assert main(["train", "-p", path, "--output", str(nothing_annotated / "run")]) == 2
    assert f"train: {path} has no box, only pictures without objects" in capsys.readouterr().err
    found = nothing_annotated / "detections.json"
    listing = {"images": [{"file_name": f"{place}/{one}.png"} for place in ("images", "voc") for one in "ab"]}
    found.with_suffix(".images.json").write_text(json.dumps(listing | {"categories": [{"id": 1, "name": "cat"}]}))
    found.write_text("[]")
    assert main(["evaluate", "-p", path, "--detections", str(found)]) == 2
    assert "has no box that is scored" in capsys.readouterr().err
    assert len(read_records(path, "auto", class_names=("cat",))[0]) == 2


def test_objects_that_are_all_held_out_are_said(tmp_path, draw_picture, capsys):
    boxes = {"a": "1,1,9,9,cat"}
    rows = [f"{draw_picture(f'{name}.png').name},{boxes.get(name, ',,,,')}" for name in "abcd"]
    path = tmp_path / "all.txt"
    path.write_text("\n".join(rows))
    records, _ = read_records(path)
    seed = next(seed for seed in range(99) if len(split_records(records, 0.1, seed)[1][0].boxes))
    assert main(["train", "-p", str(path), "--output", str(tmp_path / "run"), f"train.seed={seed}"]) == 2
    assert "all pictures with objects are held out for validation" in capsys.readouterr().err


@needs_data
@pytest.mark.parametrize("place", ["bccd", "cards", "bccd/trainval.txt", "cards/test.txt"])
def test_the_only_problems_of_the_real_sets_are_two_boxes_without_area(place):
    _, _, problems = collect(Path(os.environ["FRCNN_DATA"], place), "auto")
    errors = [(problem.kind, Path(problem.file).stem) for problem in problems if problem.severity == "error"]
    expected = [("degenerate-box", f"BloodImage_{number}") for number in ("00338", "00343")]
    assert errors == (expected if place == "bccd" else [])
