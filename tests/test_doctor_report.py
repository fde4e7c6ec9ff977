import base64
import html.parser
import json
import re
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from frcnn.cli import main
from frcnn.config import load_config
from frcnn.data.images import write_image
from frcnn.data.readers import FORMATS
from frcnn.data.readers.problems import Problem
from frcnn.doctor import examine
from frcnn.doctor_report import CURES, paste, to_dict, to_html, to_text
from tests.test_layout import ROOT


def scene(seed):
    generator = np.random.default_rng(seed)
    image = np.full((120, 160, 3), 128, np.uint8)
    for _ in range(10):
        centre, colour = generator.integers(0, (160, 120)), generator.integers(0, 256, 3)
        cv2.circle(image, centre.tolist(), int(generator.integers(5, 20)), colour.tolist(), -1)
    return image


@pytest.fixture
def annotations(tmp_path):
    """Write annotations.txt, a sound line for each picture and then those that are given, and the pictures."""

    def write(*lines, name="annotations.txt", pictures=range(3), classes=("cat", "dog")):
        sound = [f"{picture}.png,10,20,90,100,{classes[picture % len(classes)]}" for picture in pictures]
        for picture in pictures:
            write_image(tmp_path / f"{picture}.png", scene(picture))
        (tmp_path / name).write_text("\n".join([*sound, *lines]))
        return tmp_path / name

    return write


def kinds(path, **arguments):
    report = examine(path, load_config(), **arguments)
    return {problem.kind for problem in report.problems} - {"anchors-miss", "few-boxes"}, report


def test_every_kind_has_a_cure_and_no_cure_is_left_over():
    sources = [*(ROOT / "frcnn/data/readers").glob("*.py"), ROOT / "frcnn/doctor.py"]
    text = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', text)) - {"utf-8-sig", *FORMATS}
    assert named | {"outline"} == set(CURES)


def test_a_sound_set_has_no_problem(annotations):
    found, report = kinds(annotations(), full=True)
    assert found == set()
    assert report.statistics["pictures"] == report.statistics["boxes"] == 3
    assert [(entry["name"], entry["boxes"], entry["pictures"]) for entry in report.statistics["classes"]] == [
        ("cat", 2, 2),
        ("dog", 1, 1),
    ]
    assert report.statistics["classes"][0]["box_size"]["median"] == 80
    assert report.statistics["most_frequent_sizes"] == [{"height": 120, "width": 160, "pictures": 3}]


@pytest.mark.parametrize(
    ("line", "kind", "number"),
    [
        ("0.png,1,2,3", "field-count", 4),
        ("absent.png,1,2,30,40,cat", "missing-picture", 4),
        ("0.png,10,20,90,100,cat", "duplicate-box", 4),
        ("0.png,11,20,90,100,dog", "conflicting-boxes", 4),
        ("0.png,10,20,13,100,cat", "tiny-box", 4),
        ("0.png,10,20,10,100,cat", "degenerate-box", 4),
        ("0.png,10,100,90,20,cat", "swapped-box", 4),
        ("0.png,10,20,90,100,", "missing-class", 4),
        ("0.png,50,60,130,110,Cat", "similar-classes", None),
    ],
)
def test_mistakes_in_a_text_file_are_named_by_line(annotations, line, kind, number):
    path = annotations(line)
    found, report = kinds(path)
    assert found == {kind}
    problem = next(problem for problem in report.problems if problem.kind == kind)
    assert (problem.file, problem.line) == (path.name if number else str(path), number)


def test_a_header_line_is_found(annotations):
    path = annotations()
    path.write_text("filename,xmin,ymin,xmax,ymax,class\n" + path.read_text())
    assert kinds(path)[0] == set(), "a table with a header"
    assert kinds(path, format="simple")[0] == {"header-line"}


