import os
from pathlib import Path

import numpy as np
import pytest

from frcnn.data.readers import read_records, split_names
from tests.contracts import assert_is_record

needs_data = pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")


def thing(name, *corners, more=""):
    """An <object> on one line."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{corner}</{side}>" for side, corner in sides)
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def annotation(*lines, filename="a.png"):
    """An XML file, one line each: <annotation>, <filename>, a wrong <size>, then `lines` from the fourth on."""
    size = "<size><width>0</width><height>7</height><depth>3</depth></size>"
    return "\n".join(["<annotation>", f"<filename>{filename}</filename>", size, *lines, "</annotation>"])


CAT = thing("cat", 1, 1, 5, 5)


@pytest.fixture
def voc(tmp_path, draw_picture):
    """Write a tree with pictures of 40 x 60; XML files and splits by name, e.g. voc({"a": CAT}, {"train": "a"})."""

    def write(annotations, splits=None, folder="tree", pictures=("a.png", "b.png")):
        root = tmp_path / folder
        for place in ("Annotations", "JPEGImages", *(["ImageSets/Main"] if splits is not None else [])):
            (root / place).mkdir(parents=True, exist_ok=True)
        for name in pictures:
            draw_picture(f"{folder}/JPEGImages/{name}")
        for name, text in annotations.items():
            if text in ("", CAT):
                text = annotation(text, filename=f"{name}.png")
            (root / f"Annotations/{name}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, text in (splits or {}).items():
            (root / f"ImageSets/Main/{name}.txt").write_text(text)
        return root

    return write


def read_error(path, **options):
    with pytest.raises(ValueError, match="a") as caught:
        read_records(path, "voc", **options)
    return str(caught.value)


def names(records):
    return [Path(record.path).stem for record in records]


def test_boxes_become_half_open_and_the_picture_gives_the_size(voc):
    objects = [thing("dog", 1, 1, 60, 40), thing("cat", 2, 3, 30, 20, more="<difficult>1</difficult>")]
    records, class_names = read_records(voc({"a": annotation(*objects), "b": CAT}), "voc")
    assert class_names == ("cat", "dog")
    np.testing.assert_array_equal(records[0].boxes, [[0, 0, 60, 40], [1, 2, 30, 20]])
    assert records[0].labels.tolist() == [1, 0]
    assert records[0].difficult.tolist() == [False, True]
    assert records[0].size == (40, 60)
    for record in records:
        assert_is_record(record, class_names)


def test_an_xml_without_objects_does_not_repeat_the_previous_picture(voc):
    """keras-frcnn appended the last picture again, with its boxes."""
    records, _ = read_records(voc({"a": CAT, "b": ""}), "voc")
    assert names(records) == ["a", "b"]
    assert [len(record.boxes) for record in records] == [1, 0]


@pytest.mark.parametrize("years", [["VOC2007"], ["VOC2012"], ["VOC2007", "VOC2012"]])
def test_voc2007_and_voc2012_are_not_both_required(voc, years):
    """keras-frcnn demanded both, each with trainval and test lists."""
    for year in years:
        devkit = voc(
            {"a": CAT, "b": annotation(thing(year, 1, 1, 5, 5), filename="b.png")},
            {"trainval": "b\na"},
            folder=f"devkit/{year}",
        ).parent
    records, class_names = read_records(devkit, "voc")
    assert class_names == (*years, "cat")
    assert [Path(record.path).parts[-3] for record in records] == [year for year in years for _ in "ba"]
    assert names(records) == ["b", "a"] * len(years)
    assert split_names(devkit) == ("trainval",)


def test_reading_draws_no_split_and_keeps_one_order(voc):
    """keras-frcnn drew an unseeded train/test split at every run, in the order of the folder."""
    path = voc(
        {name: annotation(CAT, filename=f"{name}.png") for name in "dbca"}, pictures=[f"{n}.png" for n in "cadb"]
    )
    for seed in range(3):
        np.random.seed(seed)
        assert names(read_records(path, "voc")[0]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("splits", "split", "expected"),
    [
        (None, None, "ab"),
        ({}, None, "ab"),
        ({"test": "b"}, None, "ab"),
        ({"train": "b", "test": "a"}, None, "b"),
        ({"train": "b", "trainval": "b\na"}, None, "ba"),
        ({"train": "b", "trainval": "b\na"}, "train", "b"),
        ({"cat_train": "\na  1\r\n\n b\t-1 \n\n"}, "cat_train", "ab"),
        ({"train": "b\na\nb\n"}, None, "ba"),
    ],
)
def test_which_pictures_are_read(voc, splits, split, expected):
    records, _ = read_records(voc({"a": CAT, "b": CAT}, splits), "voc", split=split)
    assert "".join(names(records)) == expected


def test_a_listed_name_may_hold_blanks(voc):
    path = voc({"a 1": CAT, "a": CAT}, {"train": "a 1\na"}, pictures=["a 1.png", "a.png"])
    assert names(read_records(path, "voc")[0]) == ["a 1", "a"]


def test_a_split_that_one_of_several_trees_has(voc):
    voc({"a": CAT}, {"test": "a", "train": "a"}, folder="devkit/VOC2007")
    devkit = voc({"b": CAT}, {"train": "b"}, folder="devkit/VOC2012").parent
    assert names(read_records(devkit, "voc", split="test")[0]) == ["a"]
    assert split_names(devkit) == ("test", "train")


def test_split_names_leave_out_the_lists_of_one_class(voc):
    lists = {
        "val": "a\nb",
        "train": "a",
        "cat_train": "a  1\nb -1",
        "dog_val": "\na 0\n",
        "odd_name": "1\n1",
        "none": "",
    }
    path = voc({"a": CAT}, lists)
    assert split_names(path) == ("none", "odd_name", "train", "val")
    assert split_names(path / "Annotations/a.xml") == split_names(path / "absent") == ()
    assert split_names(voc({"a": CAT}, folder="other")) == ()


@pytest.mark.parametrize("format", ["voc", "pascal_voc", "auto"])
def test_the_names_of_the_format(voc, format):
    records, _ = read_records(voc({"a": CAT}), format)
    assert names(records) == ["a"]
    assert read_records(voc({"a": CAT}), format, class_names=["dog", "cat"])[0][0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("picture", "filename"),
    [
        ("a.png", "a.png"),
        ("other.png", "other.png"),
        ("other.png", "C:\\Users\\me\\pictures\\other.png"),
        ("other.png", "/home/me/other.png"),
        ("a.PNG", "a.png"),
        ("a.png", "a.JPG"),
        ("a.jpg", "before_renaming.jpg"),
        ("a.tif", "a"),
        ("a.png", ""),
    ],
)
def test_the_picture_is_found_by_filename_or_by_the_name_of_the_xml(voc, picture, filename):
    records, _ = read_records(voc({"a": annotation(CAT, filename=filename)}, pictures=[picture, "b.png"]), "voc")
    assert Path(records[0].path).name == picture


def test_boxes_may_be_fractions_and_parts_have_boxes_of_their_own(voc):
    part = f"<part>{thing('head', 9, 9, 11, 11)[len('<object>') : -len('</object>')]}</part>"
    path = voc({"a": annotation(thing("cat", 10.5, "2.25", " 30 ", 2e1, more=part))})
    records, class_names = read_records(path, "voc")
    assert class_names == ("cat",)
    np.testing.assert_array_equal(records[0].boxes, [[9.5, 1.25, 30, 20]])


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("True", True), (" yes ", True), ("0", False), ("False", False), ("", False)]
)
def test_how_difficult_is_written(voc, text, expected):
    path = voc({"a": annotation(thing("cat", 1, 1, 9, 9, more=f"<difficult>{text}</difficult>"))})
    assert read_records(path, "voc")[0][0].difficult.tolist() == [expected]


def rotation(angle):
    """As CVAT writes it; VOC's box (11, 11, 30, 20) is 20 x 10 about (20, 15)."""
    attribute = f"<attribute><name>rotation</name><value>{angle}</value></attribute>"
    return thing("cat", 11, 11, 30, 20, more=f"<attributes>{attribute}</attributes>")


