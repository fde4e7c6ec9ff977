import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from frcnn.cli import main
from frcnn.convert import TARGETS, find_losses, name_parts, read_parts, write_parts
from frcnn.data.readers import FORMATS, read_records
from frcnn.files import fitting, locked
from frcnn.records import ImageRecord

HEIGHT, WIDTH = 40, 60
NAMES = ("zebra", "größe, \"big\" & 'small'", "cat")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of pictures, two of which have the same name in different folders."""
    folder = tmp_path_factory.mktemp("pictures")
    data = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes()
    paths = [folder / name for name in ("a.png", "sub/a.png", "b c.png", "b.jpg", "ä,1.png", "no_suffix")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data + bytes([number]))  # told apart by a byte after the end
    return [str(path) for path in paths]


def record(path, boxes=((1, 2, 30, 20.5),), labels=(0,), **flags):
    return ImageRecord(path, (HEIGHT, WIDTH), boxes, labels, **flags)


@st.composite
def boxes(draw):
    """Up to four boxes with sides of any float32, or at whole pixels and the border."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        corners = []
        for side in (WIDTH, HEIGHT):
            any_place = st.floats(0, side, width=32) | st.integers(0, side).map(float)
            corners.append(sorted(draw(st.lists(any_place, min_size=2, max_size=2, unique=True))))
        (x1, x2), (y1, y2) = corners
        found.append((x1, y1, x2, y2))
    return np.array(found, np.float32).reshape(-1, 4)


@st.composite
def datasets(draw, paths):
    records = []
    for path in paths[: draw(st.integers(1, len(paths)))]:
        sides = draw(boxes())
        labels = draw(st.lists(st.integers(0, 2), min_size=len(sides), max_size=len(sides)))
        flags = st.lists(st.booleans(), min_size=len(sides), max_size=len(sides))
        records.append(record(path, sides, labels, difficult=draw(flags), crowd=draw(flags)))
    return records


def written(target, to):
    suffix = FORMATS[to].suffix
    return target / f"annotations{suffix}" if suffix else target


def held(record, to):
    """What a format holds of a record: its boxes within what rounding may do, labels, flags, content of the picture."""
    keep = np.ones(len(record.boxes), bool)
    if to == "voc":
        keep = (np.float32(record.boxes[:, :2] + 1) < record.boxes[:, 2:]).all(axis=1)
    none = np.zeros(keep.sum(), bool)
    return {
        "picture": Path(record.path).read_bytes(),
        "boxes": record.boxes[keep],
        "labels": record.labels[keep].tolist(),
        "difficult": (record.difficult[keep] if to == "voc" else none).tolist(),
        "crowd": (record.crowd[keep] if to == "coco" else none).tolist(),
    }


@pytest.mark.filterwarnings("ignore:.* left out, without width:UserWarning")  # a millionth of a pixel wide, in VOC
@settings(max_examples=60, deadline=None)
@given(data=st.data(), first=st.sampled_from(TARGETS), second=st.sampled_from(TARGETS))
def test_from_any_format_to_any_other_and_back_nothing_is_lost_that_both_hold(pictures, data, first, second):
    """To 0.0001 pixels through VOC, whose boxes are moved by a pixel; to 0.00001 with shares; else exactly."""
    records = data.draw(datasets(pictures))
    folder, expected = Path(tempfile.mkdtemp()), [held(each, first) for each in records]
    try:
        for number, to in enumerate((first, second, first)):
            target = folder / str(number)
            write_parts(target, name_parts({None: records}, to), NAMES, to)
            losses = find_losses(records, NAMES, to)
            marks = sum(int(each.difficult.sum()) for each in records)
            assert any("difficult" in loss for loss in losses) == (to != "voc" and marks > 0)
            before, (records, names) = records, read_records(written(target, to), to, NAMES)
            assert names == NAMES
            expected = [held(each, to) for each in before] if number else expected
            order = {content["picture"]: index for index, content in enumerate(expected)}
            records.sort(key=lambda each: order[Path(each.path).read_bytes()])
            assert len(records) == len(expected)
            for one, other in zip([held(each, to) for each in records], expected):
                tolerance = {"voc": 1e-4, "yolo": 1e-5, "label-studio": 1e-5}.get(to, 0)
                np.testing.assert_allclose(one.pop("boxes"), other.pop("boxes"), rtol=0, atol=tolerance)
                assert one == other
    finally:
        shutil.rmtree(folder)


