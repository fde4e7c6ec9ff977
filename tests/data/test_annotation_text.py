import os
from pathlib import Path

import numpy as np
import pytest

from frcnn.data.readers import PARSERS, read_records
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.data.readers.problems import ELSEWHERE
from frcnn.records import ImageRecord
from tests.contracts import assert_is_record


@pytest.fixture
def annotate(tmp_path, draw_picture):
    """Write annotation lines beside two pictures, a.png (40 high, 60 wide) and b.png, and return the file."""
    draw_picture("a.png")
    draw_picture("b.png")

    def write(*lines, encoding="utf-8", end="\n"):
        path = tmp_path / "annotations.txt"
        path.write_bytes(end.join(lines).encode(encoding))
        return path

    return write


def read_error(path, **options):
    with pytest.raises(ValueError, match="annotation") as caught:
        read_records(path, **options)
    return str(caught.value)


def test_reads_boxes_labels_and_sizes_in_order_of_first_appearance(annotate, tmp_path):
    path = annotate("b.png,1,2,30,20,dog", "a.png,0,0,60,40,cat", "b.png,5,5.5,6,7,cat")
    records, class_names = read_records(path)
    assert class_names == ("cat", "dog")
    assert [record.path for record in records] == [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    np.testing.assert_array_equal(records[0].boxes, [[1, 2, 30, 20], [5, 5.5, 6, 7]])
    assert records[0].labels.tolist() == [1, 0]
    assert records[1].labels.tolist() == [0]
    for record in records:
        assert record.size == (40, 60)
        assert_is_record(record, class_names)


def test_background_lines_and_bg_boxes_keep_their_picture(annotate):
    records, class_names = read_records(annotate("a.png,,,,,", "b.png,1,1,5,5,bg", "b.png,1,1,9,9,cat"))
    assert class_names == ("cat",)
    assert [len(record.boxes) for record in records] == [0, 1]
    assert_is_record(records[0])


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (["a.png,1,1,5,5,cat", "", ""], {}),
        (["a.png,1,1,5,5,cat", ""], {"end": "\r\n"}),
        (["a.png,1,1,5,5,cat"], {"encoding": "utf-8-sig"}),
        (["  a.png , 1,1 ,\t5,5 , cat  "], {}),
        (['"a.png",1,1,5,5,"cat"'], {}),
        (['"a.png" , 1, 1, 5, 5, "cat"'], {}),
        (['"a.png",1,1,5,5,"cat"', ""], {"end": "\r\n"}),
    ],
)
def test_accepts_the_usual_variations_of_text_files(annotate, lines, options):
    records, class_names = read_records(annotate(*lines, **options))
    assert class_names == ("cat",)
    np.testing.assert_array_equal(records[0].boxes, [[1, 1, 5, 5]])


def test_a_quoted_path_may_hold_commas_and_any_letters(annotate, draw_picture):
    draw_picture("größe, neu.png")
    records, _ = read_records(annotate('"größe, neu.png",1,1,5,5,cat'))
    assert Path(records[0].path).name == "größe, neu.png"


def test_paths_are_tried_from_the_annotations_then_from_the_working_directory(annotate, draw_picture, monkeypatch):
    elsewhere = draw_picture("elsewhere/c.png").parent
    monkeypatch.chdir(elsewhere)
    records, _ = read_records(annotate("c.png,1,1,5,5,cat", "a.png,1,1,5,5,cat", f"{elsewhere}/c.png,2,2,5,5,cat"))
    assert records[0].path == "c.png"
    assert len(records) == 3


def test_boxes_of_interleaved_pictures_keep_their_order(annotate):
    lines = [f"{'ab'[row % 2]}.png,0,0,{1 + row / 4},9,cat" for row in range(200)]
    for offset, record in enumerate(read_records(annotate(*lines))[0]):
        np.testing.assert_array_equal(record.boxes[:, 2], 1 + np.arange(offset, 200, 2) / 4)


def test_two_spellings_of_a_path_are_one_picture(annotate):
    records, _ = read_records(annotate("a.png,1,1,5,5,cat", "./a.png,2,2,5,5,cat"))
    assert [len(record.boxes) for record in records] == [2]


def test_given_class_names_keep_their_order(annotate):
    records, class_names = read_records(annotate("a.png,1,1,5,5,cat"), class_names=["dog", "cat"])
    assert class_names == ("dog", "cat")
    assert records[0].labels.tolist() == [1]


