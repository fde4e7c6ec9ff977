import json

import numpy as np
import pytest

from frcnn.convert import write_parts
from frcnn.data.readers import find_format, read_records
from frcnn.records import ImageRecord
from tests.contracts import assert_is_record

SIZE = {"original_width": 60, "original_height": 40}


def value(x=10, y=25, width=50, height=50, *labels, **more):
    return {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": list(labels or ["cat"]), **more}


def result(*arguments, kind="rectanglelabels", **more):
    return {"type": kind, "value": value(*arguments, **more), "image_rotation": 0, **SIZE}


def task(image="a.png", *annotations, number=7, **more):
    found = [each if isinstance(each, dict) else {"result": each} for each in annotations]
    return {"id": number, "data": {"image": image, "text": "x"}, "annotations": found, **more}


@pytest.fixture
def export(tmp_path, draw_picture):
    """Write a JSON export beside a.png and `d/b ü.png` (40 high, 60 wide)."""
    for name in ("a.png", "d/b ü.png"):
        draw_picture(name)

    def write(*tasks):
        path = tmp_path / "export.json"
        path.write_text(json.dumps(tasks), encoding="utf-8")
        return path

    return write


def read_error(path, format="auto"):
    with pytest.raises(ValueError, match=path.name) as caught:
        read_records(path, format)
    return str(caught.value)


def test_rectangles_are_percent_and_an_annotation_without_one_is_background(export):
    """(10, 25, 50, 50) percent of 60 x 40: left 6, top 10, 30 wide, 20 high."""
    path = export(task("a.png", [result(), result(0, 0, 100.0000001, 100, "dog", "cat")]), task("d/b ü.png", []))
    assert find_format(path) == "label-studio"
    records, class_names = read_records(path, "auto")
    assert class_names == ("cat", "dog") and [len(record.boxes) for record in records] == [3, 0]
    np.testing.assert_array_equal(records[0].boxes, [[6, 10, 36, 30], [0, 0, 60, 40], [0, 0, 60, 40]])
    assert records[0].labels.tolist() == [0, 1, 0]
    for record in records:
        assert_is_record(record, class_names)


def test_rows_of_json_min_are_read(export):
    rows = [{"id": 1, "image": "/data/upload/9/0a1b2c3d-a.png", "label": [value(**SIZE)], "annotator": 1}]
    path = export(*rows, {"id": 2, "photo": "d/b ü.png", "annotator": 1})
    records, _ = read_records(path, "auto")
    assert [record.boxes.tolist() for record in records] == [[[6, 10, 36, 30]], []]


@pytest.mark.parametrize(
    ("rotation", "box"),
    [
        (90, [4, 10, 24, 22]),  # 12 x 20 turned clockwise around (24, 10): 20 to the left, 12 down
        (180, [12, -10, 24, 10]),
        (-360, [24, 10, 36, 30]),
        (45, [24 - 20 / 2**0.5, 10, 24 + 12 / 2**0.5, 10 + 32 / 2**0.5]),
    ],
)
def test_of_a_turned_rectangle_the_box_around_is_taken(export, rotation, box):
    path = export(task("a.png", [result(40, 25, 20, 50, rotation=rotation)]))
    problems = []
    (record,), _ = read_records(path, "auto", problems=problems)
    np.testing.assert_allclose(record.boxes[0], np.clip(box, 0, None), rtol=1e-5)
    assert bool(problems) == (min(box) < 0)


@pytest.mark.parametrize(
    "image",
    [
        "d/b ü.png",
        "/data/local-files/?d=d/b%20%C3%BC.png",
        "/data/local-files/?d=root/of/server/d/b%20%C3%BC.png",
        "http://localhost:8080/data/local-files/?d=x/../d/b ü.png&y=1",
        "s3://bucket/key/d/b ü.png",
        "https://host/d/b%20%C3%BC.png?token=1",
        "/data/upload/12/deadbeef-d.png",
        "http://localhost:8080/data/upload/12/deadbeef-d.png",
    ],
)
def test_pictures_are_found_from_the_folder_of_the_export(export, draw_picture, image):
    draw_picture("d.png")
    (record,), _ = read_records(export(task(image, [result()])), "auto")
    assert record.path.endswith(("/d/b ü.png", "/d.png"))


@pytest.mark.filterwarnings("ignore:[0-9]+ (annotation|result)")
def test_what_is_not_used_is_counted(export):
    cancelled = {"was_cancelled": True, "result": [result(0, 0, 1, 1, "dog")]}
    others = [result(kind="choices"), {"type": "choices", "value": {"choices": ["x"]}}, {"type": "?", "value": {}}]
    path = export(
        task("a.png", cancelled, [result(), *others[1:]], [result(0, 0, 1, 1, "dog")], predictions=[{"result": [5]}]),
        task("no.png", cancelled, number=8),
        task("no.png", number=9),
    )
    problems = []
    records, class_names = read_records(path, "auto", problems=problems)
    assert class_names == ("cat",) and [len(record.boxes) for record in records] == [1]
    assert sorted(str(problem) for problem in problems if problem.severity == "warning") == [
        "export.json: [0] (id 7): annotation cancelled, not used",
        "export.json: [0] (id 7): annotation of further people, of whom the first counts",
        "export.json: [0] (id 7): result 2: result of another kind (choices), left out",
        "export.json: [0] (id 7): result 3: result of another kind (unknown), left out",
        "export.json: [1] (id 8): annotation cancelled, not used",
        "export.json: [1] (id 8): task without an annotation to use, left out",
        "export.json: [2] (id 9): task without an annotation to use, left out",
    ]
    assert len(problems) == 7
    with pytest.warns(UserWarning, match=r"^2 tasks without an annotation to use, left out, first export.json: \[1\]"):
        read_records(path, "auto")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([5, task("a.png", [result()])], "[0]: a task needs data, with the path of its picture"),
        ([task("a.png", [result()]), {"data": {"image": 5}, "annotations": []}], "[1]: a task needs data"),
        ([task("c.png", [result()])], "[0] (id 7): no picture at"),
        ([task("a.png", []), task("./a.png", [result()])], "[1] (id 7): "),
        ([task("a.png", [result(10, 25, "x")])], "[0] (id 7): result 1: right side (nan) is not a finite number"),
        ([task("a.png", [result(10**400)])], "result 1: left side (inf) is not a finite number"),
        ([task("a.png", [result(float("nan"))])], "result 1: left side (nan) is not"),
        ([task("a.png", [result(rotation=float("inf"))])], "result 1: left side (nan) is not"),
        ([task("a.png", [result(10, 25, -5)])], "right side (3) must be greater than left side (6)"),
        ([task("a.png", [{"value": value(rotation=5)}])], "a rectangle with a rotation needs original_width"),
        ([task("a.png", [result(1, 1, 5, 5, 7)])], "result 1: a rectangle needs rectanglelabels, a list of names"),
        ([task("a.png", [{**result(), "image_rotation": 90}])], "image_rotation 90 is not read: turn the picture"),
        ([task("a.png")], "has no task with an annotation that is not cancelled"),
        ([], "is no export of Label Studio: expected a list of tasks"),
        ([{"a": 1}, 5], "is no export of Label Studio: expected a list of tasks"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, "file_name": "a.png"}],
         "is a list of detections, as `frcnn detect` writes, and no file of annotations"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_task(export, tasks, message):
    path = export(*tasks)
    error = read_error(path)
    error = error.partition("\nwhere the pictures lie")[0]
    assert message in error and "\n" not in error.partition("is not a finite")[0]


def test_what_is_written_comes_back_with_any_letters_in_names(tmp_path, draw_picture):
    names = ("größe, \"big\" & 'small'", "zebra")
    paths = [str(draw_picture(f"out/{name}", 41, 67)) for name in ("ä 'x' \"y\" %41&?.png", "d/b.png")]
    boxes = np.array([[0.1, 2.7, 66.9, 41], [1e-3, 0, 1 / 3, 2 / 3]], np.float32)
    part = [ImageRecord(paths[0], (41, 67), boxes, [1, 0]), ImageRecord(paths[1], (41, 67), [], [])]
    write_parts(tmp_path / "out/tasks.json", {None: part}, names, "label-studio")
    assert "/data/local-files/?d=d/b.png" in (tmp_path / "out/tasks.json").read_text()
    (tmp_path / "out").rename(tmp_path / "moved")  # names inside the folder of the tasks are relative
    records, class_names = read_records(tmp_path / "moved/tasks.json", "auto")
    assert class_names == names and [len(record.boxes) for record in records] == [2, 0]
    np.testing.assert_allclose(records[0].boxes, boxes, atol=67e-6, rtol=0)
    assert [record.labels.tolist() for record in records] == [[1, 0], []]
