"""Hostile and broken annotations for every reader; see also tests/fuzz/annotations.py."""

import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frcnn.data.readers import problems as reader_problems
from frcnn.data.readers import read_records
from tests.fuzz.annotations import CORPUS, change_values, check, plant, read, run

every_format = pytest.mark.parametrize("format", CORPUS)


@pytest.fixture
def planted(tmp_path):
    """What to read of a format, and the file to damage."""
    return lambda format: (lambda path, files: (path, files[0]))(*plant(tmp_path, format))


@every_format
def test_300_damaged_files_end_in_records_or_a_sentence(tmp_path, format):
    outcomes = run(format, 300, 0, tmp_path)
    assert sum(outcomes.values()) == 300
    assert outcomes["mistakes"] > 0


@every_format
def test_the_whole_files_of_the_corpus_are_read(planted, format):
    path, file = planted(format)
    for text in CORPUS[format][1]:
        file.write_text(text, encoding="utf-8")
        assert check(path, format) in ("read", "notes", "mistakes")


@every_format
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_read_or_refused_in_a_sentence(planted, format, data):
    path, file = planted(format)
    file.write_bytes(data)
    check(path, format)


@pytest.mark.parametrize("format", ["coco", "label-studio", "huggingface"])
@pytest.mark.parametrize("text", [0, 1])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_values_of_json_are_read_or_refused_in_a_sentence(planted, format, text, seed):
    path, file = planted(format)
    file.write_bytes(change_values(CORPUS[format][1][text], np.random.default_rng(seed)))
    check(path, format)


@every_format
@pytest.mark.parametrize("thing", ["pipe", "folder", "device", "loop", "nothing"])
def test_what_is_no_file_is_refused_at_once(planted, format, thing):
    """Opening a pipe that nobody writes into would wait for ever."""
    path, file = planted(format)
    file.unlink(missing_ok=True)
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "nothing": lambda place: None}
    make |= {"device": lambda place: os.symlink("/dev/zero", place), "loop": lambda place: os.symlink(place, place)}
    make[thing](file)
    start = time.perf_counter()
    problems = []
    _, _, error = read(path, format, problems)
    assert time.perf_counter() - start < 5
    if (format, thing) == ("yolo", "nothing"):
        return  # a picture without a label file is background
    shown = error or str([problem.message for problem in problems])
    assert file.name in shown or "no YOLO data set" in shown or "has no annotated picture" in shown
    assert error or [problem for problem in problems if problem.severity == "error"]


@pytest.mark.parametrize("place", ["..", "../..", "/"])
def test_a_folder_of_pictures_that_holds_the_data_set_is_not_searched(planted, place):
    """Or a data.yaml could have the whole disk searched."""
    path, file = planted("yaml")
    file.write_text(f"train: {place}\nnames: [cat]")
    with pytest.raises(ValueError, match=r"data\.yaml: train: .* holds the data set itself"):
        read_records(path, "yolo")


def test_pipes_in_place_of_lists_of_pictures_are_not_read(tmp_path):
    path, _ = plant(tmp_path, "voc")
    (path / "ImageSets/Main").mkdir(parents=True)
    os.mkfifo(path / "ImageSets/Main/train.txt")
    with pytest.raises(ValueError, match="has no split 'train'"):
        read_records(path, "voc", split="train")
    path, (file,) = plant(tmp_path, "yaml")
    (path / "list.txt").unlink()
    os.mkfifo(path / "list.txt")
    file.write_text("train: list.txt\nnames: [cat]")
    with pytest.raises(ValueError, match="no folder or list of pictures"):
        read_records(path, "yolo")


def test_a_file_that_becomes_a_pipe_between_check_and_use_is_refused(planted, monkeypatch):
    path, file = planted("simple")
    file.write_text("a.png,1,1,5,5,cat")
    real_open = os.open

    def swap(name, *arguments):
        os.unlink(name)
        os.mkfifo(name)
        return real_open(name, *arguments)

    monkeypatch.setattr(reader_problems.os, "open", swap)
    with pytest.raises(ValueError, match="a pipe or a device, not a file"):
        read_records(path)


