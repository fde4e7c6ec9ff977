import numpy as np
import pytest

from frcnn.data.readers import find_format, read_records, split_names
from tests.contracts import assert_is_record


@pytest.fixture
def yolo(tmp_path, draw_picture):
    """Write a data set with images/train/a.png and b.png (40 high, 60 wide), labels by name, and a data.yaml."""

    def write(
        labels, yaml="path: .\ntrain: images/train\nnames: [cat, dog]\n", pictures=("train/a.png", "train/b.png")
    ):
        for name in pictures:
            draw_picture(f"images/{name}")
        for name, text in labels.items():
            path = tmp_path / "labels" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "data.yaml").write_text(yaml, encoding="utf-8")
        return tmp_path

    return write


def read_error(path, **options):
    with pytest.raises(ValueError, match="a") as caught:
        read_records(path, "yolo", **options)
    return str(caught.value)


def test_boxes_are_centre_and_sides_as_shares_and_no_label_file_is_background(yolo):
    """(0.5, 0.25, 0.2, 0.5) in 60 x 40: centre (30, 10), sides (12, 20)."""
    path = yolo({"train/a.txt": "1 0.5 0.25 0.2 0.5\r\n\n0 0.5 0.5 1 1"})
    for place in (path, path / "data.yaml"):
        records, class_names = read_records(place, "auto")
        assert class_names == ("cat", "dog")
        np.testing.assert_allclose(records[0].boxes, [[24, 0, 36, 20], [0, 0, 60, 40]])
        assert records[0].labels.tolist() == [1, 0]
        assert [len(record.boxes) for record in records] == [2, 0]
        for record in records:
            assert_is_record(record, class_names)


def test_names_may_be_a_mapping_in_any_order_and_stay_what_they_are(yolo):
    yaml = "train: images/train\nnames:\n  2: no\n  0: 1\n  7: 2001-01-01\n"
    records, class_names = read_records(yolo({"train/a.txt": "07 .5 .5 .5 .5"}, yaml), "yolo")
    assert class_names == ("1", "no", "2001-01-01")
    assert records[0].labels.tolist() == [2]


@pytest.mark.filterwarnings("ignore:. pictures? in a folder without any label file:UserWarning")
def test_train_val_and_test_are_the_splits(yolo, tmp_path):
    yaml = "train: images/train\nval:\n  - images/val\n  - more.txt\ntest:\nnames: [cat]\n"
    path = yolo({"val/c.txt": "0 .5 .5 .5 .5"}, yaml, ("train/a.png", "val/c.png", "other/d.png"))
    (tmp_path / "more.txt").write_text("./images/other/d.png\n\nimages/val/c.png\n")
    names = {split: read_records(path, "yolo", split=split)[0] for split in (None, "val", "all")}
    assert {split: [record.path[-5:] for record in records] for split, records in names.items()} == {
        None: ["a.png"],
        "val": ["c.png", "d.png"],
        "all": ["a.png", "c.png", "d.png"],
    }
    assert split_names(path) == ("train", "val")
    assert read_error(path, split="test").endswith("data.yaml has no split 'test': it names train, val")


@pytest.mark.parametrize("place", ["../images/train", "images/train/", "./images"])
def test_places_are_found_as_roboflow_and_others_write_them(yolo, place):
    path = yolo({"train/a.txt": "0 .5 .5 .5 .5"}, f"train: {place}\nnames: [cat]\n")
    assert len(read_records(path, "yolo")[0]) == 2


