import json

import numpy as np
import pandas as pd
import pytest

from frcnn.outputs import write_csv, write_json
from frcnn.records import Detections
from tests.contracts import assert_is_detections

NAMES = ("red cell", "Größe, 大")


@pytest.fixture
def detections():
    """Two detections, none, one; the second picture must not get lost."""
    return [
        Detections([[1.234, 2, 11.239, 22.1], [0, 0, 5, 5]], [0.9876543, 0.5], [1, 0], NAMES, "a.jpg"),
        Detections([], [], [], NAMES, "folder/empty, one.jpg"),
        Detections([[3, 4, 5, 6]], [0.25], [0], NAMES, ""),
    ]


def test_json_is_a_coco_results_list(tmp_path, detections):
    path, _ = write_json(tmp_path / "new" / "folder" / "detections.json", detections)
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results[0] == {
        "image_id": 1,
        "category_id": 2,
        "bbox": [1.23, 2.0, 10.01, 20.1],
        "score": 0.98765,
        "file_name": "a.jpg",
        "category_name": "Größe, 大",
    }
    assert [(entry["image_id"], entry["category_id"]) for entry in results] == [(1, 2), (1, 1), (3, 1)]
    assert "Größe, 大" in path.read_text(encoding="utf-8")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2 + len(results)


def test_json_lists_every_picture_and_class_beside_the_results(tmp_path, detections):
    _, images_path = write_json(tmp_path / "detections.json", detections, [(480, 640), (10, 20), (7, 9)])
    assert images_path == tmp_path / "detections.images.json"
    listed = json.loads(images_path.read_text(encoding="utf-8"))
    assert [image["detections"] for image in listed["images"]] == [2, 0, 1]
    assert listed["images"][1] == {
        "id": 2,
        "file_name": "folder/empty, one.jpg",
        "detections": 0,
        "height": 10,
        "width": 20,
    }
    assert listed["categories"] == [{"id": 1, "name": "red cell"}, {"id": 2, "name": "Größe, 大"}]


def test_json_of_no_pictures(tmp_path):
    path, images_path = write_json(tmp_path / "detections.json", [])
    assert json.loads(path.read_text()) == []
    assert json.loads(images_path.read_text()) == {"images": [], "categories": []}


def test_csv_has_a_row_per_detection_and_an_empty_one_for_a_picture_without(tmp_path, detections):
    path = write_csv(tmp_path / "detections.csv", detections)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "file,x1,y1,x2,y2,score,class",
        'a.jpg,1.23,2.0,11.24,22.1,0.98765,"Größe, 大"',
        "a.jpg,0.0,0.0,5.0,5.0,0.5,red cell",
        '"folder/empty, one.jpg",,,,,,',
        ",3.0,4.0,5.0,6.0,0.25,red cell",
    ]


def test_csv_of_no_pictures_has_a_header(tmp_path):
    assert write_csv(tmp_path / "detections.csv", []).read_text() == "file,x1,y1,x2,y2,score,class\n"


def test_both_files_give_the_detections_back(tmp_path, detections):
    found = detections[0]
    table = pd.read_csv(write_csv(tmp_path / "detections.csv", [found]))
    results = json.loads(write_json(tmp_path / "detections.json", [found])[0].read_text(encoding="utf-8"))
    from_csv = Detections(
        table[["x1", "y1", "x2", "y2"]], table["score"], [NAMES.index(name) for name in table["class"]], NAMES
    )
    bbox = np.array([entry["bbox"] for entry in results])
    from_json = Detections(
        np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1),
        [entry["score"] for entry in results],
        [entry["category_id"] - 1 for entry in results],
        NAMES,
    )
    for restored in (from_csv, from_json):
        assert_is_detections(restored, NAMES)
        np.testing.assert_allclose(restored.boxes, found.boxes, atol=0.0051)
        np.testing.assert_allclose(restored.scores, found.scores, atol=5.1e-6)
        np.testing.assert_array_equal(restored.labels, found.labels)


@pytest.mark.parametrize("write", [write_json, write_csv])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, detections, write):
    path = tmp_path / "detections.out"
    write(path, detections)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("frcnn.files.os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(path, detections[:1])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("write", [write_json, write_csv])
def test_a_score_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, write):
    broken = Detections([[0, 0, 1, 1]], [np.nan], [0], NAMES, "b.jpg")
    with pytest.raises(ValueError, match=r"b.jpg: a box or score is not finite"):
        write(tmp_path / "detections.out", [broken])
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_does_not_belong_together(tmp_path, detections):
    with pytest.raises(ValueError, match="1 sizes but 3 detections"):
        write_json(tmp_path / "detections.json", detections, [(1, 1)])
    with pytest.raises(ValueError, match=r"detections 3 \(x.jpg\) name the classes"):
        write_json(tmp_path / "detections.json", [*detections, Detections([], [], [], ("other",), "x.jpg")])
