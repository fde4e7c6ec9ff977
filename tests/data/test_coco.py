import json
from pathlib import Path

import numpy as np
import pytest

from frcnn.data.readers import find_format, read_records, split_names
from frcnn.data.readers.coco import FOLDER_FILE
from tests.contracts import assert_is_record


def box(image_id=1, category_id=1, bbox=(1, 2, 10, 20), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


@pytest.fixture
def coco(tmp_path, draw_picture):
    """Write instances_val.json beside pictures a.png and b.png (40 high, 60 wide) with ids 1 and 2."""
    for name in ("a.png", "b.png"):
        draw_picture(name)

    def write(
        *annotations, images=(), categories=((1, "cat"),), place="instances_val.json", pictures=("a.png", "b.png")
    ):
        listed = [{"id": number, "file_name": name} for number, name in enumerate(pictures, start=1)]
        named = [{"id": number, "name": name} for number, name in categories]
        content = {"info": {}, "images": [*listed, *images], "annotations": annotations, "categories": named}
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def read_error(path, **options):
    with pytest.raises(ValueError, match="json") as caught:
        read_records(path, "coco", **options)
    return str(caught.value)


def test_boxes_are_left_top_width_height_and_crowds_are_marked(coco, tmp_path):
    path = coco(box(bbox=(1.5, 2, 10, 20)), box(2, bbox=(0, 0, 60, 40), iscrowd=1), box(bbox=(5, 5, 1, 1), iscrowd=0))
    records, class_names = read_records(path, "auto")
    assert class_names == ("cat",)
    assert [record.path for record in records] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    np.testing.assert_array_equal(records[0].boxes, [[1.5, 2, 11.5, 22], [5, 5, 6, 6]])
    assert [record.crowd.tolist() for record in records] == [[False, False], [True]]
    for record in records:
        assert record.size == (40, 60)
        assert_is_record(record, class_names)


def test_classes_go_by_id_and_ids_may_have_gaps_and_no_boxes(coco):
    path = coco(box(category_id=90), box(category_id=2), categories=[(90, "dog"), (2, " zebra "), (7, "cat")])
    records, class_names = read_records(path, "coco")
    assert class_names == ("zebra", "cat", "dog")
    assert records[0].labels.tolist() == [2, 0]


def test_a_picture_without_annotations_is_background_and_ids_may_be_texts(coco):
    path = coco(box("x"), images=[{"id": "x", "file_name": "./c/../b.png"}], pictures=("a.png",))
    records, _ = read_records(path, "coco")
    assert [len(record.boxes) for record in records] == [0, 1]


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "images/val"),
        ("annotations/x.json", "images"),
        ("annotations/x.json", "."),
        ("x.json", "images"),
    ],
)
def test_pictures_are_found_where_coco_and_its_followers_put_them(coco, draw_picture, place, folder):
    picture = draw_picture(f"{folder}/c.png")
    records, _ = read_records(coco(box(), pictures=("c.png",), place=place), "coco")
    assert records[0].path == str(picture)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("text", "annotations[1]: an annotation needs a bbox"),
        (
            {"id": 34, "image_id": 1, "category_id": 1},
            "annotations[1] (id 34): an annotation needs a bbox of four numbers",
        ),
        (box(bbox=(1, 2, 3)), "annotations[1]: an annotation needs a bbox"),
        (box(3), "annotations[1]: image_id 3 is the id of no image"),
        (box([1]), "annotations[1]: image_id None is the id of no image"),
        (box(category_id=2), "annotations[1]: category_id 2 is the id of no category"),
        (box(bbox=(1, 2, -3, 4)), "annotations[1]: x + width (-2) must be greater than x (1)"),
        (box(bbox=(None, 2, 3, 4)), "annotations[1]: x (nan) is not a finite number"),
        (box(bbox=(1, "two", 3, 4)), "annotations[1]: y (nan) is not a finite number"),
        (box(bbox=(1, 2, float("inf"), 4)), "annotations[1]: x + width (inf) is not a finite number"),
        (box(bbox=(1, 2, 1e308, 4)), "annotations[1]: x + width (1e+308) is not a finite number"),
        (box(bbox=(1, 2, 3, 10**400)), "annotations[1]: y + height (inf) is not a finite number"),
        (box(bbox=(60, 2, 3, 4)), "annotations[1]: box (60, 2, 63, 6) lies outside its picture, 60 wide and 40 high"),
    ],
)
def test_a_mistake_names_the_entry(coco, annotation, message):
    path = coco(box(), annotation)
    assert f"instances_val.json: {message}" in read_error(path).splitlines()[0]
    problems = []
    records, _ = read_records(path, "coco", problems=problems)
    assert [len(record.boxes) for record in records] == [1, 0]
    assert str(problems[0]).startswith(f"instances_val.json: {message}") and problems[0].line is None


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ({"file_name": "a.png"}, "broken-entry"),
        ({"id": 3, "file_name": ""}, "broken-entry"),
        ({"id": True, "file_name": "c.png"}, "broken-entry"),
        ({"id": 1, "file_name": "c.png"}, "repeated-id"),
        ({"id": 3, "file_name": "./a.png"}, "repeated-picture"),
        ({"id": 3, "file_name": "c\ud800\0.png"}, "missing-picture"),
        ({"id": 3, "file_name": "broken.png"}, "unreadable-picture"),
    ],
)
def test_a_wrong_image_is_a_problem(coco, tmp_path, image, kind):
    (tmp_path / "broken.png").write_text("no picture")
    problems = []
    records, _ = read_records(coco(box(), images=[image]), "coco", problems=problems)
    assert [(problem.kind, problem.message[:9]) for problem in problems] == [(kind, "images[2]")]
    assert len(records) == 2
    assert problems[0].message.isprintable()


