import json
import os
import shutil
import sys

import numpy as np
import pytest

from frcnn.cli import main
from frcnn.cli.detect import _detect, find_names
from tests.oracles.fake_detector import fake_detector

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def work(tmp_path, monkeypatch, draw_picture):
    """The working directory: four pictures in three folders, two of the same name."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.png", "day/a.png", "day/b.jpg", "day/late/c.png")):
        draw_picture(f"pictures/{name}", 40 + index, 60, seed=index)
    return tmp_path


@pytest.fixture
def detect(work, monkeypatch, capsys):
    """Run the command with the fake detector: detect("--score", 0.5) -> exit code, stdout, stderr; `.loaded` counts."""

    def load(run, weights, overrides):
        call.loaded.append(overrides)
        return fake_detector(*overrides)

    def call(*arguments):
        capsys.readouterr()
        path = [] if "-p" in arguments else ["-p", "pictures/"]
        code = main(["detect", *path, "--run", "runs/one", *map(str, arguments)])
        return code, *capsys.readouterr()

    call.loaded = []
    monkeypatch.setattr("frcnn.inference.load_detector", load)
    return call


def assert_one_sentence(result, *words):
    code, _, error = result
    assert code == 2
    assert error.startswith("frcnn detect: ") and len(error.strip().splitlines()) == 1
    assert all(word in error for word in words), error


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sub_folders_are_searched_and_kept(detect, work):
    code, out, error = detect("--output", "pictures/found")
    assert (code, error) == (0, "")
    drawn = [f"pictures/{name}" for name in ("a.png", "day/a.png", "day/b.jpg", "day/late/c.png")]
    assert files(work / "pictures" / "found") == [
        "detections.csv", "detections.images.json", "detections.journal.jsonl", "detections.json", *drawn
    ]  # fmt: skip
    *_, speed, summary, written = out.splitlines()
    assert speed.startswith("4 pictures in ") and speed.endswith("/s")
    assert summary == "4 pictures, 8 detections of score 0.5 or more: 4 tall, 4 wide"
    assert written.startswith("written to pictures/found: pictures, detections.json, ")
    table = (work / "pictures" / "found" / "detections.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table[1::3]] == drawn  # the paths as they were found
    assert detect("--output", "pictures/found")[1].splitlines()[-2] == summary  # its own drawings are no input


def test_formats_crops_and_no_pictures(detect, work):
    code, out, _ = detect(
        "--format", "voc", "yolo", "--save-crops", "--no-pictures", "--draw-score", 0.8, "--output", "o"
    )
    assert code == 0 and "4 detections of score 0.8 or more: 4 tall\n" in out
    crops = [f"crops/tall/{stem}_1.jpg" for stem in ("a", "day/a", "day/b", "day/late/c")]
    others = [f"{kind}/{stem}.{suffix}" for kind, suffix in (("voc", "xml"), ("yolo", "txt"))
              for stem in ("a", "day/a", "day/b", "day/late/c")]  # fmt: skip
    assert files(work / "o") == sorted([*crops, *others, "yolo/classes.txt", "detections.journal.jsonl"])


def test_one_picture(detect, work):
    code, out, _ = detect("-p", "pictures/day/b.jpg", "--classes", "wide")
    assert code == 0 and "1 pictures, 1 detections of score 0.5 or more: 1 wide" in out
    assert "detections/pictures/b.jpg" in [str(path.relative_to(work)) for path in work.rglob("*.jpg")]


def test_flags_are_fields_of_the_config(detect):
    flags = ["--score", 0.2, "--nms", 0.4, "--max-detections", 7, "--batch-size", 2, "--workers", 3]
    assert detect("data.im_size=80", "data.max_size=90", *flags)[0] == 0
    assert sorted(detect.loaded[0]) == sorted([
        "data.im_size=80", "data.max_size=90", "detect.score_threshold=0.2", "detect.nms_iou=0.4",
        "detect.max_detections=7", "detect.batch_size=2", "data.workers=3",
    ])  # fmt: skip


def test_broken_pictures_are_counted_and_said(detect, work):
    for index in range(23):
        (work / "pictures" / f"z{index:02d}.png").write_bytes(b"no picture")
    (work / "pictures" / "gone.png").symlink_to("nowhere.png")
    code, out, error = detect()
    assert code == 1 and "4 pictures, 8 detections" in out
    lines = error.splitlines()
    assert len(lines) == 21 and lines[-1] == "frcnn detect: ... 24 in all, see detections/errors.txt"
    assert lines[0].startswith("frcnn detect: skipped: pictures/gone.png: cannot ")
    assert lines[19].startswith("frcnn detect: skipped: pictures/z18.png: cannot decode the picture")
    assert len((work / "detections" / "errors.txt").read_text().splitlines()) == 24
    for path in (work / "pictures").glob("[zg]*.png"):
        path.unlink()
    assert detect("--resume")[0] == 0
    assert not (work / "detections" / "errors.txt").exists()


def test_mistakes_are_said_before_the_detector_is_loaded(detect, work, monkeypatch):
    (work / "empty").mkdir()
    (work / "file").touch()
    assert_one_sentence(detect("-p", "nowhere"), "nowhere: no such folder or picture")
    assert_one_sentence(detect("-p", "empty"), "empty holds no picture (.jpg, .jpeg, ")
    assert_one_sentence(detect("--output", "."), "pictures lies in the output folder .: name another --output")
    assert_one_sentence(detect("--output", "pictures"), "pictures lies in the output folder pictures")
    assert_one_sentence(detect("-p", "pictures/a.png", "--output", "pictures"), "name another --output")
    assert_one_sentence(
        detect("--output", "file/found"), "file/found: nothing can be written to ", "/file: name another"
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda place, mode: False)
        assert_one_sentence(detect("--output", "new/found"), f"new/found: nothing can be written to {work}")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 0))
        assert_one_sentence(detect("--output", "found"), "found: no space is left there: make room, or name another")
    assert detect.loaded == [] and sorted(path.name for path in work.iterdir()) == ["empty", "file", "pictures"]


def test_an_unknown_class_is_named_with_the_known_ones(detect, work):
    assert_one_sentence(detect("--classes", "wide", "cart"), "the detector has no cart; it knows tall, wide")
    assert not (work / "detections").exists()


@pytest.mark.parametrize("fails", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_goes_on(detect, work, monkeypatch, fails):
    from frcnn import folders

    def stop(path, image):
        if path.name == "c.png":
            raise fails
        write_image(path, image)

    write_image = folders.write_image
    assert detect("--output", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_image", stop)
        code, _, error = detect("--output", "found", "-p", "pictures")
    if fails is KeyboardInterrupt:
        assert (code, error) == (130, "\nfrcnn detect: interrupted; the same command with --resume goes on\n")
    else:
        assert_one_sentence((code, "", error), "found: ", "No space left on device", "with --resume goes on")
    assert_one_sentence(detect("--output", "found"), "found holds an unfinished run, 3 pictures done: add --resume")
    assert_one_sentence(detect("--output", "found", "--resume", "--score", 0.3), "other detect.score_threshold: name")
    code, out, _ = detect("--output", "found", "--resume")
    assert code == 0 and "3 of 4 pictures are done already\n" in out and "\n1 pictures in " in out
    names = [name for name in files(work / "whole") if not name.endswith("jsonl")]
    assert [(work / "found" / name).read_bytes() for name in names] == [
        (work / "whole" / name).read_bytes() for name in names
    ]
    before = {name: (work / "found" / name).read_bytes() for name in names}
    code, out, _ = detect("--output", "found", "--resume")
    assert code == 0 and "4 of 4 pictures are done already; nothing is left to detect\n" in out
    assert {name: (work / "found" / name).read_bytes() for name in names} == before


def test_a_second_detection_into_the_same_folder_is_refused(detect, work):
    from frcnn import folders

    with folders.lock(work / "found"):
        assert_one_sentence(detect("--output", "found"), f"found is being written to by process {os.getpid()} on ")
    assert files(work / "found") == [] and detect("--output", "found")[0] == 0


def test_a_folder_that_cannot_be_listed_is_said_and_the_rest_goes_on(detect, work, monkeypatch):
    real = os.scandir

    def scandir(place):
        if str(place).endswith("late"):
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    code, out, error = detect()
    assert code == 1 and "3 pictures, 6 detections" in out
    assert error == "frcnn detect: skipped: pictures/day/late: the folder cannot be listed (Permission denied)\n"
    assert (work / "detections" / "errors.txt").read_text() in error
    assert_one_sentence(detect("-p", "pictures/day/late", "--output", "o"), "late: the folder cannot be listed")


def test_pictures_are_named_by_their_place_in_the_folder(work):
    assert find_names("pictures/", work / "out") == {
        "pictures/a.png": "a.png",
        "pictures/day/a.png": "day/a.png",
        "pictures/day/b.jpg": "day/b.jpg",
        "pictures/day/late/c.png": "day/late/c.png",
    }
    assert find_names("pictures", work / "pictures" / "day").keys() == {"pictures/a.png"}
    assert find_names("./pictures/day/b.jpg", work / "out") == {"pictures/day/b.jpg": "b.jpg"}


LISTED = {"pictures/a.png": "a.png", "pictures/day/a.png": "day/a.png", "pictures/day/late/c.png": "day/late/c.png"}
NAMES = [name.removeprefix("pictures/") for name in LISTED]
COCO = {"images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)], "annotations": []}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pictures/list.txt", "".join(f"{name}\r\n\n" for name in [*NAMES, "./a.png"])),
        ("list.lst", "".join(f'"{name}"\n' for name in LISTED)),
        ("boxes.txt", "".join(f"{name},1,1,9,{bottom},cat\n" for name, bottom in zip(LISTED, (9, 9, 0)))),
        ("pictures/test.json", json.dumps(COCO | {"categories": [{"id": 1, "name": "cat"}]})),
        ("data.yaml", "train: train.txt\nnames: [cat]\n"),
    ],
)
def test_pictures_of_lists_and_annotations(work, file, text):
    (work / "train.txt").write_text("".join(f"{name}\n" for name in LISTED))
    (work / file).write_text(text)
    names = find_names(file, work / "out")
    assert {os.path.relpath(path): name for path, name in names.items()} == LISTED
    os.rename("pictures", "moved")
    (work / file).parent.mkdir(exist_ok=True)
    (work / file).write_text(text)
    with pytest.raises(ValueError, match=r"(?s)no picture at .*where the pictures lie in another folder, name it"):
        find_names(file, work / "out")
    names = find_names(file, work / "out", images="moved")
    assert list(names.values()) == list(LISTED.values())
    with pytest.raises(ValueError, match="lies in the output folder"):
        find_names(file, work / "moved" / "day", images="moved")


def test_what_cannot_be_read_of_annotations_is_said_in_the_end(detect, work):
    (work / "pictures" / "broken.png").write_bytes(b"no picture")
    (work / "boxes.txt").write_text("pictures/broken.png,1,1,9,9,cat\npictures/a.png,1,1,9,9\npictures/a.png,,,,,\n")
    code, out, error = detect("-p", "boxes.txt")
    assert code == 1 and "note: 1 mistakes in boxes.txt are passed over: frcnn doctor lists them" in out
    assert error.startswith("frcnn detect: skipped: pictures/broken.png: cannot") and "1 pictures, 2 detections" in out


def test_splits_and_kinds_that_are_not_read(detect, work):
    (work / "val.txt").write_text("pictures/a.png\n")
    (work / "data.yaml").write_text("train: pictures\nval: val.txt\nnames: [cat]\n")
    assert find_names("data.yaml", work / "out", "val") == {"pictures/a.png": "a.png"}
    for path in ("pictures", "pictures/a.png"):
        assert_one_sentence(detect("-p", path, "--split", "val"), f"{path} is no list of pictures, and no annotations")
    (work / "pictures" / "b.psd").touch()
    with pytest.warns(UserWarning, match=r"left out: 1 .psd"):
        assert len(find_names("pictures", work / "out")) == 4
    assert find_names("pictures/b.psd", work / "out") == {"pictures/b.psd": "b.psd"}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_speed_and_what_is_left(capsys, monkeypatch, terminal):
    """A picture every 10 s: a line each on a terminal, else one every 40 s."""
    clock = iter(np.arange(0, 1000, 10.0))
    monkeypatch.setattr("frcnn.cli.detect.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    _detect(iter(range(1, 9)), 10, 2)
    out = capsys.readouterr().out
    assert out.startswith("2 of 10 pictures are done already\n")
    lines = out.split("\n")[1:-1]
    if terminal:
        (line,) = lines
        assert "\r[#########                     ] 3/10 pictures, 0.1/s, 0:01:10 left" in line
        assert line.count("\r") == 8 and "\r8 pictures in 80.0 s, 0.1/s" in line
    else:
        assert lines == ["6/10 pictures, 0.1/s, 0:00:40 left", "8 pictures in 80.0 s, 0.1/s"]


def test_no_progress_where_nothing_is_left(capsys):
    _detect(iter(()), 3, 3)
    assert capsys.readouterr().out == "3 of 3 pictures are done already; nothing is left to detect\n"