def robndbox(**values):
    sides = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return f"<object><type>robndbox</type><name>cat</name><robndbox>{sides}</robndbox></object>"


@pytest.mark.parametrize(
    ("line", "half_sides"),
    [
        (rotation(90), (5, 10)),
        (rotation("-30.0"), (5 * 3**0.5 + 2.5, 5 + 2.5 * 3**0.5)),  # half of 20 cos + 10 sin, 20 sin + 10 cos
        (thing("cat", 11, 11, 30, 20, more="<rotation>450</rotation>"), (5, 10)),
        (robndbox(cx=20, cy=15, w=20, h=10, angle=np.pi / 2), (5, 10)),
        (robndbox(cx=20, cy=15, w=20, h=10, angle=0), (10, 5)),
    ],
)
def test_of_a_turned_box_the_box_around_it_is_taken_and_counted(voc, line, half_sides):
    with pytest.warns(UserWarning, match=r"^1 box turned, read as the box around it, first Annotations/a.xml line 4$"):
        records, _ = read_records(voc({"a": annotation(line)}), "voc")
    expected = np.array([20, 15, 20, 15]) + np.array([-1, -1, 1, 1]) * np.tile(half_sides, 2)
    np.testing.assert_allclose(records[0].boxes, [expected], rtol=1e-6)