@pytest.mark.parametrize(
    ("one", "other", "similar"),
    [
        ("traffic light", "traffic_light", True),
        ("Car", "car", True),
        ("queen", "quen", True),
        ("queen", "queeen", True),
        ("queen", "quern", True),
        ("queen", "kings", False),
        ("RBC", "WBC", False),  # short
        ("class1", "class2", False),  # numbers
        ("platelet", "plate", False),
        ("---", "+++", False),
    ],
)
def test_class_names_that_may_be_one(annotations, one, other, similar):
    boxes = [f"{picture}.png,{20 + shift},30,{100 + shift},110,{one}" for picture in range(3) for shift in (0, 30)]
    path = annotations(*boxes, *boxes[:5], f"0.png,0,0,40,40,{other}", classes=(one,), pictures=range(12))
    assert ("similar-classes" in kinds(path)[0]) == similar


def test_a_hostile_set_is_examined_in_time(annotations):
    """A thousand classes, half of them spelt alike, a name of 100,000 letters, a thousand boxes in one picture."""
    names = ["x" * 10**5, *(f"{'-' * index}b" for index in range(500)), *(f"c{index}" for index in range(500))]
    lines = [f"0.png,{row % 100},1,{row % 100 + 30},{30 + row / 30:g},{name}" for row, name in enumerate(names)]
    start = time.perf_counter()
    report = examine(annotations(*lines), load_config())
    assert len(report.class_names) == 1003
    assert len(to_html(report)) < 5e6 and len(to_text(report)) < 1e6
    assert time.perf_counter() - start < 60


def test_two_frequent_names_that_differ_by_a_letter_are_two(annotations):
    assert kinds(annotations(classes=("fork", "cork")))[0] == set()


def test_pictures_of_training_that_are_tested_again(annotations, tmp_path):
    path = annotations()
    test = annotations(name="test.txt", pictures=range(10, 12))
    assert kinds(path, test=test, full=True)[0] == set()
    write_image(tmp_path / "copy.png", scene(1))
    write_image(tmp_path / "like.jpg", scene(2))
    test = annotations("copy.png,1,2,30,40,cat", "like.jpg,1,2,30,40,cow", name="test.txt", pictures=[10, 11])
    found, report = kinds(path, test=test, full=True)
    assert found == {"leaked-picture", "unknown-class"}
    leaks = [problem for problem in report.problems if problem.kind == "leaked-picture"]
    assert [(problem.severity, problem.message.count("(test)")) for problem in leaks] == [("error", 1), ("warning", 1)]
    assert f"nearly the same picture as {tmp_path / 'like.jpg'} (test)" in str(leaks[1])
    # Mistakes of the test set are found too, and told apart.
    test.write_text(f"{test.read_text()}\n10.png,1,1")
    assert str(test) in {problem.file for problem in examine(path, load_config(), test=test).problems}


def test_tiny_depends_on_the_resized_picture(annotations):
    path = annotations("0.png,100,20,106,100,cat")
    for im_size, tiny in ((600, False), (240, True)):
        config = load_config(overrides=[f"data.im_size={im_size}"])  # 6 px become 30 or 12, a cell is 16
        assert ("tiny-box" in {problem.kind for problem in examine(path, config).problems}) == tiny


def test_the_command_says_how_it_ended(annotations, tmp_path, capsys):
    assert main(["doctor", str(annotations())]) == 0
    assert main(["doctor", str(annotations("0.png,1,2")), "--json", str(tmp_path / "r.json"), "data.im_size=320"]) == 1
    assert main(["doctor", str(tmp_path / "absent.txt")]) == 2
    captured = capsys.readouterr()
    assert "error field-count (1). Cure: write filepath,x1,y1,x2,y2,class_name" in captured.out
    assert "annotations.txt line 4: 3 fields" in captured.out
    assert captured.err.startswith("frcnn doctor:") and "absent.txt: cannot read" in captured.err
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["anchors"]["im_size"] == 320
    assert [(problem["kind"], problem["line"]) for problem in result["problems"] if problem["severity"] == "error"] == [
        ("field-count", 4)
    ]
    assert all(problem["cure"] for problem in result["problems"])


