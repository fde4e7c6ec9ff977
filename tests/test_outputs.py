import json
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
import pytest

from frcnn.data.readers import read_records
from frcnn.outputs import (
    crop_folders,
    unique_names,
    unique_stems,
    write_crops,
    write_csv,
    write_json,
    write_voc,
    write_yolo,
)
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
    detections[1] = replace(detections[1], size=(10, 20))
    _, images_path = write_json(tmp_path / "detections.json", detections)
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


def test_json_may_begin_with_a_picture_without_detections(tmp_path, detections):
    path, _ = write_json(tmp_path / "detections.json", detections[1:])
    assert [entry["image_id"] for entry in json.loads(path.read_text(encoding="utf-8"))] == [2]


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
def test_a_stream_is_written_as_it_comes(tmp_path, detections, write):
    write(tmp_path / "list.json", detections)
    write(tmp_path / "stream.json", iter(detections))
    assert (tmp_path / "list.json").read_bytes() == (tmp_path / "stream.json").read_bytes()

    def broken():
        yield detections[0]
        raise RuntimeError("in the middle")

    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="in the middle"):
        write(tmp_path / "other.json", broken())
    assert sorted(file.name for file in tmp_path.iterdir()) == before


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


@pytest.mark.parametrize("write", [write_json, write_csv, write_voc, write_yolo])
def test_a_score_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, write):
    broken = Detections([[0, 0, 1, 1]], [np.nan], [0], NAMES, "b.jpg", (5, 5))
    with pytest.raises(ValueError, match=r"b.jpg: a box or score is not finite"):
        write(tmp_path / "detections.out", broken if write in (write_voc, write_yolo) else [broken])
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_does_not_belong_together(tmp_path, detections):
    with pytest.raises(ValueError, match=r"detections 3 \(x.jpg\) name the classes"):
        write_json(tmp_path / "detections.json", [*detections, Detections([], [], [], ("other",), "x.jpg")])


def test_voc_counts_from_one_and_includes_the_last_pixel(tmp_path):
    """(0, 0, 5, 5) is pixels 1 to 5; 1.5 rounds to even; what is thinner than a pixel keeps one; all stay inside."""
    boxes = [[0, 0, 5, 5], [1.5, 2.4, 11.6, 20], [7.1, 3, 7.3, 4], [39.8, 0, 40, 20]]
    found = Detections(boxes, [0.9876543, 0.5, 0.4, 0.1], [0, 1, 0, 0], NAMES, "street/a & b.jpg", (20, 40))
    write_voc(tmp_path / "voc" / "a.xml", found)
    text = (tmp_path / "voc" / "a.xml").read_text(encoding="utf-8")
    values = {tag: [part.partition("<")[0] for part in text.split(f"<{tag}>")[1:]] for tag in ("xmin", "ymin", "xmax")}
    assert values == {"xmin": ["1", "3", "8", "40"], "ymin": ["1", "3", "4", "1"], "xmax": ["5", "12", "8", "40"]}
    assert [part.partition("<")[0] for part in text.split("<score>")[1:]] == ["0.98765", "0.5", "0.4", "0.1"]
    assert all(
        part in text for part in ("<filename>a &amp; b.jpg<", "<folder>street<", "<name>Größe, 大<", "<width>40<")
    )


def test_the_reader_of_voc_gives_the_boxes_back(tmp_path, draw_picture):
    root = tmp_path / "VOC"
    for index in range(2):
        draw_picture(f"VOC/JPEGImages/{index}.png", 30, 50, seed=index)
    boxes, path = [[0, 0, 50, 30], [7, 8, 20, 21]], str(root / "JPEGImages" / "0.png")
    write_voc(root / "Annotations" / "0.xml", Detections(boxes, [0.9, 0.8], [1, 0], NAMES, path, (30, 50)))
    write_voc(root / "Annotations" / "1.xml", Detections([], [], [], NAMES, path.replace("0.png", "1.png"), (30, 50)))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("0\n1\n")
    (first, second), class_names = read_records(root, "voc", NAMES)
    assert (first.boxes.tolist(), first.labels.tolist(), class_names) == (boxes, [1, 0], NAMES)
    assert (len(second.boxes), second.size) == (0, (30, 50))


def test_yolo_writes_centres_and_sides_as_shares_of_the_picture(tmp_path):
    """(10, 5, 30, 20) in 40 x 20: centre (20, 12.5), sides (20, 15)."""
    found = Detections([[10, 5, 30, 20], [0, 0, 40, 20]], [0.75, 0.123456], [1, 0], NAMES, "a.jpg", (20, 40))
    write_yolo(tmp_path / "yolo" / "a.txt", found)
    assert (tmp_path / "yolo" / "a.txt").read_text() == (
        "1 0.500000 0.625000 0.500000 0.750000 0.75000\n0 0.500000 0.500000 1.000000 1.000000 0.12346\n"
    )
    write_yolo(tmp_path / "b.txt", Detections([], [], [], NAMES, "b.jpg", (20, 40)))
    assert (tmp_path / "b.txt").read_bytes() == b""