def test_a_box_turned_by_nothing_is_read_as_it_stands(voc):
    path = voc({"a": annotation(rotation("0.0"))})
    np.testing.assert_array_equal(read_records(path, "voc")[0][0].boxes, [[10, 10, 30, 20]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (rotation("left"), "turned box (11, 11, 30, 20, left): expected finite numbers"),
        (rotation("inf"), "turned box (11, 11, 30, 20, inf): expected finite numbers"),
        (robndbox(cx=20, cy=15, w="wide", h=1, angle=1), "turned box (20, 15, wide, 1, 1): expected finite numbers"),
        (robndbox(cx=20, cy=15, w=2, h=1), "object without angle"),
        (thing("cat", 55, 1, 40, 5), "xmax (40) must be greater than xmin (55)"),
        (thing("cat", 1, 5, 40, 4), "ymax (4) must be greater than ymin (5)"),
        (thing("cat", 1, "nan", 40, 5), "ymin (nan) is not a finite number"),
        (thing("cat", 1, 1, "4O", 5), "xmax (4O) is not a finite number"),
        (thing("cat", 61, 1, 70, 5), "box (61, 1, 70, 5) lies outside its picture, 60 wide and 40 high"),
        (thing("cat", 1, -9, 5, 0), "box (1, -9, 5, 0) lies outside its picture"),
        (thing(" ", 1, 1, 40, 5), "object without name"),
        (thing("cat", 1, "", 40, 5), "object without ymin"),
        ("<object><name>cat</name></object>", "object without xmin, ymin, xmax, ymax"),
        ("<object/>", "object without name, xmin, ymin, xmax, ymax"),
        ("<object>", "broken XML (mismatched tag"),
        ("&nbsp;", "broken XML (undefined entity"),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_line(voc, line, message):
    """keras-frcnn swallowed exceptions: it printed them and went on with the next file."""
    text = read_error(voc({"a": annotation("", CAT, line), "b": CAT}))
    place = "Annotations/a.xml line 7: " if "mismatched" in message else "Annotations/a.xml line 6: "
    assert text.startswith(place + message)
    assert len(text.splitlines()) == 1


def test_mistakes_of_all_files_are_listed_in_their_order(voc):
    bad = thing("cat", 5, 5, 4, 4)
    text = read_error(voc({"b": annotation(bad, bad, filename="b.png"), "a": "", "c": annotation(bad)}))
    places = [row.partition(":")[0] for row in text.splitlines()]
    assert places == [*["Annotations/b.xml line 4"] * 2, *["Annotations/b.xml line 5"] * 2, "Annotations/c.xml line 1"]
    assert text.splitlines()[-1].endswith("a.png is the picture of Annotations/a.xml already: correct <filename>")


def test_a_class_that_the_model_does_not_have(voc):
    text = read_error(voc({"a": CAT}), class_names=("dog",))
    assert text == "Annotations/a.xml line 4: class 'cat' is not one of the model's classes: dog"


def test_boxes_without_area_are_left_out_and_counted_in_one_warning(voc):
    """Before the conversion, which would give them a width of one pixel."""
    flat = [thing("cat", 5, 5, 5, 9), thing("cat", 1, 5, 40, 5)]
    path = voc({"a": annotation(CAT), "b": annotation(*flat, filename="b.png")})
    with pytest.warns(UserWarning, match="left out") as caught:
        records, _ = read_records(path, "voc")
    message = "2 boxes left out, without width or height, first Annotations/b.xml line 4"
    assert [str(warning.message) for warning in caught] == [message]
    assert [len(record.boxes) for record in records] == [1, 0]


def test_boxes_partly_outside_are_clipped_and_counted_in_one_warning(voc):
    """Many programs count from 0: their boxes at the left border begin at -1 here."""
    path = voc({"a": CAT, "b": annotation(thing("cat", 0, 0, 60, 41), thing("cat", 1, 2, 9, 9), filename="b.png")})
    with pytest.warns(UserWarning, match="clipped") as caught:
        records, _ = read_records(path, "voc")
    assert [str(warning.message) for warning in caught] == [
        "1 box clipped to the picture, first Annotations/b.xml line 4"
    ]
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(records[1].boxes, [[0, 0, 60, 40], [0, 1, 9, 9]])


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "windows-1252", "utf-16"])
def test_the_encoding_is_what_the_xml_declares(voc, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + annotation(
        thing("größe", 1, 1, 5, 5), thing("cat", 1, 1, 5, 5)
    )
    assert read_records(voc({"a": text.encode(encoding)}), "voc")[1] == ("cat", "größe")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'<?xml version="1.0" encoding="gbk"?><annotation/>', "1: cannot decode the XML (multi-byte encodings"),
        (b'<?xml version="1.0" encoding="new"?><annotation/>', "1: cannot decode the XML (unknown encoding: new)"),
        (b"", "1: broken XML (no element found"),
        (b"<annotation>\n<object>\n", "3: broken XML (no element found"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "1: broken XML (not well-formed"),
        (annotation("größe").encode("latin-1"), "4: broken XML (not well-formed"),
        (b"\n<coco/>", "2: <coco> where <annotation> was expected"),
    ],
)
def test_what_is_not_a_voc_annotation_is_said_in_one_sentence(voc, data, message):
    text = read_error(voc({"a": data, "b": CAT}))
    assert text.startswith(f"Annotations/a.xml line {message}")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "entities",
    [
        "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12)),
        '<!ENTITY e12 SYSTEM "secret.txt">',
        '<!ENTITY % e12 SYSTEM "secret.txt"> %e12;',
    ],
    ids=["billion laughs", "external", "parameter"],
)
def test_entities_are_refused(voc, entities):
    text = f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{entities}]>' + annotation(thing("&e12;", 1, 1, 5, 5))
    path = voc({"a": text})
    (path / "Annotations" / "secret.txt").write_text("secret")
    assert read_error(path).startswith("Annotations/a.xml line 1: XML entities can hide attacks")


