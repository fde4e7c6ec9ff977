import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from frcnn.folders import JOURNAL, LOCK, begin, detect_folder, lock, read_detections, write_results
from frcnn.inference import fingerprint
from tests.contracts import assert_is_detections
from tests.oracles.fake_detector import fake_detector
from tests.oracles.tiny import CLASS_NAMES

pytestmark = pytest.mark.tensorflow
ROOT = Path(__file__).parents[1]
FORMATS = ("json", "csv", "voc", "yolo")
SETTINGS = {"classes": None, "draw_score": 0.5, "pictures": True, "crops": True, "weights": "abc"}
BROKEN = ("03.png", "a/07.png")


@pytest.fixture
def names(draw_picture, tmp_path):
    """Eleven pictures in three folders, two of them broken: a dict from path to name."""
    given = [f"{'ab'[index // 4 - 1] + '/' if index > 3 else ''}{index:02d}.png" for index in range(11)]
    for index, name in enumerate(given):
        draw_picture(f"in/{name}", 40 + index, 60, seed=index)
    for name in BROKEN:
        (tmp_path / "in" / name).write_bytes(b"no picture")
    return {str(tmp_path / "in" / name): name for name in given}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def run(names, output, resume=False, detector=None, **changes):
    """A whole run; the pictures of `names` that could not be read."""
    detector, settings = detector or fake_detector(), SETTINGS | changes
    done = begin(output, settings, resume)
    numbers = list(detect_folder(detector, names, output, settings, done))
    assert numbers == list(range(1, len(names.keys() - done) + 1))
    return write_results(names, CLASS_NAMES, output, FORMATS)


