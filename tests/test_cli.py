import json
import subprocess
import sys
from pathlib import Path

import pytest

from frcnn.cli import COMMANDS, find_run, main
from frcnn.config import load_config
from frcnn.data.readers.annotation_text import write_annotations
from tests.oracles.tiny import CLASS_NAMES, OVERRIDES, write_tiny_pictures

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with annotations, pictures and one trained run."""
    folder = tmp_path_factory.mktemp("work")
    records = write_tiny_pictures(folder / "pictures")
    write_annotations(folder / "all.txt", records, CLASS_NAMES)
    overrides = [*OVERRIDES, "train.epochs=1", "train.learning_rate=0.001", "detect.score_threshold=0.01"]
    arguments = ["-p", folder / "all.txt", "--validation", folder / "all.txt", "--output", folder / "runs" / "one"]
    assert main(["train", *map(str, arguments), *overrides]) == 0
    return folder


@pytest.fixture
def frcnn(work, monkeypatch, capsys, tmp_path):
    """Run a command in the folder of `work`: frcnn("detect", ...) -> exit code, stdout, stderr."""
    monkeypatch.chdir(work)

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def assert_one_sentence(result, *words):
    code, _, error = result
    assert code == 2
    assert error.startswith("frcnn ") and len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert all(word in error for word in words), error


@pytest.mark.tensorflow
class TestWithARun:
    def test_training_writes_a_run(self, work):
        names = {path.name for path in (work / "runs" / "one").iterdir()}
        assert names >= {"config.yaml", "config.pickle", "best.weights.h5", "last.weights.h5", "curves.png"}

    def test_detect_writes_pictures_and_both_files(self, frcnn, tmp_path):
        code, out, error = frcnn(
            "detect", "-p", "pictures", "--run", "runs/one", "--output", tmp_path / "found", "--batch-size", 3
        )
        assert (code, error) == (0, "")
        assert "4 pictures" in out and "runs/one" in out
        written = sorted(path.name for path in (tmp_path / "found" / "pictures").iterdir())
        assert written == ["0.png", "1.png", "2.png", "3.png"]
        assert isinstance(json.loads((tmp_path / "found" / "detections.json").read_text()), list | dict)
        assert len((tmp_path / "found" / "detections.csv").read_text().splitlines()) > 1

    def test_the_newest_run_is_taken_and_the_score_holds(self, frcnn, tmp_path):
        code, out, _ = frcnn("detect", "-p", "pictures/0.png", "--score", 1, "--output", tmp_path)
        assert code == 0 and "1 pictures, 0 detections" in out
        assert (tmp_path / "detections.csv").read_text().splitlines()[1:] == [
            "pictures/0.png,,,,,,"
        ]  # looked at, empty

    def test_a_broken_picture_is_skipped_and_said(self, frcnn, tmp_path):
        folder = tmp_path / "mixed"
        write_tiny_pictures(folder, 2)
        (folder / "00.png").write_bytes(b"no picture")
        code, out, error = frcnn("detect", "-p", folder, "--run", "runs/one", "--output", tmp_path / "found")
        assert code == 1 and "2 pictures" in out
        assert error.startswith("frcnn detect: skipped: ") and "00.png" in error and len(error.splitlines()) == 1
        assert sorted(path.name for path in (tmp_path / "found" / "pictures").iterdir()) == ["0.png", "1.png"]

    def test_evaluate_prints_a_table_and_writes_json(self, frcnn, tmp_path):
        code, out, error = frcnn("evaluate", "-p", "all.txt", "--run", "runs/one", "--output", tmp_path / "e.json")
        assert (code, error) == (0, "")
        assert all(name in out for name in CLASS_NAMES)
        assert set(CLASS_NAMES) <= set(str(json.loads((tmp_path / "e.json").read_text())).replace("'", " ").split())

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "-p", "all.txt", "--output", "runs/one"], ["runs/one", "holds a run already"]),
            (["evaluate", "-p", "nothing.txt"], ["nothing.txt"]),
            (["evaluate", "-p", "all.txt", "--run", "nowhere"], ["nowhere"]),
            (["detect", "-p", "nowhere"], ["nowhere", "no such folder or picture"]),
            (["detect", "-p", "runs"], ["runs holds no picture"]),
            (["detect", "-p", "pictures", "--run", "nowhere"], ["nowhere", "not a finished run"]),
            (
                ["detect", "-p", "pictures", "--weights", "last", "--batch-size", "0"],
                ["detect.batch_size", "greater than or equal to 1"],
            ),
            (["detect", "-p", "pictures", "--score", "2"], ["score", "less than or equal to 1"]),
            (["detect", "-p", "pictures", "--nms", "-1"], ["nms", "greater than or equal to 0"]),
            (["detect", "-p", "pictures", "detect.max=3"], ["unknown field detect.max"]),
        ],
        ids=lambda value: " ".join(value) if value[0] in COMMANDS else "",
    )
    def test_a_mistake_is_one_sentence(self, frcnn, tmp_path, arguments, words):
        assert_one_sentence(frcnn(*arguments), *words)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """The same without a run, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_mistakes_that_need_no_run(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("train:\n  epoch: 3\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    (tmp_path / "bad.txt").write_text("a.png,1,2\n")
    assert_one_sentence(command("train", "-p", "nothing.txt"), "nothing.txt")
    assert_one_sentence(command("train", "-p", "bad.txt"), "bad.txt line 1")
    assert_one_sentence(command("train", "-p", "x.txt", "--config", "bad.yaml"), "did you mean train.epochs")
    assert_one_sentence(command("train", "-p", "x.txt", "--config", "no.yaml"), "no.yaml")
    assert_one_sentence(command("train", "-p", "x.txt", "train.epochs=0"), "greater than or equal to 1")
    assert_one_sentence(command("train", "-p", "x.txt", "epochs"), "expected section.field=value")
    assert_one_sentence(command("detect", "-p", "pictures"), "train a detector first")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["train"], ["detect", "-p", "x", "--batch-size", "many"]])