def test_labels_lie_beside_the_pictures_where_no_folder_is_called_images(tmp_path, draw_picture):
    draw_picture("all/a.png")
    (tmp_path / "all/a.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "cats.yaml").write_text("train: all\nnames: [cat]")
    records, _ = read_records(tmp_path, "auto")
    assert [len(record.boxes) for record in records] == [1]


@pytest.mark.parametrize(
    ("pictures", "label"),
    [
        ("images/train", "images/train/a.txt"),
        ("images", "images/a.txt"),
        ("images/images", "images/labels/a.txt"),
        ("images/train", "labels/train/a.TXT"),
        ("other", "other/a.Txt"),
    ],
)
def test_labels_lie_beside_the_pictures_or_in_labels_with_any_case_of_suffix(tmp_path, draw_picture, pictures, label):
    draw_picture(f"{pictures}/a.png")
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text(f"train: {pictures}\nnames: [cat]")
    records, _ = read_records(tmp_path, "auto")
    assert [len(record.boxes) for record in records] == [1]


@pytest.mark.parametrize("shape", ["[2, 2]", "[2, 3]", "[17, 3]"])
def test_points_follow_the_box_of_a_pose_and_are_no_outline(yolo, shape):
    yaml = f"train: images/train\nnames: [cat]\nkpt_shape: {shape}\nflip_idx: [1, 0]\n"
    count = int(shape[1:].partition(",")[0]) * int(shape[-2])
    path = yolo({"train/a.txt": "0 .5 .25 .2 .5" + " 0.9" * count}, yaml)
    np.testing.assert_allclose(read_records(path, "yolo")[0][0].boxes, [[24, 0, 36, 20]])  # 60 wide, 40 high
    for fields in (5, count + 4, count + 6, count + 7):
        (path / "labels/train/a.txt").write_text("\n0" + " .5" * (fields - 1))
        message = f"labels/train/a.txt line 2: {fields} fields, expected {5 + count}: class cx cy w h and"
        assert read_error(path).startswith(message)


def test_what_in_data_yaml_is_not_used_is_said_once(yolo):
    yaml = "train: images/train\nnames: [cat, dog]\nnc: 2\ndownload: x\nroboflow: {a: b}\n"
    path = yolo({"train/a.txt": "0 .5 .5 .5 .5"}, yaml)
    assert len(read_records(path, "yolo")[0]) == 2  # or the warning would be an error
    (path / "data.yaml").write_text(yaml.replace("nc: 2", "nc: 3\nvals: x\nkeys: [1]"))
    problems = []
    read_records(path, "yolo", problems=problems)
    assert [(problem.severity, str(problem)) for problem in problems] == [
        ("warning", "data.yaml: nc: number of classes ('3') that is not the number of names (2), which counts"),
        ("warning", "data.yaml: vals: key unknown, not used"),
        ("warning", "data.yaml: keys: key unknown, not used"),
    ]
    (path / "data.yaml").write_text(f"{yaml}other: 1\nmore: 2\n")
    with pytest.warns(UserWarning, match=r"^2 keys unknown, not used, first data.yaml: other$"):
        read_records(path, "yolo")


def test_the_folder_a_command_runs_in_changes_nothing(yolo, draw_picture, tmp_path, monkeypatch):
    path = yolo({"train/a.txt": "0 .5 .5 .5 .5"}, "path: set\ntrain: images/train\nnames: [cat]\n")
    draw_picture("elsewhere/set/images/train/wrong.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [record.path[-5:] for record in read_records(path, "yolo")[0]] == ["a.png", "b.png"]


def test_valid_is_val_as_a_key_and_as_a_split(yolo):
    path = yolo(
        {"v/c.txt": "0 .5 .5 .5 .5"}, "train: images/train\nvalid: images/v\nnames: [cat]\n", ("train/a.png", "v/c.png")
    )
    assert split_names(path) == ("train", "val")
    for split in ("val", "valid", "validation"):
        assert [record.path[-5:] for record in read_records(path, "yolo", split=split)[0]] == ["c.png"]


def test_outlines_give_the_box_around_them_and_are_counted(yolo):
    path = yolo({"train/a.txt": "0 0.1 0.5 0.4 0.1 0.2 0.9"})
    with pytest.warns(UserWarning, match="^1 outline read as the box around it, first labels/train/a.txt line 1$"):
        records, _ = read_records(path, "yolo")
    np.testing.assert_allclose(records[0].boxes, [[6, 4, 24, 36]], rtol=1e-6)


def test_what_few_digits_put_outside_is_no_reason_for_a_note(yolo):
    records, _ = read_records(yolo({"train/a.txt": "0 0.166667 0.5 0.333335 1.000001"}), "yolo")
    np.testing.assert_array_equal(records[0].boxes[0, [0, 1, 3]], [0, 0, 40])


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("0 .5 .5 .5", "field-count", "4 fields, expected 5: class cx cy w h"),
        ("0 .5 .5 .5 .5 .9", "field-count", "6 fields, expected 5"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "field-count", "8 fields"),
        ("2 .5 .5 .5 .5", "unknown-class", "class 2 is no number of a class in data.yaml"),
        ("-1 .5 .5 .5 .5", "unknown-class", "class -1 is"),
        ("cat .5 .5 .5 .5", "unknown-class", "class cat is"),
        (f"{'9' * 5000} .5 .5 .5 .5", "unknown-class", "class 999"),
        ("0 .5 x .5 .5", "bad-number", "(.5 x .5 .5) must be shares of the picture's width and height, 0 to 1"),
        ("0 320 .5 .5 .5", "bad-number", "(320 .5 .5 .5) must be shares"),
        ("0 nan .5 .5 .5", "bad-number", "must be shares"),
        ("0 .5 .5 1e308 .5", "bad-number", "must be shares"),
        ("0 .5 .5 -.5 .5", "swapped-box", "right side (15) must be greater than left side (45)"),
        ("0 .5 .5 .5 0", "degenerate-box", "without width or height"),
        ("0 1.2 .5 .1 .1", "outside-box", "lies outside its picture, 60 wide and 40 high"),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_line(yolo, line, kind, message):
    path = yolo({"train/a.txt": f"0 .5 .5 .5 .5\n{line}\n"})
    problems = []
    records, _ = read_records(path, "yolo", problems=problems)
    assert [(problem.kind, problem.file, problem.line) for problem in problems] == [(kind, "labels/train/a.txt", 2)]
    assert message in problems[0].message
    assert [len(record.boxes) for record in records] == [1, 0]
    if kind != "degenerate-box":
        assert read_error(path).startswith("labels/train/a.txt line 2: ") and message in read_error(path)


def test_label_files_that_cannot_be_read_or_have_no_picture_are_counted(yolo):
    labels = {
        "train/a.txt": b"0 .5 .5 .5 .5 gr\xf6",
        "train/b.txt/x": "",
        "train/c.txt": "",
        "train/classes.txt": "cat",
    }
    problems = []
    records, _ = read_records(yolo(labels), "yolo", problems=problems)
    assert [(problem.kind, problem.file) for problem in problems] == [
        ("unreadable-file", "labels/train/a.txt"),
        ("unreadable-file", "labels/train/b.txt"),
        ("missing-picture", "labels/train/c.txt"),
    ]
    assert problems[2].severity == "warning"
    assert len(records) == 2


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", "is no data.yaml: expected names"),
        ("- a", "is no data.yaml"),
        ("train: images\n", "expected names, a list of the classes or a mapping"),
        ("train: images\nnames: cat", "expected names"),
        ("train: images\nnames: []", "expected names"),
        ("train: images\nnames: [cat, cat]", "entry '1': an entry before has the same name"),
        ("train: images\nnames: [cat, '']", "entry '1': expected a number from 0 and a name"),
        ("train: images\nnames: [cat, [a]]", "entry '1': expected"),
        ("train: images\nnames: {a: cat}", "entry 'a': expected"),
        ("train: images\nnames: [cat]\nkpt_shape: [17]", "kpt_shape: expected [number of points, 2 or 3]"),
        ("train: images\nnames: [cat]\nkpt_shape: [0, 3]", "kpt_shape: expected"),
        ("train: images\nnames: [cat]\nkpt_shape: {a: b}", "kpt_shape: expected"),
        ("train:\nnames: [cat]", "has no split 'train': it names none"),
        ("train: {a: b}\nnames: [cat]", "has no split 'train'"),
        ("train: nowhere\nnames: [cat]", "data.yaml: train: no folder or list of pictures at"),
        ("train: labels\nnames: [cat]", "no picture in train"),
        ("a: [1\nb: 2", "line 2: not valid YAML"),
        ("a: \tb: - c", "not valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b", "aliases (*name) and deep nesting"),
        ("names: [x]\ntrain: a\nnames: [y]", "line 3: names stands here again, first in line 1"),
        ("a: " + "[" * 200 + "]" * 200, "aliases (*name) and deep nesting"),
        ("? [a]\n: b", "not valid YAML"),
        ("x" * 2**20 + "y", "of more than 1 MiB is not read"),
    ],
)
def test_what_is_no_data_yaml_is_said_in_one_sentence(yolo, yaml, message):
    path = yolo({"a/x": ""}, yaml)
    assert message in read_error(path)
    assert len(read_error(path)) < 600


