import numpy as np
import pytest

from frcnn.data.readers import find_format, read_records
from tests.contracts import assert_is_record

TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax"


@pytest.fixture
def table(tmp_path, draw_picture):
    """Write a table beside a.png and `b, "ü".jpg` (40 high, 60 wide)."""
    for name in ("a.png", 'b, "ü".jpg'):
        draw_picture(name)

    def write(*lines, end="\n", encoding="utf-8", name="boxes.csv"):
        path = tmp_path / name
        path.write_bytes(end.join(lines).encode(encoding))
        return path

    return write


def read_error(path, format="auto"):
    with pytest.raises(ValueError, match=path.name) as caught:
        read_records(path, format)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ([TENSORFLOW, "a.png,60,40,cat,1,2,30,20"], {}),
        ([TENSORFLOW.upper(), "a.png,60,40,cat,1,2,30,20", ""], {"end": "\r\n", "encoding": "utf-8-sig"}),
        (['"image","xmin","ymin","xmax","ymax","label"', '"a.png",1.0,2.0,30.0,20.0,"cat"'], {}),
        (["", "", "Label;X_Max;Y_Max;X Min;Y Min;File_Name;note", " cat ;30;20;1;2; a.png ;a,b"], {}),
        (["image_id\tx1\ty1\tx2\ty2\tlabel", "a\t1\t2\t30\t20\tcat"], {"name": "boxes.txt"}),
        ([",Path,left,top,right,bottom,Category Name", "0,./a.png,1,2,30,20,cat"], {"name": "boxes"}),
    ],
)
def test_columns_are_told_by_name_whatever_order_case_and_separator(table, lines, options):
    path = table(*lines, **options)
    assert find_format(path) == "csv"
    (record,), class_names = read_records(path, "auto")
    assert class_names == ("cat",) and record.path.endswith("a.png")
    np.testing.assert_array_equal(record.boxes, [[1, 2, 30, 20]])
    assert record.lines.tolist() == [len(lines) - (not lines[-1])]
    assert_is_record(record, class_names)


def test_names_may_hold_commas_and_quotes_and_empty_rows_keep_their_picture(table):
    path = table(TENSORFLOW + ",difficult", '"b, ""ü"".jpg",,,,,,,,', "a.png,60,40,cat,1,2,30,20,1")
    records, _ = read_records(path, "auto")
    assert [record.path.rpartition("/")[2] for record in records] == ['b, "ü".jpg', "a.png"]
    assert [record.difficult.tolist() for record in records] == [[], [True]]


@pytest.mark.parametrize(
    ("lines", "format"),
    [
        (["a.png,1,2,30,20,cat"], "simple"),
        (["a.png,,,,,", "a.png,1,2,30,20,cat"], "simple"),
        (["class,1,2,30,20,label"], "simple"),
        (["xmin,1,2,30,xmax,ymin"], "simple"),
        (["", "a.png,1,2,30,20,xmin"], "simple"),
        (["filename,class,xmin,ymin", "a.png,cat,1,2"], "csv"),
        ([""], "simple"),
    ],
)
def test_a_line_with_a_number_is_no_header_whatever_the_file_is_called(table, lines, format):
    assert find_format(table(*lines)) == format


def test_open_images_has_shares_and_names_without_a_suffix_and_groups_are_crowds(table):
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    path = table(header, "a,xclick,/m/01g317,1,0.5,1.000001,0.25,.75,0,0,1", "a,x,/m/0199g,1,0,0.5,0,1,1,0,0")
    (record,), class_names = read_records(path, "auto")
    assert class_names == ("/m/0199g", "/m/01g317")
    np.testing.assert_array_equal(record.boxes, [[30, 10, 60, 30], [0, 0, 30, 40]])  # 60 wide, 40 high
    assert record.crowd.tolist() == [True, False]
    path = table(header, "a,x,cat,1,30,60,0.25,.75,0,0,0", "a,x,cat,1,0,.5,0,x,0,0,0")
    assert read_error(path).splitlines() == [
        "boxes.csv line 2: (30, 0.25, 60, .75) must be shares of the picture's width and height, 0 to 1, as OpenImages "
        "has them",
        "boxes.csv line 3: YMax (x) is not a finite number",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["filename,class,xmin,ymin,xmax", "a"],
            "line 1: no column called ymax or y2 or bottom; the header is filename",
        ),
        (["", f"{TENSORFLOW},Class", "a"], "line 2: 2 columns called class; the header is filename,width"),
        ([TENSORFLOW], "has a header and no line after it"),
        ([TENSORFLOW, "", "a.png,60,40,cat,1,2,30"], f"line 3: 7 fields, expected 8: {TENSORFLOW}"),
        ([TENSORFLOW, "a.png,60,40,cat,9,2,5,20"], "line 2: xmax (5) must be greater than xmin (9)"),
        ([TENSORFLOW, "a.png,60,40,,1,2,5,20"], "line 2: class_name is empty"),
        ([TENSORFLOW, "a.png,60,40,cat,1,nan,5,1e99"], "line 2: ymin (nan) is not a finite number"),
        ([TENSORFLOW, "c.png,60,40,cat,1,2,5,20"], "line 2: no picture at"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(table, lines, message):
    assert message in read_error(table(*lines))


def test_what_has_no_header_is_refused_where_one_was_promised(table):
    assert "line 1: no column called filename or" in read_error(table("a.png,1,2,30,20,cat"), "csv")
    assert "line 1: no column called" in read_error(table(""), "csv")


def test_sizes_that_are_not_the_pictures_are_a_problem(table):
    problems = []
    read_records(table(TENSORFLOW, "a.png,61,40,cat,1,2,30,20"), "auto", problems=problems)
    assert [(problem.kind, problem.line) for problem in problems] == [("size-differs", 2)]