def test_a_wrong_command_line_exits_with_2_and_its_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: frcnn")


def test_errors_of_the_program_are_not_hidden(monkeypatch):
    def fail(*_):
        raise KeyError("a defect")

    monkeypatch.setattr("frcnn.cli.inspect.run", fail)
    with pytest.raises(KeyError):
        main(["inspect", "config"])


def test_an_interrupt_is_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("frcnn.cli.inspect.run", interrupt)
    assert main(["inspect", "config"]) == 130
    assert capsys.readouterr().err == "frcnn inspect: interrupted\n"


def test_the_traceback_can_be_had(monkeypatch):
    monkeypatch.setenv("FRCNN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown field"):
        main(["inspect", "config", "train.epoch=3"])


def test_inspect_prints_every_field_with_its_value(command):
    code, out, error = command("inspect", "config", "train.epochs=77")
    assert (code, error) == (0, "")
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    dumped = load_config().model_dump()
    assert set(lines) == {f"{section}.{name}" for section, fields in dumped.items() for name in fields}
    assert lines["train.epochs"] == "77" and lines["data.im_size"] == "600"


def test_the_newest_run_is_found_by_its_pickle(tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    for age, name in ((100, "b"), (50, "a"), (10, "unfinished")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        file = tmp_path / "runs" / name / ("config.pickle" if len(name) == 1 else "config.yaml")
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    assert find_run(None) == Path("runs/a")
    assert find_run("elsewhere") == Path("elsewhere")


PROGRAM = """
import runpy, sys
code = None
try:
    {call}
except SystemExit as end:
    code = end.code
heavy = sorted({{"keras", "tensorflow", "jax", "torch", "matplotlib"}} & set(sys.modules))
print("END", code, heavy)
"""


@pytest.mark.parametrize("start", ["train_frcnn.py", "test_frcnn.py", *COMMANDS, ""])
def test_help_ends_with_an_example_and_imports_nothing_heavy(start):
    arguments = [start, "--help"] if start else ["--help"]
    call = f"from frcnn.cli import main; main({arguments!r})"
    if start.endswith(".py"):
        call = f"sys.argv = {arguments!r}; runpy.run_path({start!r}, run_name='__main__')"
    program = [sys.executable, "-c", PROGRAM.format(call=call)]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    *text, end = result.stdout.strip().splitlines()
    assert (end, result.stderr) == ("END 0 []", "")
    command = {"train_frcnn.py": "train", "test_frcnn.py": "detect", "": "train"}.get(start, start)
    assert [line for line in text if line][-1].startswith(f"example: frcnn {command} ")