def test_aliases_do_not_cost_the_memory_they_stand_for(yolo):
    """Nine lists of nine times the one before: 9 ** 9 names."""
    lists = "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
    )
    assert "aliases" in read_error(yolo({}, f"a: &a [x, x, x]\n{lists}<<: [*i]\nnames: *i"))


def test_names_that_leave_the_folder_are_a_warning_or_an_error(yolo, draw_picture, tmp_path):
    path = yolo({}, "train: list.txt\nnames: [cat]")
    inner = path / "inner"
    inner.mkdir()
    (path / "data.yaml").rename(inner / "data.yaml")
    (inner / "list.txt").write_text("../images/train/a.png\n")
    with pytest.warns(UserWarning, match="^1 name outside the folder of the data, first list.txt line 1$"):
        assert len(read_records(inner, "yolo")[0]) == 1
    assert read_error(inner, outside="error").startswith("list.txt line 1: ../images/train/a.png leaves the folder")


def test_what_is_no_yolo_data_set(tmp_path):
    for place in (tmp_path, tmp_path / "absent", tmp_path / "x.txt"):
        assert f"{place} is no YOLO data set: expected a data.yaml" in read_error(place)


def test_format_auto_tells_all_four_apart(yolo, tmp_path):
    path = yolo({})
    places = {".": "yolo", "data.yaml": "yolo", "x.YML": "yolo", "x.json": "coco", "x.txt": "simple", "labels": "voc"}
    (path / "labels").mkdir()
    assert {place: find_format(path / place) for place in places} == places
    (path / "args.yaml").write_text("names: x")
    assert find_format(path) == "yolo"
    (path / "data.yaml").rename(path / "set.yaml")
    assert find_format(path) == "yolo"  # the other names no pictures
    (path / "args.yaml").write_text("names: [x]\ntrain: x")
    assert find_format(path) == "voc"  # which of two is not to be guessed
    (path / "args.yaml").write_text("epochs: 5")
    assert find_format(path) == "yolo"
    (path / "args.yaml").unlink()
    (path / "set.yaml").write_text("epochs: 5")
    assert find_format(path) == "voc"
    (path / "data.yaml").write_text("names: [cat")
    assert find_format(path) == "yolo"  # whose reader says what is broken
    for name in ("Annotations", "JPEGImages"):
        (path / name).mkdir()
    assert find_format(path) == "voc"


def test_pictures_of_a_folder_that_lost_its_labels_are_counted(yolo):
    yaml = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
    path = yolo({"train/a.txt": "0 .5 .5 .2 .2"}, yaml, ("train/a.png", "train/b.png", "val/c.png"))
    with pytest.warns(UserWarning, match="^1 picture in a folder without any label file, taken for background"):
        assert len(read_records(path, "yolo", split="all")[0]) == 3
