import json
import os

import numpy as np
import pytest

from frcnn.convert import write_parts
from frcnn.data.readers import find_format, read_records, split_names
from frcnn.records import ImageRecord
from tests.contracts import assert_is_record


@pytest.fixture
def folder(tmp_path, draw_picture):
    """Write a metadata.jsonl a folder, of pairs of a picture's name (40 high, 60 wide) and its objects."""

    def write(places):
        for place, lines in places.items():
            for name, _ in lines:
                draw_picture(f"{place}/{name}")
            entries = [{"file_name": name, "objects": objects, "caption": "x"} for name, objects in lines]
            (tmp_path / place / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
        return tmp_path

    return write


def objects(*boxes, **more):
    return {"bbox": list(boxes), **more}


@pytest.mark.parametrize(
    ("found", "labels", "names"),
    [
        (objects([1, 2, 10, 20], [0, 0, 60, 40], categories=["dog", " cat "]), [1, 0], ("cat", "dog")),
        (objects([1, 2, 10, 20], [0, 0, 60, 40], category=[10, 9]), [1, 0], ("9", "10")),
        (objects([1, 2, 10, 20], [0, 0, 60, 40], id=[1, 2], label=["b", 1]), [1, 0], ("1", "b")),
        ([{"bbox": [1, 2, 10, 20], "category": 1}, {"bbox": [0, 0, 60, 40], "category": 0}], [1, 0], ("0", "1")),
    ],
)
def test_boxes_are_left_top_width_height_and_categories_names_or_numbers(folder, found, labels, names):
    path = folder({".": [("b.png", None), ("a b.png", found), ("c.png", objects(categories=[]))]})
    for place in (path, path / "metadata.jsonl"):
        records, class_names = read_records(place, "auto")
        assert class_names == names and [len(record.boxes) for record in records] == [0, 2, 0]
        np.testing.assert_array_equal(records[1].boxes, [[1, 2, 11, 22], [0, 0, 60, 40]])
        assert records[1].labels.tolist() == labels and records[1].lines.tolist() == [2, 2]
        assert_is_record(records[1], class_names)
    assert (find_format(path), split_names(path)) == ("huggingface", ())


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_are_splits_and_validation_has_three_names(folder, val):
    one = objects([1, 2, 10, 20], categories=["cat"])
    path = folder({place: [(f"{place[0]}.png", one)] for place in ("train", val, "test")})
    assert split_names(path) == ("train", "val", "test")
    shown = {
        split: [os.path.basename(record.path) for record in read_records(path, "auto", split=split)[0]]
        for split in (None, "val", "valid", "validation", "test", "all")
    }
    rest = {"test": ["t.png"], None: ["t.png"], "all": ["t.png", "v.png", "t.png"]}
    assert shown == rest | {name: ["v.png"] for name in ("val", "valid", "validation")}
    with pytest.raises(ValueError, match="has no split 'dev': its splits are train, val, test"):
        read_records(path, "auto", split="dev")
    assert len(read_records(path / val, "auto")[0]) == 1


def test_what_is_written_comes_back_with_any_letters_in_names(tmp_path, draw_picture):
    names = ("größe, \"big\" & 'small'", "zebra")
    paths = [str(draw_picture(f"pictures/{name}")) for name in ("ä 'x' \"y\".png", "b.png")]
    boxes = [[0.1, 2.7, 59.9, 40], [1e-3, 0, 1 / 3, 2 / 3]]
    part = [ImageRecord(paths[0], (40, 60), boxes, [1, 0]), ImageRecord(paths[1], (40, 60), [], [])]
    write_parts(tmp_path / "out", {"train": part, "val": part[:1]}, names, "huggingface")
    records, class_names = read_records(tmp_path / "out", "auto", split="train")
    assert class_names == names and [len(record.boxes) for record in records] == [2, 0]
    np.testing.assert_array_equal(records[0].boxes, part[0].boxes)
    assert sorted(place.name for place in (tmp_path / "out").iterdir()) == ["train", "validation"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: broken JSON (Expecting"),
        ("[1]", "line 2: a line needs a file_name, and objects"),
        ('{"file_name": "a.png", "text": "a cat"}', "line 2: a line needs a file_name, and objects"),
        ('{"file_name": 1, "objects": null}', "line 2: a line needs a file_name"),
        ('{"file_name": "c.png", "objects": null}', "line 2: no picture at"),
        ('{"file_name": "b.png", "objects": null}', "b.png is the picture of an entry before"),
        ('{"file_name": "a.png", "objects": 1}', "line 2: 1 boxes and 0 categories"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}', "line 2: 1 boxes and 0 categories"),
        ('{"file_name": "a.png", "objects": [{"bbox": [1, 2, 3, 4]}]}', "line 2: objects: entry 0: expected a bbox"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3]], "label": ["x"]}}', "line 2: objects: entry 0"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "label": [true]}}', "line 2: objects: entry 0"),
        (
            '{"file_name": "a.png", "objects": {"bbox": [[1, 2, NaN, 4]], "label": [1]}}',
            "line 2: x + width (nan) is not",
        ),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, {}]], "label": [1]}}', "line 2: y + height (nan)"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1, 2, -3, 4]], "label": [1]}}', "must be greater than x (1)"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(folder, line, message):
    path = folder({".": [("b.png", objects([1, 2, 10, 20], categories=["cat"])), ("a.png", None)]})
    first = (path / "metadata.jsonl").read_text().splitlines()[0]
    (path / "metadata.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(ValueError, match="metadata") as caught:
        read_records(path, "auto")
    assert message in str(caught.value) and len(str(caught.value).splitlines()) < 3


def test_what_holds_no_metadata_is_said_so_and_a_pipe_is_not_waited_for(tmp_path):
    with pytest.raises(ValueError, match="is a folder without metadata"):
        read_records(tmp_path, "huggingface")
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train/metadata.jsonl")
    with pytest.raises(ValueError, match=r"train/metadata.jsonl: cannot read"):
        read_records(tmp_path, "auto")