def test_crops_are_the_pixels_of_the_boxes_in_a_folder_a_class(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    image = cv2.resize(image[:5, :10], (40, 20))
    names = ("cat", "a/b", "a:b", "..")
    boxes = [[10.6, 5.2, 29.4, 19.5], [-2, -3, 8, 9], [39.9, 19.9, 60, 60], [0, 0, 4, 4], [1, 1, 1, 1]]
    found = Detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 2, 3], names)
    write_crops(tmp_path, "sub/p.v2", image, found)
    written = {file.relative_to(tmp_path).as_posix(): file for file in tmp_path.rglob("*.jpg")}
    assert set(written) == {f"{folder}/sub/p.v2_{index}.jpg" for folder, index in
                            [("cat", 1), ("cat", 2), ("1_a_b", 3), ("2_a_b", 4), ("3_", 5)]}  # fmt: skip
    sizes = {name: cv2.imread(str(file)).shape[:2] for name, file in written.items()}
    assert list(dict(sorted(sizes.items(), key=lambda item: item[0][-5])).values()) == [
        (15, 20), (9, 8), (1, 1), (4, 4), (1, 1)
    ]  # fmt: skip
    crop = cv2.imread(str(written["cat/sub/p.v2_1.jpg"]))[:, :, ::-1].astype(int)
    assert np.abs(crop - image[5:20, 10:30]).mean() < 12  # JPEG


def test_stems_of_equal_names_keep_their_suffix():
    names = ["a.jpg", "b.jpg", "b.png", "c/b.png", "v1.2.jpg", "classes.jpg", "c/classes.jpg"]
    assert unique_stems(names) == ["a", "b.jpg", "b.png", "c/b", "v1.2", "classes.jpg", "c/classes"]
    assert unique_stems({}.values()) == []
    # The whole name of one is the stem of another; a folder is called what a file beside a picture would be.
    assert unique_stems(["a.png", "a.jpg", "a.png.png"]) == ["a.png", "a.jpg", "a.png.png"]
    assert unique_stems(["b.png", "b.xml/c.png", "d.png", "d_1.jpg/e.png"]) == [
        "b.png",
        "b.xml/c",
        "d.png",
        "d_1.jpg/e",
    ]
    assert unique_stems(["classes.png", "classes"]) == ["classes.png", "classes_2"]
    assert unique_stems(["A.png", "a.jpg"]) == ["A", "a"]
    assert unique_stems(["A.png", "a.jpg", "a.PNG"], str.casefold) == ["A.png", "a.jpg", "a_2.PNG"]


def test_names_are_numbered_where_they_come_again():
    assert unique_names(["a.png", "A.png", "a_2.png", "A.PNG"], str.casefold) == [
        "a.png",
        "A_3.png",
        "a_2.png",
        "A_4.PNG",
    ]
    assert unique_names(["a.png", "A.png"]) == ["a.png", "A.png"]


def test_each_class_has_a_folder_of_its_own():
    names = ("a/b", "0_a_b", "a b", "..", "end.", "CON", "con.x", "Car", "car", "", "n" * 300, "größe")
    found = crop_folders(names)
    assert found == [
        *("0_a_b", "0_a_b_2", "a b", "3_", "4_end", "5_CON", "6_con.x", "Car", "car", "9_"), found[10], "größe"
    ]  # fmt: skip
    assert len(found[10]) <= 255 and crop_folders(names, str.casefold)[7:9] == ["Car", "car_2"]


def test_one_crop_that_its_format_cannot_hold_does_not_cost_the_others(tmp_path):
    found = Detections([[0, 0, 66_000, 2], [0, 0, 9, 2]], [0.9, 0.8], [0, 0], ("wide",), "a.png")
    with pytest.raises(ValueError, match=r"a_1.jpg: .*a side of 66,000 pixels is more than the 65,500 that .jpg holds"):
        write_crops(tmp_path, "a", np.zeros((2, 66_000, 3), np.uint8), found)
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["a_2.jpg"]


@pytest.mark.parametrize("path", ["a\rb.png", "a\nb.png", "a\x01b.png", "a\udcffb.png", "a\ufffe,b.png", '<&a>".png'])
def test_every_name_that_a_file_may_have_is_read_back(tmp_path, path):
    found = Detections([[1, 2, 3, 4]], [0.5], [0], ("a\x02b",), path, (9, 9))
    escaped = path.encode(errors="backslashreplace").decode()
    assert json.loads(write_json(tmp_path / "a.json", [found])[0].read_text(encoding="utf-8"))[0]["file_name"] == path
    rows = pd.read_csv(write_csv(tmp_path / "a.csv", [found, found]))
    assert rows["file"].tolist() == [escaped] * 2 and rows["score"].tolist() == [0.5] * 2
    write_voc(tmp_path / "a.xml", found)
    tree = ElementTree.parse(tmp_path / "a.xml")
    in_xml = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in path)
    assert (tree.findtext("filename"), tree.findtext("path")) == (in_xml, in_xml)
    assert tree.findtext("object/name") == "a\\x02b"