def test_pictures_are_copied_into_trees_under_names_that_differ(pictures, tmp_path):
    records = [record(path) for path in pictures]
    write_parts(tmp_path / "voc", {"trainval": records}, NAMES, "voc")
    names = ["a.png", "sub_a.png", "b_c.png", "b.jpg", "ä_1.png", "no_suffix.jpg"]
    assert sorted(path.name for path in (tmp_path / "voc/JPEGImages").iterdir()) == sorted(names)
    listed = (tmp_path / "voc/ImageSets/Main/trainval.txt").read_text().split()
    assert listed == [Path(name).stem for name in names]
    for path, name in zip(pictures, names):
        assert (tmp_path / "voc/JPEGImages" / name).read_bytes() == Path(path).read_bytes()


def test_what_is_written_is_what_other_tools_read(pictures, tmp_path):
    parts = {"train": [record(pictures[0], crowd=[True])], "val": [record(pictures[1], [[0, 0, 60, 40]], [2])]}
    for to in TARGETS:
        write_parts(tmp_path / to, parts, NAMES, to)
    coco = COCO(tmp_path / "coco/train.json")
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert annotation["bbox"] == [1, 2, 29, 18.5] and annotation["area"] == 536.5 and annotation["iscrowd"] == 1
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(NAMES)
    assert coco.loadImgs(1)[0] == {"id": 1, "file_name": pictures[0], "height": HEIGHT, "width": WIDTH}
    content = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert content == {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    assert (tmp_path / "yolo/labels/val/sub_a.txt").read_text() == "2 0.5 0.5 1 1\n"
    assert (tmp_path / "simple/val.txt").read_text() == f"{pictures[1]},0,0,60,40,cat\n"
    xml = (tmp_path / "voc/Annotations/a.xml").read_text(encoding="utf-8")
    sides = {"xmin": "2", "ymin": "3", "xmax": "30", "ymax": "20.5"}
    assert all(f"<{tag}>{text}</{tag}>" in xml for tag, text in sides.items())
    assert (tmp_path / "voc/ImageSets/Main/val.txt").read_text() == "sub_a\n"
    line = (tmp_path / "huggingface/validation/metadata.jsonl").read_text()
    objects = {"bbox": [[0, 0, 60, 40]], "categories": ["cat"]}
    assert json.loads(line) == {"file_name": "sub_a.png", "objects": objects}
    (task,) = json.loads((tmp_path / "label-studio/val.json").read_text())
    assert task["data"] == {"image": f"/data/local-files/?d={pictures[1]}"}
    (result,) = task["annotations"][0]["result"]
    sides = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0}
    assert result["type"] == "rectanglelabels" and result["value"] == {**sides, "rectanglelabels": ["cat"]}
    assert (result["original_width"], result["original_height"]) == (WIDTH, HEIGHT)


def test_what_a_format_cannot_hold_is_listed(pictures):
    sides = [[0, 0, 1, 30], [0, 0, 1.5, 30], [1, 1, 9, 9]]
    records = [record(pictures[0], sides, [2, 2, 0], difficult=[1, 0, 1], crowd=[0, 1, 0])]
    order = "the order of the classes, or those without boxes"
    neither = ["2 marks of difficult boxes", "1 marks of crowds"]
    assert {to: find_losses(records, NAMES, to) for to in TARGETS} == {
        "voc": ["1 marks of crowds", "1 boxes not more than one pixel wide or high", order],
        "coco": ["2 marks of difficult boxes"],
        "yolo": neither,
        **{to: [*neither, order] for to in ("simple", "label-studio", "huggingface")},
    }
    assert find_losses([record(pictures[0])], ("zebra",), "simple") == []