def content(folder):
    """{name: bytes} of all files but the journal, which tells how the results came about."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != JOURNAL)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_a_run_writes_everything(names, output, tmp_path):
    broken = run(names, output)
    assert [names[path] for path in broken] == list(BROKEN)
    assert all(path in reason for path, reason in broken.items())
    written = content(output)
    good = [name for name in names.values() if name not in BROKEN]
    stems = [name.removesuffix(".png") for name in good]
    expected = {f"pictures/{name}" for name in good} | {f"voc/{stem}.xml" for stem in stems}
    expected |= {f"yolo/{stem}.txt" for stem in [*stems, "classes"]}
    expected |= {f"crops/{CLASS_NAMES[index]}/{stem}_{index + 1}.jpg" for stem in stems for index in range(2)}
    expected |= {"detections.json", "detections.images.json", "detections.csv", "errors.txt"}
    assert set(written) == expected
    assert written["errors.txt"].decode().splitlines() == list(broken.values())
    assert len(json.loads(written["detections.json"])) == 3 * len(good)
    found = list(read_detections(output, CLASS_NAMES, names))
    assert [names[detections.path] for detections in found] == good
    for detections in found:
        index = int(names[detections.path][-6:-4])
        assert_is_detections(detections, CLASS_NAMES, size=(40 + index, 60))
        assert detections.size == (40 + index, 60)


def test_pictures_of_16_bits_are_scaled_in_detection_and_in_what_is_drawn(tmp_path, output):
    path = tmp_path / "deep.png"
    path.write_bytes(cv2.imencode(".png", np.full((40, 60), 2048, np.uint16))[1].tobytes())
    scores = {}
    for bit_depth, grey in ((None, 8), (12, 128)):
        name, place = f"{bit_depth}.png", output / str(bit_depth)
        detector = fake_detector(*([f"data.bit_depth={bit_depth}"] if bit_depth else []))
        run({str(path): name}, place, detector=detector)
        scores[grey] = json.loads((place / "detections.json").read_text())[0]["bbox"]
        assert (cv2.imread(str(place / "pictures" / name)) == grey).all(axis=2).any()
    assert scores[8] != scores[128]  # they tell the brightness


def test_the_journal_holds_every_number_exactly(names, output):
    from frcnn.inference import detect_stream

    run(names, output, pictures=False, crops=False)
    direct = [found for found in detect_stream(fake_detector(), list(names)) if not isinstance(found, Exception)]
    kept = list(read_detections(output, CLASS_NAMES, names))
    assert len(kept) == len(direct) == 9
    for first, second in zip(kept, direct, strict=True):
        assert (first.path, first.size) == (second.path, second.size)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.labels, second.labels)


def interrupt(names, output, after, torn=b""):
    """A run that ends after so many pictures, as by Ctrl-C or a kill; `torn` is what the last write left."""
    numbers = detect_folder(fake_detector(), names, output, SETTINGS, begin(output, SETTINGS, resume=False))
    for number in numbers:
        if number == after:
            numbers.close()
    with open(output / JOURNAL, "ab") as journal:
        journal.write(torn)


@pytest.mark.parametrize("after", [1, 4, 7, 10])
@pytest.mark.parametrize(
    "torn", [b"", b'[{"path": "in/09.png", "size": [40, ', b'[{"path": "in/09.png"}, ', b"\0\0\xff"]
)
def test_going_on_after_an_interruption_gives_the_same_bytes(names, output, tmp_path, after, torn):
    """Sizes differ, so that a picture's neighbours in the batch count: the fake detector's scores tell them."""
    broken = run(names, tmp_path / "whole")
    interrupt(names, output, after, torn)
    assert not (output / "detections.json").exists()
    detector = fake_detector()
    assert run(names, output, resume=True, detector=detector) == broken
    assert content(output) == content(tmp_path / "whole")
    assert detector.seen == {1: 9, 4: 6, 7: 3, 10: 3}[after]  # whole batches of three


def test_a_journal_cut_anywhere_gives_the_same_bytes(names, output, tmp_path):
    run(names, tmp_path / "whole")
    whole = (tmp_path / "whole" / JOURNAL).read_bytes()
    header = whole.index(b"\n") + 1
    for cut in range(header, len(whole), (len(whole) - header) // 7):
        shutil.copytree(tmp_path / "whole", output)
        (output / JOURNAL).write_bytes(whole[:cut])
        assert len(begin(output, SETTINGS, resume=True)) in (0, 3, 6, 9)  # a batch, or nothing of it
        run(names, output, resume=True)
        assert content(output) == content(tmp_path / "whole")
        shutil.rmtree(output)


def test_a_full_disk_loses_nothing_that_was_finished(names, output, tmp_path, monkeypatch):
    from frcnn import folders

    def full(path, image):
        if path.name == "06.png":
            raise OSError(28, "No space left on device", str(path))
        write_image(path, image)

    write_image = folders.write_image
    run(names, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_image", full)
        with pytest.raises(OSError, match="No space left"):
            run(names, output)
    assert not (output / "detections.csv").exists()
    assert not [file for file in output.rglob("*") if file.name.endswith(".tmp")]
    run(names, output, resume=True)
    assert content(output) == content(tmp_path / "whole")


def test_going_on_with_a_finished_run_does_only_what_is_new(names, output, draw_picture, tmp_path):
    run(names, output)
    before, detector = content(output), fake_detector()
    run(names, output, resume=True, detector=detector)
    assert (content(output), detector.seen) == (before, 0)  # the broken ones are tried again and stay broken
    new = {str(draw_picture("in/aa.png")): "aa.png", str(draw_picture("in/03.png", 43, 60, seed=3)): "03.png"}
    broken = run(names | new, output, resume=True, detector=detector)
    assert detector.seen == 3  # a batch of two new ones, filled up
    after = content(output)
    assert (
        [names[path] for path in broken] == ["a/07.png"] == [os.path.relpath(path, tmp_path / "in") for path in broken]
    )
    assert {name for name in after if name.startswith("pictures")} - before.keys() == {
        "pictures/aa.png",
        "pictures/03.png",
    }
    table = after["detections.csv"].decode().splitlines()
    assert table[: 1 + 9 * 3] == before["detections.csv"].decode().splitlines() and len(table) == 1 + 11 * 3


def test_a_picture_that_is_gone_is_left_out(names, output):
    run(names, output)
    gone = next(iter(names))
    run({path: name for path, name in names.items() if path != gone}, output, resume=True)
    assert gone not in content(output)["detections.csv"].decode()


@pytest.mark.parametrize("change", [{"weights": "other"}, {"draw_score": 0.6}, {"classes": ["tall"], "crops": False}])
def test_going_on_with_other_settings_is_refused(names, output, change):
    interrupt(names, output, 8)
    before = (output / JOURNAL).read_bytes()
    with pytest.raises(ValueError, match=rf"out holds a run with other {', '.join(change)}: name another"):
        begin(output, SETTINGS | change, resume=True)
    assert (output / JOURNAL).read_bytes() == before


def test_an_unfinished_run_is_not_lost_by_forgetting_to_resume(names, output):
    interrupt(names, output, 8)
    with pytest.raises(
        ValueError, match=r"unfinished run, 6 pictures done: add --resume .*journal.jsonl to start anew"
    ):
        begin(output, SETTINGS, resume=False)
    (output / JOURNAL).unlink()
    assert begin(output, SETTINGS, resume=False) == set()
    assert begin(output, SETTINGS | {"draw_score": 0.1}, resume=False) == set()  # nothing was done yet


def test_a_run_that_starts_anew_mixes_with_nothing_and_removes_only_its_own(names, output, tmp_path):
    (output / "voc").mkdir(parents=True)
    (output / "voc" / "mine.xml").write_text("mine")
    (output / "notes.txt").write_text("mine")
    run(names, output)
    few = dict(list(names.items())[:2])
    run(few, output, pictures=False)
    after = content(output)
    assert {name.partition("/")[0] for name in after} == {
        "notes.txt", "voc", "yolo", "crops", "detections.json", "detections.images.json", "detections.csv"
    }  # fmt: skip
    assert set(after) >= {"notes.txt", "voc/mine.xml", "voc/00.xml"}
    assert {name for name in after if name.startswith("yolo")} == {"yolo/00.txt", "yolo/01.txt", "yolo/classes.txt"}
    assert {name for name in after if name.startswith("crops/wide")} == {"crops/wide/00_2.jpg", "crops/wide/01_2.jpg"}
    (output / "pictures").mkdir()
    (output / "pictures" / "mine.png").write_text("mine")
    run(few, output, pictures=False)
    assert "pictures/mine.png" in content(output)


def test_only_some_classes_leave(names, output):
    run(names, output, classes=["wide"])
    found = list(read_detections(output, CLASS_NAMES, names))
    assert len(found) == 9 and all(detections.labels.tolist() == [1] for detections in found)
    assert {name.split("/")[1] for name in content(output) if name.startswith("crops")} == {"wide"}


def test_what_opencv_cannot_write_is_drawn_as_jpeg(output, draw_picture, tmp_path):
    path = draw_picture("in/a.jpg")
    path = path.rename(path.with_suffix(".jfif"))
    run({str(path): "a.jfif"}, output, crops=False)
    assert cv2.imread(str(output / "pictures" / "a.jfif.jpg")).shape == (40, 60, 3)


def test_files_that_cannot_be_written_are_named_and_the_rest_goes_on(output, draw_picture, tmp_path):
    """A crop of a name of 255 bytes; a picture too wide for its suffix, with what it shows; one named as a folder."""
    long, wide = f"{'ä' * 120}{'b' * 11}.png", "wide.webp"
    draw_picture("in/wide.png", 20, 17_000).rename(tmp_path / "in" / wide)
    for name in (long, "c.png", "c.xml/d.png"):
        draw_picture(f"in/{name}")
    (output / "voc" / "wide.xml").mkdir(parents=True)
    names = {str(tmp_path / "in" / name): name for name in (long, wide, "c.png", "c.xml/d.png")}
    broken = run(names, output)
    assert [names[path] for path in broken] == [wide] and "17,000 pixels" in broken[str(tmp_path / "in" / wide)]
    assert len(list(read_detections(output, CLASS_NAMES, names))) == 4
    written = content(output)
    assert {f"pictures/{long}", f"voc/{long[:-4]}.xml", "voc/c.png.xml", "voc/c.xml/d.xml", "yolo/wide.txt"} <= set(
        written
    )
    assert len([name for name in written if name.startswith("crops/")]) == 8
    assert run(names, output, resume=True) == broken and content(output) == written
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pictures").touch()
    with pytest.raises(ValueError, match="pictures is a file where a folder is to be made"):
        begin(tmp_path / "other", SETTINGS, resume=False)


KILLED = """
import os, signal
from frcnn import files, folders
real, count = os.replace, iter(range(9))
os.replace = lambda *paths: real(*paths) if next(count, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
from tests.test_folders import *
names, output = {names!r}, Path({output!r})
with folders.lock(output):
    run(names, output)
"""


def test_after_a_kill_nothing_half_written_stays_and_the_folder_is_free(names, output, tmp_path):
    program = KILLED.format(names=names, output=str(output))
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    drafts = [path for path in output.rglob(".*") if path.name != LOCK]
    assert killed.returncode == -signal.SIGKILL and drafts and (output / LOCK).exists(), killed.stderr
    with (
        lock(output),
        pytest.raises(ValueError, match=r"out is being written to by process \d+ on .*: wait for"),
        lock(output),
    ):
        pass
    with lock(output):
        broken = run(names, output, resume=True)
    assert broken == run(names, tmp_path / "whole") and content(output) == content(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of other systems are Unicode")
def test_a_file_name_that_is_no_text(output, draw_picture, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.png")
    os.makedirs(tmp_path / "in")
    os.rename(draw_picture("a.png"), path)
    run({path: "\udcff.png"}, output)
    assert "in/\\udcff.png," in (output / "detections.csv").read_text(encoding="utf-8")
    assert {entry["file_name"] for entry in json.loads((output / "detections.json").read_text())} == {path}


def test_a_picture_that_vanishes_before_it_is_drawn_is_broken(names, output, monkeypatch):
    from frcnn import folders

    def vanished(path, bit_depth):
        raise ValueError(f"{path}: cannot read the picture (No such file or directory)")

    monkeypatch.setattr(folders, "read_image", vanished)
    assert len(run(names, output)) == len(names)
    assert len(run(names, output, resume=True, pictures=True)) == len(names)


def test_the_fingerprint_is_of_the_weights():
    first, second = fake_detector(), fake_detector()
    assert fingerprint(first) == fingerprint(second) and len(fingerprint(first)) == 64
    weight = first.weights[0].numpy().copy()
    weight[1, 1] += 1e-6
    second.weights[0].numpy = lambda: weight
    assert fingerprint(first) != fingerprint(second)


# keras-frcnn's test_frcnn.py: what it got wrong, each by its name in the list of defects.


def test_keras_frcnn_defect_detections_never_written_to_a_file(names, output):
    run(names, output, pictures=False, crops=False)
    boxes = [found.boxes for found in read_detections(output, CLASS_NAMES, names)]
    results = json.loads((output / "detections.json").read_text())
    bbox = np.array([entry["bbox"] for entry in results])
    np.testing.assert_allclose(
        np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1), np.concatenate(boxes), atol=0.011
    )


def test_keras_frcnn_defect_score_threshold_fixed_at_0_8(names, output):
    """Everything that the detector lets through is in the files, and the score of the drawings is free."""
    run(names, output, draw_score=0.25)
    scores = [entry["score"] for entry in json.loads((output / "detections.json").read_text())]
    assert min(scores) < 0.4 and sum(score < 0.8 for score in scores) == 18
    drawn = {name for name in content(output) if name.startswith("crops/")}
    assert len(drawn) == 27