def test_an_annotation_that_vanishes_after_the_folder_was_listed_is_a_problem(planted, monkeypatch):
    path, file = planted("voc")
    file.write_text(CORPUS["voc"][1][0])
    monkeypatch.setattr(
        "frcnn.data.readers.voc.read_bytes", lambda place: place.unlink() or reader_problems.read_bytes(place)
    )
    problems = []
    with pytest.raises(ValueError, match="No such file"):
        read_records(path, "voc")
    file.write_text(CORPUS["voc"][1][0])
    assert read_records(path, "voc", problems=problems)[0] == []
    assert [problem.kind for problem in problems] == ["unreadable-file", "no-boxes"]


def test_a_file_beyond_the_limit_is_refused_before_it_is_read_whole(planted, monkeypatch):
    path, file = planted("simple")
    with open(file, "wb") as sparse:
        sparse.truncate(2**34)
    monkeypatch.setattr(reader_problems, "MAX_BYTES", 2**20)
    monkeypatch.setattr(reader_problems.read_bytes, "__defaults__", (2**20,))
    with pytest.raises(ValueError, match="more than 1 MiB is not read"):
        read_records(path)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("simple", f"a.png,1,1,5,{'x' * 10**6},cat"),
        ("simple", "," * 10**6),
        ("simple", "\x1b[2Jx.png,1,1,5,5,cat\n" * 3),
        ("voc", f"<annotation><object><name>{'x' * 10**6}</name></object></annotation>"),
        ("voc", "<annotation>" + "<object>" * 100_000 + "</object>" * 100_000 + "</annotation>"),
        ("coco", '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "' + "x" * 10**6 + '"}, 5]}'),
        ("csv", f"file,xmin,ymin,xmax,ymax,class\na.png,1,1,5,{'x' * 10**6},cat"),
        ("csv", f"file,xmin,ymin,xmax,ymax,{'x' * 10**5}"),
        ("csv", "file,xmin,ymin,xmax,ymax,class\n" + "," * 10**6),
        ("label-studio", "[" * 100_000),
        ("label-studio", '[{"data": {"image": "' + "x/" * 10**6 + '"}, "annotations": [{"result": []}]}]'),
        ("label-studio", '[{"data": {"image": "/data/local-files/?d=' + "../x/" * 10**5 + '"}, "annotations": [{}]}]'),
        ("huggingface", '{"file_name": "a.png", "objects": ' + "[" * 100_000),
        ("huggingface", '{"file_name": "a.png", "objects": {"bbox": [[' + "9" * 10**5 + "]]}}"),
        ("yolo", "0 " * 10**6),
        ("yolo", "0 " + ".5 " * 10**6),
        ("yaml", f"train: {'x' * 10**5}\nnames: [cat]"),
    ],
    ids=lambda value: value[:12],
)
def test_long_lines_and_deep_nesting_give_short_sentences(planted, format, text):
    path, file = planted(format)
    file.write_text(text)
    problems = []
    _, _, error = read(path, format, problems)
    messages = [error] if error else [str(problem) for problem in problems]
    assert messages and all(len(message) < 1200 and message.isprintable() for message in messages)


def test_a_hundred_thousand_mistakes_are_kept_and_the_rest_counted(planted, monkeypatch):
    monkeypatch.setattr(reader_problems, "_MAX_KEPT", 30)
    path, file = planted("simple")
    file.write_text("a.png\n" * 50)
    problems = []
    read_records(path, problems=problems)
    assert [problem.kind for problem in problems] == ["field-count"] * 30 + ["too-many", "no-boxes"]
    assert problems[30].message == "20 more problems"
    with pytest.raises(ValueError, match=r"and 30 more$"):
        read_records(path)