@pytest.mark.parametrize("name", ["out", "out.json", "ä" * 127])
def test_what_a_killed_process_left_is_removed_and_a_living_one_is_waited_for(pictures, tmp_path, name):
    """A fork that is killed while it writes; another that holds the target."""
    parts, to = {"train": [record(pictures[0])]}, "coco" if name == "out.json" else "yolo"
    if not os.fork():
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            write_parts(tmp_path / name, parts, NAMES, to)
        finally:
            os._exit(1)
    os.wait()
    assert len(list(tmp_path.iterdir())) == 2  # draft and lock
    refused = pytest.raises(ValueError, match=r"is being written by process \d+ on .*: wait for that")
    with locked(tmp_path / fitting(f".frcnn-{name}", ".lock"), "", ""), refused:
        write_parts(tmp_path / name, parts, NAMES, to)
    write_parts(tmp_path / name, parts, NAMES, to)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_taken_target_is_refused_and_an_empty_one_filled(pictures, tmp_path):
    parts = {None: [record(pictures[0])]}
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    (tmp_path / "old.txt").write_text("old")
    for name in ("full", "old.txt"):
        with pytest.raises(ValueError, match=f"{name} is there already"):
            write_parts(tmp_path / name, parts, NAMES, "simple")
    (tmp_path / "empty").mkdir()
    write_parts(tmp_path / "empty", parts, NAMES, "simple")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["annotations.txt", "empty", "full", "old.txt", "x"]


@pytest.mark.parametrize("to", TARGETS)
def test_nothing_half_written_stays_when_a_picture_cannot_be_copied(pictures, tmp_path, to):
    lost = tmp_path / "lost.png"
    parts = {"train": [record(pictures[0]), record(str(lost), [], [])], "bad\0name": []}
    with pytest.raises((OSError, ValueError)):
        write_parts(tmp_path / "out", parts, NAMES, to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "path", "message"), [(("a\nb",), "a.png", "rename it"), (("a",), "a\n.png", "rename the")]
)
def test_names_that_a_text_file_cannot_hold_are_refused(tmp_path, names, path, message):
    with pytest.raises(ValueError, match=message):
        write_parts(tmp_path / "out", {None: [record(path)]}, names, "simple")


def test_parts_get_the_names_that_the_target_knows(pictures):
    one, two = [record(pictures[0])], [record(pictures[1])]
    assert name_parts({None: one}, "voc") == {"trainval": one}
    assert name_parts({None: one}, "yolo") == {"train": one}
    assert name_parts({None: one}, "coco") == {None: one}
    three = {"train": one, "val": two, "trainval": one + two}
    assert name_parts(three, "voc") == three
    assert list(name_parts(three, "coco")) == ["train", "val"]
    assert list(name_parts({"trainval": one, "test": two}, "yolo")) == ["train", "test"]
    assert list(name_parts({"trainval": one, "val": two}, "huggingface")) == ["train", "val"]
    with pytest.raises(ValueError, match="yolo has the splits train, val and test, but here are minival"):
        name_parts({"minival": one}, "yolo")


def convert(*arguments):
    return main(["convert-data", *map(str, arguments)])


