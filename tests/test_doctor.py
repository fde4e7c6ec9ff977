import os
import shutil
from pathlib import Path

import pytest

from examples.draw_shapes import draw_split
from frcnn.config import load_config
from frcnn.convert import write_parts
from frcnn.data.readers import read_records
from frcnn.doctor import examine
from tests.plant_defects import plant

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the pictures that are damaged
needs_pictures = pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")


def places(report, tree):
    """{(kind, file, line)} of the problems, files relative to the tree; classes by the name that is rare."""
    found = set()
    for problem in report.problems:
        file = os.path.relpath(problem.file, tree) if os.path.isabs(problem.file) else problem.file
        if problem.kind in ("similar-classes", "few-boxes"):
            counts = {entry["name"]: entry["boxes"] for entry in report.statistics["classes"]}
            named = [name for name in counts if repr(name) in problem.message]
            file = min(named, key=counts.get)
        found.add((problem.kind, file, problem.line))
    return found


@pytest.fixture(scope="module")
def drawn_tree(tmp_path_factory):
    """Drawn shapes as a VOC tree."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_split(folder, "all", 90, [0, 0])
    records, class_names = read_records(folder / "all.txt")
    write_parts(folder / "tree", {"train": records}, class_names, "voc")
    return folder / "tree"


def assert_planted_defects_are_found(source, copy, **arguments):
    shutil.copytree(source, copy)
    before = examine(copy, load_config(), full=True, **arguments)
    known = places(before, copy)
    expected = plant(copy, skip="\n".join(map(str, before.problems)))
    assert len({kind for kind, _, _ in expected}) >= 20
    after = places(examine(copy, load_config(), full=True, **arguments), copy)
    statistical = {place for place in known | after if place[0] == "anchors-miss"}
    assert after - statistical == (known | expected) - statistical
    return before


def test_planted_defects_are_found_in_drawn_pictures_and_nothing_else(drawn_tree, tmp_path):
    before = assert_planted_defects_are_found(drawn_tree, tmp_path / "copy")
    assert [problem for problem in before.problems if problem.kind != "anchors-miss"] == []


@needs_pictures
@pytest.mark.parametrize(("name", "errors"), [("bccd", 2), ("cards", 0)])
def test_planted_defects_are_found_in_real_pictures_and_nothing_else(tmp_path, name, errors):
    before = assert_planted_defects_are_found(Path(os.environ["FRCNN_DATA"], name), tmp_path / name)
    found = [(problem.kind, problem.file) for problem in before.problems if problem.severity == "error"]
    cells = [("degenerate-box", f"Annotations/BloodImage_00{number}.xml") for number in (338, 343)]
    assert found == (cells if name == "bccd" else [])
    assert len(found) == errors