def test_given_class_names_allow_a_file_without_boxes(annotate):
    records, _ = read_records(annotate("a.png,,,,,"), class_names=["cat"])
    assert len(records) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,1,1,5,5", f"5 fields, expected 6: {'filepath,x1,y1,x2,y2,class_name'}"),
        ("a.png", "1 field, expected 6"),
        ("a.png,1,1,5,5,cat,0.9", "7 fields, expected 6"),
        ('"a.png,1,1,5,5,cat', "1 field, expected 6"),
        ("a.png,one,1,5,5,cat", "x1 (one) is not a finite number"),
        ("a.png,1,nan,5,5,cat", "y1 (nan) is not a finite number"),
        ("a.png,1,1,inf,5,cat", "x2 (inf) is not a finite number"),
        ("a.png,1,1,5,1e99,cat", "y2 (1e99) is not a finite number"),
        ("a.png,1,, 5, ,cat", "y2 is empty"),
        ("a.png,,,,,cat", "x1 is empty"),
        ("a.png,1,1,5,5,", "class_name is empty"),
        ("a.png,1,,,,", "class_name is empty"),
        (",1,1,5,5,cat", "filepath is empty"),
        ("a.png,55,1,40,5,cat", "x2 (40) must be greater than x1 (55)"),
        ("a.png,1,5,40,5,cat", "y2 (5) must be greater than y1 (5)"),
        ("a.png,60,1,70,5,cat", "box (60, 1, 70, 5) lies outside its picture, 60 wide and 40 high"),
        ("a.png,-9,1,0,5,cat", "box (-9, 1, 0, 5) lies outside its picture"),
        ("a.png,1,-9,5,0,cat", "box (1, -9, 5, 0) lies outside its picture"),
        ("a.png,1,40,5,50,cat", "box (1, 40, 5, 50) lies outside its picture"),
        ("annotations.txt,1,1,5,5,cat", "annotations.txt: cannot read the picture's size"),
    ],
)
def test_a_mistake_is_reported_with_its_line(annotate, line, message):
    text = read_error(annotate("b.png,1,1,5,5,cat", "", line))
    assert any(row.startswith("annotations.txt line 3: ") and message in row for row in text.splitlines())


def test_a_degenerate_box_is_not_also_reported_as_outside(annotate):
    text = read_error(annotate("a.png,70,1,65,5,cat"))
    assert text == "annotations.txt line 1: x2 (65) must be greater than x1 (70)"


def test_a_missing_picture_names_both_places_once(annotate, tmp_path):
    text = read_error(annotate("b.png,1,1,5,5,cat", "no/x.png,1,1,5,5,cat", "no/x.png,2,2,5,5,cat"))
    assert text == f"annotations.txt line 2: no picture at {tmp_path}/no/x.png or no/x.png\n{ELSEWHERE}"


def test_a_header_is_recognised_and_nothing_else_said_about_it(annotate):
    text = read_error(annotate("filepath,x1,y1,x2,y2,class_name", "a.png,1,1,5,5,cat"))
    assert text.startswith("annotations.txt line 1: no coordinate is a number (x1, y1, x2, y2): delete it if it is a")
    assert len(text.splitlines()) == 1


def test_every_mistake_is_collected_in_order_and_the_list_is_cut_at_20(annotate):
    """keras-frcnn swallowed exceptions and read on."""
    text = read_error(annotate("a.png,9,9,5,5,cat", *["a.png,1,1,5,5"] * 30, "a.png,0,0,1,1,"))
    rows = text.splitlines()
    assert len(rows) == 21
    assert rows[0].startswith("annotations.txt line 1: x2")
    assert rows[1].startswith("annotations.txt line 1: y2")
    assert rows[2].startswith("annotations.txt line 2: 5 fields")
    assert rows[-1] == "... and 13 more"  # 2 + 30 + 1 mistakes, 20 shown


def test_an_unknown_class_is_an_error_when_the_classes_are_given(annotate):
    text = read_error(annotate("a.png,1,1,5,5,cat", "a.png,1,1,5,5,bird"), class_names=("cat", "dog"))
    assert text == "annotations.txt line 2: class 'bird' is not one of the model's classes: cat, dog"


def test_boxes_partly_outside_are_clipped_and_counted_in_one_warning(annotate):
    path = annotate("a.png,1,1,5,5,cat", "a.png,-3,2,70,50,cat", "b.png,50,30,61,40,cat")
    with pytest.warns(UserWarning, match="clipped") as caught:
        records, _ = read_records(path)
    assert [str(warning.message) for warning in caught] == [
        "2 boxes clipped to the picture, first annotations.txt line 2"
    ]
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(records[0].boxes[1], [0, 2, 60, 40])
    np.testing.assert_array_equal(records[1].boxes, [[50, 30, 60, 40]])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "annotations.txt").write_bytes(content)
    assert "is empty: expected lines of filepath,x1" in read_error(tmp_path / "annotations.txt")