def test_wrong_categories_are_problems(coco):
    categories = [(1, "cat"), (2, "cat"), (1, "dog"), (None, "cow"), (4, "")]
    problems = []
    assert read_records(coco(box(), categories=categories), "coco", problems=problems)[1] == ("cat",)
    assert [problem.kind for problem in problems] == ["repeated-class"] * 2 + ["broken-entry"] * 2
    assert [problem.severity for problem in problems] == ["warning", "error", "error", "error"]


@pytest.mark.parametrize(
    ("categories", "used", "expected", "labels", "note"),
    [
        ([(0, "cat", "none"), (1, "cat", "cat")], [1, 0], ("cat",), [0, 0], "name taken by a category before, joined"),
        (
            [(0, "pets", "none"), (1, "dog", "pets"), (2, "cat", "pets")],
            [2, 1],
            ("dog", "cat"),
            [1, 0],
            "category name of a group",
        ),
        ([(0, "pets", "none"), (1, "dog", "pets")], ["0", 1], ("pets", "dog"), [0, 1], "annotation with an id"),
        ([(0, "pets", "none"), (1, "dog", "pets")], [0, 1], ("pets", "dog"), [0, 1], None),
        ([(0, "dog", "dog"), (1, "cat", "none")], [1], ("dog", "cat"), [1], None),
    ],
)
def test_categories_of_one_name_are_one_and_groups_are_none(coco, recwarn, categories, used, expected, labels, note):
    path = coco(*(box(category_id=number) for number in used))
    content = json.loads(path.read_text())
    content["categories"] = [dict(zip(("id", "name", "supercategory"), entry, strict=True)) for entry in categories]
    path.write_text(json.dumps(content))
    records, class_names = read_records(path, "coco")
    assert (class_names, records[0].labels.tolist()) == (expected, labels)
    shown = [str(warning.message) for warning in recwarn]
    assert len(shown) == (note is not None) and all(note in text for text in shown)


def test_ids_of_another_type_are_used_and_counted_in_one_note(coco):
    path = coco(
        box("1", "1", iscrowd="1"), box("2"), box(2), box("x"), images=[{"id": "x", "file_name": "./c/../b.jpg"}]
    )
    Path(path.parent, "b.jpg").write_bytes(Path(path.parent, "a.png").read_bytes())
    with pytest.warns(UserWarning, match=r"^2 annotations with an id of another type .* first .* annotations\[0\]$"):
        records, _ = read_records(path, "coco")
    assert [record.crowd.tolist() for record in records] == [[True], [False, False], [False]]
    assert "image_id 01 is the id of no image" in read_error(coco(box("01")))


def test_boxes_without_width_are_left_out_and_counted(coco):
    with pytest.warns(UserWarning, match=r"^1 box left out, without .* first instances_val.json: annotations\[1\]$"):
        records, _ = read_records(coco(box(), box(bbox=(3, 3, 0, 5))), "coco")
    assert len(records[0].boxes) == 1


def test_a_class_name_that_no_file_gives_back_is_refused(coco):
    path, problems = coco(box(), categories=[(1, "c\nat")]), []
    assert read_error(path).startswith(f"{path}: the class name 'c\\nat' holds '\\n'")
    read_records(path, "coco", problems=problems)
    assert [problem.kind for problem in problems] == ["class-name"]
    assert read_records(path, "coco", class_names=("c\nat",))[1] == ("c\nat",)  # a model of old