def test_what_is_to_be_pasted_is_what_was_found(annotations):
    report = examine(annotations(), load_config())
    chosen = report.better[0][report.better[1]]
    config = load_config(overrides=paste(chosen).split())
    assert config.model.anchor_sizes == chosen.levels[0][1]
    assert (config.model.anchor_ratios, config.data.im_size) == (chosen.ratios, chosen.im_size)
    again = examine(annotations(), config).settings
    np.testing.assert_allclose(again.recall, chosen.recall)
    assert to_text(report).splitlines()[-3] == paste(chosen)


def test_only_the_first_of_a_kind_are_printed_and_all_are_in_json(annotations):
    report = examine(annotations(*["0.png,1"] * 10), load_config())
    text = to_text(report)
    assert "field-count (10)" in text and "  ... and 7 more" in text
    assert text.count("expected 6") == 3
    assert sum(problem["kind"] == "field-count" for problem in to_dict(report)["problems"]) == 10


class Page(html.parser.HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.images += [dict(attributes)["src"]] if tag == "img" else []
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_names_on_the_page_are_text_and_its_pictures_are_in_it(annotations, tmp_path):
    evil = "<script>alert(1)</script>"
    write_image(tmp_path / "<img src=x onerror=alert(2)>.png", scene(9))
    line = f'"<img src=x onerror=alert(2)>.png",10,20,90,100,"{evil}"'
    report = examine(annotations(line, f"{line}\x1b[2J", '"<b>",1', classes=(evil, "a&b")), load_config())
    page = Page(to_html(report))
    assert not page.tags & {"script", "b", "link", "iframe"}
    assert evil in page.text and "a&b" in page.text and "<b>" not in page.tags
    assert len(page.images) == 4
    for source in page.images:
        data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (270, 360, 3)
    assert "\x1b" not in to_text(report) + to_html(report)


def test_a_set_without_a_usable_picture_is_reported(annotations, tmp_path, capsys):
    path = tmp_path / "annotations.txt"
    path.write_text("absent.png,1,2,30,40,cat")
    assert (
        main(["doctor", str(path), "--full", "--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")])
        == 1
    )
    assert "no picture can be used" in capsys.readouterr().out
    annotations(classes=("",), pictures=range(1)).write_text("0.png,,,,,")
    assert main(["doctor", str(path), "--full"]) == 1
    assert "error no-boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bits", "bit_depth", "message"),
    [(12, "null", "use 12 of them (values up to 4095): they are read"), (12, 10, "bit_depth says 10"), (12, 12, None)]
    + [(16, "null", None), (15, "null", None)],
)
def test_pictures_that_come_out_black_are_said(annotations, bits, bit_depth, message):
    path = annotations()
    deep = np.full((120, 160), 2**bits - 1, np.uint16)
    (path.parent / "1.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    report = examine(path, load_config(None, [f"data.bit_depth={bit_depth}"]))
    found = [problem.message for problem in report.problems if problem.kind == "bit-depth"]
    assert len(found) == (message is not None) and all(message in text for text in found)
    assert "frcnn doctor" in to_html(report)


def test_anchors_that_are_good_enough_are_kept(annotations, capsys, tmp_path):
    recipe = ["model.anchor_sizes=[16]", "model.anchor_ratios=[1]", "data.im_size=120", "data.max_size=160"]
    place = tmp_path / "good.txt"
    place.write_text("\n".join(f"{tmp_path}/0.png,{x},{x},{x + 16},{x + 16},cat" for x in (8, 40)))
    annotations()
    assert main(["doctor", str(place), "--json", str(tmp_path / "r.json"), *recipe]) == 0
    out = capsys.readouterr().out
    assert "keep those of the config" in out and "model.anchor_sizes=" not in out
    assert json.loads((tmp_path / "r.json").read_text())["suggestion"] is None


def test_problems_show_their_file_and_line():
    assert str(Problem("a-b", "error", "a.txt", 3, "wrong")) == "a.txt line 3: wrong"


def test_the_command_loads_no_keras(annotations):
    program = (
        "import sys; from frcnn.cli import main; main(sys.argv[1:]);"
        "assert not {'keras', 'tensorflow', 'jax', 'torch', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, "doctor", str(annotations()), "--full"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
