"""XML files and pictures that do not lie as in a VOC tree."""

import os
from pathlib import Path

import pytest

from frcnn.data.readers import find_format, read_records, split_names
from frcnn.data.readers.voc_folders import describe_layout

BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.fixture
def folder(tmp_path, draw_picture):
    """Write pictures, XML files whose class is their own name, and other files; returns the folder."""

    def write(pictures, annotations, **others):
        for name in pictures:
            draw_picture(f"set/{name}")
        texts = {}
        for name, _, filename in (text.partition(":") for text in annotations):
            title = f"<filename>{filename or f'{Path(name).stem}.png'}</filename>"
            texts[f"{name}.xml"] = f"<annotation>{title}<object><name>{name}</name>{BOX}</object></annotation>"
        for name, text in (texts | others.get("files", {})).items():
            place = tmp_path / "set" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path / "set"

    return write


def pairs(path, **options):
    """{XML file without suffix: picture}, each as from the folder."""
    records, class_names = read_records(path, "auto", **options)
    return {class_names[record.labels[0]]: os.path.relpath(record.path, path) for record in records}


@pytest.mark.parametrize(
    ("pictures", "annotations", "expected"),
    [
        (["a.png", "b.jpg"], ["a", "b"], "a.png b.jpg"),
        (["images/a.png"], ["annots/a"], "images/a.png"),
        (["a.png"], ["annotations/a"], "a.png"),
        (["images/a.png"], ["a"], "images/a.png"),
        (["x/Annotations/1.png", "x/pics/a.png"], ["y/xml/a"], "x/pics/a.png"),
        (["JPEGImages/cam1/a.png", "JPEGImages/cam2/a.png"], ["Annotations/cam1/a", "Annotations/cam2/a"], None),
        (["img/cam1/a.png", "img/cam2/a.png"], ["xml/cam1/a", "xml/cam2/a"], None),
        (["cam1/a.png", "cam2/a.png"], ["cam1/a", "cam2/a"], None),
        (["images/a.jpg", "annots/masks/a.png"], ["annots/xmls/a:a.jpg"], "images/a.jpg"),
        (["images/a.png", "masks/a.png"], ["annots/a"], "images/a.png"),
        (["images/c.png"], ["annots/a:c.png"], "images/c.png"),
        (["a_jpg.rf.12.png"], ["a_jpg.rf.12:a.jpg"], "a_jpg.rf.12.png"),
    ],
)
@pytest.mark.filterwarnings("ignore:. pictures? without an XML file:UserWarning")
def test_the_picture_of_an_xml_file_is_found(folder, pictures, annotations, expected):
    expected = pictures if expected is None else expected.split()
    names = [name.partition(":")[0] for name in annotations]
    assert pairs(folder(pictures, annotations)) == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    ("pictures", "annotations", "message"),
    [
        (["cam1/a.png", "cam2/a.png", "cam2/b.png"], ["cam1/a", "cam1/b", "cam2/a"], "cam1 has no b.png and no b.*"),
        (["img/cam1/a.png", "img/cam2/b.png"], ["xml/cam1/a", "xml/cam1/b"], "img/cam1 has no b.png and no b.*"),
        (["cam2/a.png", "cam2/b.png"], ["cam1/b", "cam2/a"], "cam1 has no b.png and no b.*"),
        (["JPEGImages/a.png", "JPEGImages/cam1/b.png"], ["Annotations/cam1/a"], "JPEGImages/cam1 has no a.png"),
        (["valid/a.png"], ["train/a"], "train has no a.png and no a.*"),
        (["left/a.png", "right/a.png"], ["xml/a"], "could both be the picture of xml/a.xml"),
        (["JPEGImages/cam2/a.png", "JPEGImages/cam1/b.png"], ["Annotations/cam1/a"], "JPEGImages/cam1 has no a.png"),
        (["JPEGImages/cam2/a.png"], ["Annotations/cam1/a"], "JPEGImages/cam1 has no a.png"),
    ],
)
def test_pictures_of_different_folders_are_never_mixed_up(folder, pictures, annotations, message):
    path = folder(pictures, annotations)
    with pytest.raises(ValueError, match="a") as caught:
        read_records(path, "voc", split="all")
    first, *hint = str(caught.value).splitlines()
    assert message in first and all("--images" in line for line in hint)


def test_folders_of_splits_are_splits(folder):
    names = ["train/a", "train/b", "valid/a", "test/a"]
    path = folder([f"{name}.png" for name in names], names)
    assert split_names(path) == ("test", "train", "val")
    assert set(pairs(path)) == set(pairs(path, split="train")) == {"train/a", "train/b"}
    assert set(pairs(path, split="valid")) == set(pairs(path, split="val")) == {"valid/a"}
    assert set(pairs(path, split="all")) == set(names)
    with pytest.raises(ValueError, match="has no split 'tset': its folders are test, train, val"):
        read_records(path, "voc", split="tset")


def test_lists_decide_also_outside_a_tree_and_name_sub_folders_within_one(folder):
    files = {"ImageSets/Main/train.txt": "cam1/a"}
    path = folder(["images/cam1/a.png", "images/b.png"], ["annots/cam1/a", "annots/b"], files=files)
    assert pairs(path) == {"annots/cam1/a": "images/cam1/a.png"}
    (path / "annots").rename(path / "Annotations")
    (path / "images").rename(path / "JPEGImages")
    assert pairs(path) == {"annots/cam1/a": "JPEGImages/cam1/a.png"}


def test_other_files_are_left_alone_and_counted_where_they_might_be_missed(folder):
    files = {"README.md": "", "a.csv": "", ".DS_Store": "\0", "._a.xml": "\0\5\26\7", "__x/._a.png": "\0"}
    files |= {"pom.xml": "<project/>", "deep/layout.xml": "<layout/>", "settings.yaml": "names: [x]"}
    path = folder(["a.png", "b.png"], ["a"], files=files)
    assert find_format(path) == "voc"
    with pytest.warns(UserWarning, match="first") as caught:
        assert pairs(path) == {"a": "a.png"}
    assert sorted(str(warning.message) for warning in caught) == [
        "1 picture without an XML file of its own, left out, first b.png line 1",
        "2 XML files of another kind than <annotation>, not read, first pom.xml line 1",
    ]
    problems = []
    read_records(path, "auto", problems=problems)
    assert [(problem.kind, problem.severity) for problem in problems] == [
        ("other-xml", "warning"),
        ("other-xml", "warning"),
        ("unreferenced-picture", "warning"),
    ]
    (path / "settings.yaml").write_text("names: [x]\ntrain: images")
    assert find_format(path) == "yolo"


def test_the_layout_is_described(folder):
    names = ["train/a", "valid/a"]
    path = folder([f"{name}.png" for name in names], names)
    assert describe_layout(path, read_records(path, "voc", split="all")[0]) == "XML beside its picture, 2 folders"
    assert describe_layout(path, read_records(path, "voc")[0]) == "XML beside its picture, 1 folder"
    assert describe_layout(path, []) == ""
    path = folder(["images/b.png"], ["annots/b"])
    records = [record for record in read_records(path, "voc", split="all")[0] if "annots" in record.source]
    assert describe_layout(path, records) == "XML in annots, pictures in images"