def test_what_a_split_lists_must_be_there(voc):
    path = voc({"a": CAT, "lost": CAT}, {"trainval": "a\n\nlost\nabsent\n"})
    first, second, _ = read_error(path).splitlines()
    place, message = first.split(": ", maxsplit=1)
    assert place == "ImageSets/Main/trainval.txt line 3"
    assert message == "no picture for Annotations/lost.xml: JPEGImages has no lost.png and no lost.*"
    assert second == "ImageSets/Main/trainval.txt line 4: no Annotations/absent.xml"


def test_pictures_that_are_missing_or_broken_are_errors(voc):
    path = voc({"a": CAT, "b": annotation(CAT, filename="renamed.png")})
    (path / "JPEGImages/b.png").unlink()
    (path / "JPEGImages/a.png").write_text("no picture")
    first, second, _ = read_error(path).splitlines()
    assert first.startswith(f"Annotations/a.xml line 4: {path}/JPEGImages/a.png: cannot read the picture's size")
    assert second == (
        "Annotations/b.xml line 1: no picture for Annotations/b.xml: JPEGImages has no renamed.png and no b.*"
    )


@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        ({"train": "a", "val": "a", "cat_val": "a 1"}, "tset", "has no split 'tset': ImageSets/Main holds train, val"),
        (None, "test", "has no split 'test': ImageSets/Main holds no list"),
        ({"train": "\n"}, None, "has no annotated picture: Annotations, or the list of the split, is empty"),
    ],
)
def test_splits_that_are_not_there(voc, splits, split, message):
    path = voc({"a": CAT}, splits)
    assert read_error(path, split=split) == f"{path} {message}"


def test_a_tree_without_annotations_or_objects(voc, tmp_path):
    assert "has no annotated picture" in read_error(voc({}))
    assert "has no box, only pictures without objects" in read_error(voc({"a": ""}))
    assert len(read_records(voc({"a": ""}), "voc", class_names=["cat"])[0]) == 1


def test_what_is_no_voc_tree(voc, tmp_path):
    path = voc({"a": CAT}, pictures=["a.png"])
    for place in (path / "JPEGImages", path / "Annotations/a.xml", tmp_path / "absent"):
        assert f"{place} is no Pascal VOC tree: expected folders Annotations and JPEGImages" in read_error(place)
    assert "Annotations holds XML files but no picture: name the folder" in read_error(path / "Annotations")


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "boxes"), [("bccd", "test", 945), ("cards", "test", 143), ("cards", None, 527)]
)
def test_real_trees_hold_what_their_text_files_hold(name, split, boxes):
    """The text files repeat the XML's numbers as they stand, so that their boxes begin a pixel later."""
    folder = Path(os.environ["FRCNN_DATA"], name)
    records, class_names = read_records(folder, "auto", split=split)
    twins, twin_names = read_records(folder / f"{split or 'trainval'}.txt", "auto")
    assert (class_names, [record.path for record in records]) == (twin_names, [twin.path for twin in twins])
    assert sum(len(record.boxes) for record in records) == boxes
    for record, twin in zip(records, twins, strict=True):
        assert_is_record(record, class_names)
        np.testing.assert_array_equal(record.boxes + [1, 1, 0, 0], twin.boxes)
        np.testing.assert_array_equal(record.labels, twin.labels)


@needs_data
def test_real_boxes_without_area_are_left_out_as_in_their_text_file():
    folder = Path(os.environ["FRCNN_DATA"], "bccd")
    with pytest.warns(UserWarning, match=r"^2 boxes left out, .* first Annotations/BloodImage_00338.xml line 158$"):
        records, _ = read_records(folder, "voc", split="trainval")
    twins, _ = read_records(folder / "trainval.txt")
    assert [len(record.boxes) for record in records] == [len(twin.boxes) for twin in twins]