def test_a_class_that_the_model_does_not_have(coco):
    assert read_error(coco(box()), class_names=("dog",)).endswith("class 'cat' is not one of the model's classes: dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: broken JSON"),
        ('{"images": [],\n', "line 2: broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' * 100_000, "nested too deeply"),
        ("[]", "expected an object with a list 'images'"),
        ('{"images": {}}', "expected an object with a list 'images'"),
        ('{"images": [], "annotations": []}', "expected an object with a list 'categories'"),
        ('{"images": [' + "9" * 5000 + "]}", "broken JSON"),
        ("größe".encode("latin-1"), "line 1: byte 0xf6 is not UTF-8"),
        (b"\xff\xfe{\0", "is UTF-16 text"),
    ],
)
def test_what_is_no_coco_file_is_said_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for problems in (None, []):
        error = read_error(path, problems=problems)
        assert message in error and len(error.splitlines()) == 1 and len(error) < 300
    assert "has no split 'val': it is not in parts" in read_error(path, split="val")


def test_names_that_leave_the_folder_are_a_warning_or_an_error(coco, tmp_path, draw_picture):
    draw_picture("sets/c.png")
    path = coco(box(), place="sets/x.json", pictures=("../a.png", str(tmp_path / "b.png"), "d/../c.png"))
    with pytest.warns(
        UserWarning, match=r"^1 name outside the folder of the data, first x.json: images\[0\] \(id 1\)$"
    ):
        records, _ = read_records(path, "coco")
    assert [Path(record.path).name for record in records] == ["a.png", "b.png", "c.png"]
    first, second = read_error(path, outside="error").splitlines()
    assert first.startswith("x.json: images[0] (id 1): ../a.png leaves the folder of the data")
    assert second.startswith("x.json: images[1] (id 2): /")


@pytest.fixture
def roboflow(coco, draw_picture):
    """Write _annotations.coco.json and a picture into folders, with the group that Roboflow makes category 0."""

    def write(*folders, group="none", names=("cat", "dog"), **more):
        for place in folders:
            draw_picture(f"{place}/{place[0]}.png")
            path = coco(box(category_id=1), pictures=[f"{place[0]}.png"], place=f"{place}/_annotations.coco.json")
            content = json.loads(path.read_text())
            entries = [{"id": number, "name": name, "supercategory": "pets"} for number, name in enumerate(names, 1)]
            content["categories"] = [{"id": 0, "name": "pets", "supercategory": group}, *entries]
            path.write_text(json.dumps(content | more))
        return path.parents[1]

    return write


@pytest.mark.filterwarnings("ignore:. category names? of a group of others only:UserWarning")
def test_roboflows_folders_are_splits_and_one_of_them_is_read_alone(roboflow):
    path = roboflow("train", "valid", "test")
    assert (find_format(path), split_names(path)) == ("coco", ("train", "val", "test"))
    shown = {
        split: [Path(record.path).name for record in read_records(path, "auto", split=split)[0]]
        for split in (None, "val", "valid", "test")
    }
    assert shown == {None: ["t.png"], "val": ["v.png"], "valid": ["v.png"], "test": ["t.png"]}
    records, class_names = read_records(path, "coco", split="all")
    places = [path / "train/t.png", path / "valid/v.png", path / "test/t.png"]
    assert [record.path for record in records] == list(map(str, places))
    assert [record.source for record in records] == [f"{place.parent.name}/{FOLDER_FILE}" for place in places]
    assert class_names == ("cat", "dog") and all(record.labels.tolist() == [0] for record in records)
    assert len(read_records(path / "valid", "auto")[0]) == 1
    assert find_format(path / "valid") == "coco" and split_names(path / "valid") == ()


def test_a_mistake_names_the_folder_of_its_file(roboflow):
    path = roboflow("train", "valid")
    file = path / "valid/_annotations.coco.json"
    file.write_text(file.read_text().replace('"bbox": [1', '"bbox": ["x"'))
    problems = []
    read_records(path, "auto", split="all", problems=problems)
    assert [problem.file for problem in problems if problem.severity == "error"] == ["valid/_annotations.coco.json"] * 2
    with pytest.raises(ValueError, match="is a folder without _annotations"):
        read_records(path.parent, "coco")


def test_the_group_that_roboflow_lists_is_no_class_unless_it_has_boxes(roboflow):
    path = roboflow("train")
    with pytest.warns(UserWarning, match=r"^1 category name of a group of others only, no class, first train/"):
        assert read_records(path, "auto")[1] == ("cat", "dog")
    assert read_records(roboflow("train", annotations=[box(category_id=0)]), "auto")[1] == ("pets", "cat", "dog")
    assert read_records(roboflow("train", group="animals"), "auto")[1] == ("pets", "cat", "dog")


def test_classes_of_several_files_are_joined(roboflow):
    path = roboflow("train", group="x")
    roboflow("valid", group="x", names=("dog", "cow"))
    records, class_names = read_records(path, "auto", split="all")
    assert class_names == ("pets", "cat", "dog", "cow")
    assert [record.labels.tolist() for record in records] == [[1], [2]]