def test_the_command_keeps_the_splits_of_its_source_and_says_what_it_left_out(pictures, tmp_path, capsys):
    records = [record(path, difficult=[True]) for path in pictures]
    write_parts(tmp_path / "voc", {"train": records[:2], "val": records[2:3], "test": records[3:5]}, NAMES[:1], "voc")
    shutil.copy(tmp_path / "voc/Annotations/a.xml", tmp_path / "voc/Annotations/rest.xml")
    shutil.copy(pictures[0], tmp_path / "voc/JPEGImages/rest.png")
    text = (tmp_path / "voc/Annotations/rest.xml").read_text().replace("a.png", "rest.png")
    (tmp_path / "voc/Annotations/rest.xml").write_text(text)
    assert convert(tmp_path / "voc", tmp_path / "yolo", "--to", "yolo") == 0
    assert capsys.readouterr().out == (
        "note: 1 pictures are in no split and left out; --split all takes every picture\n"
        "note: yolo cannot hold 5 marks of difficult boxes\n"
        "train: 2 pictures, 2 boxes: 2 zebra\nval: 1 pictures, 1 boxes: 1 zebra\ntest: 2 pictures, 2 boxes: 2 zebra\n"
        f"written to {tmp_path / 'yolo'}, 5 pictures copied\n"
    )
    parts, names, unlisted = read_parts(tmp_path / "yolo")
    assert ({name: len(part) for name, part in parts.items()}, names) == ({"train": 2, "val": 1, "test": 2}, ("zebra",))
    assert unlisted == 0
    assert convert(tmp_path / "yolo", tmp_path / "hugging", "--to", "huggingface", "--split", "valid") == 0
    assert convert(tmp_path / "hugging", tmp_path / "val.json", "--to", "coco", "--split", "validation") == 0
    assert len(json.loads((tmp_path / "val.json").read_text())["images"]) == 1
    assert convert(tmp_path / "yolo", tmp_path / "all.json", "--to", "coco") == 2
    assert "train, val, test are 3 files: name a folder" in capsys.readouterr().err


def test_the_command_draws_a_split_that_keeps_groups_together(tmp_path, capsys, draw_picture):
    lines = [f"{draw_picture(f'film{film}_{frame}.png', seed=9 * film + frame)},1,1,9,9,cat\n"
             for film in range(10) for frame in range(3)]  # fmt: skip
    (tmp_path / "all.txt").write_text("".join(lines))
    options = ("--split", 0.7, "--group-by", r"^film\d+", "--to", "coco")
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert convert(tmp_path / "all.txt", tmp_path / name, *options, "--seed", seed) == 0
    texts = {name: (tmp_path / name / "train.json").read_text() for name in ("one", "same", "other")}
    assert texts["one"] == texts["same"] != texts["other"]
    films = [
        {Path(image["file_name"]).name.partition("_")[0] for image in json.loads(file.read_text())["images"]}
        for file in sorted((tmp_path / "one").iterdir())
    ]
    assert len(films[0]) == 7 and len(films[1]) == 3 and not films[0] & films[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "1.5"], "must be greater than 0 and less than 1"),
        (["--split", "nan"], "must be greater than 0 and less than 1"),
        (["--group-by", "x"], "--group-by needs a share to draw: add --split 0.8"),
        (["--split", "0.5", "--group-by", "("], "'(' is no regular expression"),
        (["--split", "0.5", "--group-by", "x"], "no file name matches 'x'; the first is a.png"),
        (["--split", "val"], "splits such as 'val' belong to"),
    ],
)
def test_a_wrong_command_ends_in_a_sentence(tmp_path, capsys, draw_picture, options, message):
    draw_picture("a.png")
    (tmp_path / "all.txt").write_text("a.png,1,1,9,9,cat\n")
    assert convert(tmp_path / "all.txt", tmp_path / "out", "--to", "coco", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_command_without_a_config_takes_no_fields_of_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert("a.txt", tmp_path / "out", "--to", "coco", "model.depth=18")
    assert "unrecognized arguments: model.depth=18" in capsys.readouterr().err


@pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")
def test_a_real_tree_through_yolo_and_coco_comes_back_whole(tmp_path):
    source = Path(os.environ["FRCNN_DATA"], "cards")
    for before, after, to in ((source, "y", "yolo"), (tmp_path / "y", "v", "voc"), (tmp_path / "v", "c", "coco")):
        assert convert(before, tmp_path / after, "--to", to) == 0
    for name, split in (("train", "trainval"), ("test", "test")):
        first, names = read_records(source, "voc", split=split)
        last, last_names = read_records(tmp_path / "c" / f"{name}.json", "coco")
        assert names == last_names and len(first) == len(last)
        for one, other in zip(first, last):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
            assert Path(one.path).name == Path(other.path).name and np.array_equal(one.labels, other.labels)