def test_only_background_without_class_names_is_an_error(annotate):
    assert "has no box" in read_error(annotate("a.png,,,,,"))


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    assert "No such file" in read_error(tmp_path / "absent.txt")
    assert (
        read_error(tmp_path)
        == f"{tmp_path} is a folder, not an annotation file; format 'auto' tells what a folder holds"
    )


def test_text_that_is_not_utf8_names_the_line(annotate):
    path = annotate("a.png,1,1,5,5,cat", "a.png,1,1,5,5,größe", encoding="latin-1")
    assert read_error(path) == "annotations.txt line 2: byte 0xf6 is not UTF-8; save the file as UTF-8 text"


def test_text_of_windows_notepad_in_utf16_is_told_from_what_is_no_text(annotate, draw_picture):
    line = "a.png,1,1,5,5,cat"
    assert read_error(annotate(line, encoding="utf-16")).endswith(
        "annotations.txt is UTF-16 text; save the file as UTF-8 (Notepad: Save as, Encoding)"
    )
    assert "this annotation file is not text" in read_error(annotate(line, encoding="utf-16-le"))
    for name in ("a.png", "annotations.jpg", "annotations.bmp"):
        assert "this annotation file is not text; a picture or" in read_error(draw_picture(name))


def test_a_line_beyond_the_limit_of_csv_is_no_crash(annotate):
    text = read_error(annotate('"' + "1, " * 100_000))
    assert text.startswith("annotations.txt line 1: 1 field, expected 6")


def test_a_file_is_read_as_text_by_format_auto_and_has_no_splits(annotate):
    path = annotate("a.png,1,1,5,5,cat")
    assert read_records(path, format="auto")[1] == ("cat",)
    for format in ("auto", "simple"):
        text = read_error(path, format=format, split="test")
        formats = "yolo, coco, huggingface, voc"
        assert text == f"{path}: splits such as 'test' belong to {formats}; give the file of the split"


def test_an_unknown_format_names_the_known_ones(annotate):
    text = read_error(annotate("x"), format="cvs")
    assert text == f"unknown annotation format 'cvs': expected one of {', '.join(PARSERS)}"
    assert {"auto", "simple", "csv", "voc", "pascal_voc", "coco", "yolo"} < set(PARSERS)


@pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")
@pytest.mark.parametrize(
    ("name", "pictures", "boxes", "classes"), [("bccd/train", 205, 2804, 3), ("cards/test", 67, 143, 6)]
)
def test_real_annotation_files(name, pictures, boxes, classes):
    records, class_names = read_records(Path(os.environ["FRCNN_DATA"], f"{name}.txt"))
    assert (len(records), sum(len(record.boxes) for record in records), len(class_names)) == (pictures, boxes, classes)
    for record in records:
        assert_is_record(record, class_names)


def test_written_annotations_are_read_again_from_anywhere(tmp_path, draw_picture, monkeypatch):
    pictures = tmp_path / "pictures"
    draw_picture('pictures/a, "b".png')
    draw_picture("pictures/empty.png")
    monkeypatch.chdir(pictures)
    boxes = np.float32([[0.1, 1 / 3, 59.999996, 40], [1, 2, 3, 4]])  # more digits than "%g" prints
    records = [ImageRecord('a, "b".png', (40, 60), boxes, [1, 0]), ImageRecord("empty.png", (40, 60), [], [])]
    file = tmp_path / "elsewhere" / "out.txt"
    file.parent.mkdir()
    write_annotations(file, records, ("cat", "dog, small"))
    monkeypatch.chdir(tmp_path)
    found, class_names = read_records(file, class_names=("cat", "dog, small"))
    assert class_names == ("cat", "dog, small")
    assert [record.path for record in found] == [str(pictures / 'a, "b".png'), str(pictures / "empty.png")]
    assert np.array_equal(found[0].boxes, boxes) and found[0].labels.tolist() == [1, 0]
    assert len(found[1].boxes) == 0
    assert [len(line.split(",")) for line in file.read_text().splitlines()][-1] == 6


def test_no_records_are_an_empty_file(tmp_path):
    write_annotations(tmp_path / "out.txt", [], ())
    assert (tmp_path / "out.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["a\nb.png", "a\rb.png", "a\udcff.png", "a.png "])
def test_a_path_that_would_not_be_read_back_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="a text file cannot hold this name: rename the picture"):
        write_annotations(tmp_path / "out.txt", [ImageRecord(name, (9, 9), [], [])], ())
    assert list(tmp_path.iterdir()) == []
