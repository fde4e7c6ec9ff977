import errno
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from frcnn.cli import COMMANDS, find_run, main
from frcnn.config import load_config, load_pickle, save_config
from frcnn.data.readers.annotation_text import write_annotations
from tests.oracles.tiny import CLASS_NAMES, OVERRIDES, write_tiny_pictures

ROOT = Path(__file__).parents[1]


def run_script(name, *arguments):
    """Run train_frcnn.py or test_frcnn.py in the working directory, in this process; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    return caught.value.code


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with annotations, pictures and one trained run, made as with keras-frcnn."""
    folder = tmp_path_factory.mktemp("work")
    records = write_tiny_pictures(folder / "pictures")
    write_annotations(folder / "all.txt", records, CLASS_NAMES)
    (folder / "empty").mkdir()
    overrides = [*OVERRIDES, "train.learning_rate=0.001", "detect.score_threshold=0.01"]
    flags = ["-o", "simple", "-p", "all.txt", "--num_epochs", 1, "-n", 16, "--network", "resnet18"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_script("train_frcnn.py", *flags, "--validation=all.txt", "--output=runs/one", *overrides) == 0
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

    def test_the_old_files_are_a_copy_that_detects_the_same(self, work, frcnn, tmp_path, capsys):
        assert (work / "model_frcnn.hdf5").read_bytes() == (work / "runs" / "one" / "best.weights.h5").read_bytes()
        assert load_pickle("config.pickle") == (*load_pickle("runs/one")[:2], Path("model_frcnn.hdf5"))
        arguments = ["-p", "pictures/", "-n", 8, "--network=resnet50", "--output"]
        assert run_script("test_frcnn.py", *arguments, tmp_path / "old") == 0
        assert "config.pickle" in capsys.readouterr().out
        assert frcnn("detect", *arguments, tmp_path / "new", "--run", "runs/one")[0] == 0
        old, new = ((tmp_path / name / "detections.json").read_text() for name in ("old", "new"))
        assert old == new and len(json.loads(old)) > 0

    def test_a_run_that_is_named_wins(self, frcnn, capsys):
        assert run_script("test_frcnn.py", "-p", "pictures", "--run", "nowhere") == 2
        assert "nowhere is not a finished run" in capsys.readouterr().err

    def test_a_config_without_its_weights(self, work, frcnn, tmp_path):
        (tmp_path / "config.pickle").write_bytes((work / "config.pickle").read_bytes())
        result = frcnn("detect", "-p", work / "pictures", "--config_filename", tmp_path / "config.pickle")
        assert_one_sentence(result, "model_frcnn.hdf5 is missing")

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
        code, out, error = frcnn(
            "evaluate", "-p", "all.txt", "--config_filename", "config.pickle", "--output", tmp_path
        )
        assert (code, error) == (0, "")
        assert all(name in out for name in CLASS_NAMES)
        assert [entry["name"] for entry in json.loads((tmp_path / "evaluation.json").read_text())["classes"]] == [
            *CLASS_NAMES
        ]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["train", "-p", "all.txt", "--output", "runs/one"], ["runs/one", "holds a run already"]),
            (["evaluate", "-p", "nothing.txt"], ["nothing.txt"]),
            (["evaluate", "-p", "all.txt", "--run", "nowhere"], ["nowhere"]),
            (["detect", "-p", "nowhere"], ["nowhere", "no such folder or picture"]),
            (["detect", "-p", "empty"], ["empty holds no picture"]),
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
    assert_one_sentence(command("train"), "name annotated pictures with -p, or an interrupted run with --resume")
    assert_one_sentence(command("train", "-p", "nothing.txt"), "nothing.txt")
    assert_one_sentence(command("train", "-p", "bad.txt"), "bad.txt line 1")
    assert_one_sentence(command("train", "-p", "x.txt", "--config", "bad.yaml"), "did you mean train.epochs")
    assert_one_sentence(command("train", "-p", "x.txt", "--config", "no.yaml"), "no.yaml")
    assert_one_sentence(command("train", "-p", "x.txt", "train.epochs=0"), "greater than or equal to 1")
    assert_one_sentence(command("train", "-p", "x.txt", "epochs"), "expected section.field=value")
    assert_one_sentence(command("detect", "-p", "pictures"), "runs/ holds none of a detector: train one first")


@pytest.fixture
def pictures(tmp_path):
    """Annotations of two classes, `all.txt`, beside the pictures."""
    records = write_tiny_pictures(tmp_path / "pictures")
    write_annotations(tmp_path / "all.txt", records, CLASS_NAMES)
    return records


@pytest.fixture
def training(monkeypatch):
    """Stands in for the training itself: keeps what it is given and writes a run of one byte; `end` is raised."""
    given = SimpleNamespace(end=None)

    def build_model(config, class_names, resumed):
        given.config, given.class_names = config, class_names
        return SimpleNamespace(config=config, class_names=class_names, weights_report=None)

    def train_model(model, records, *, validation, output, verbose, saved, stop):
        given.records, given.validation = records, validation
        save_config(model.config, output, model.class_names)
        (output / "best.weights.h5").write_bytes(b"w")
        if given.end:
            raise given.end
        return SimpleNamespace(history={"loss": [1.0]})

    monkeypatch.setattr("frcnn.training.build_model", build_model)
    monkeypatch.setattr("frcnn.training.train_model", train_model)
    monkeypatch.setattr("frcnn.memory.describe_need", lambda *_: "memory: enough")
    return given


@pytest.mark.parametrize("flags", [["--classes", "car", "data.im_size=0"], ["data.im_size=0", "--format", "csv"]])
def test_an_override_may_stand_anywhere_even_after_a_list(command, flags):
    assert_one_sentence(command("detect", "-p", "nowhere", *flags), "nowhere: no such folder or picture")


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-p", "all.txt", "--validation", "all.txt", "--output", "run"),
        ("doctor", "all.txt", "--test", "all.txt"),
        ("convert-data", "all.txt", "new.json", "--to", "coco"),
        ("inspect", "batch", "-p", "all.txt", "--epochs", "1", *OVERRIDES),
        ("inspect", "anchors", "moved/0.png", "--boxes", "all.txt", *OVERRIDES),
        ("evaluate", "-p", "all.txt", "--detections", "detections.json"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_command_finds_moved_pictures(command, pictures, training, arguments):
    Path("pictures").rename("moved")
    Path("detections.json").write_text("[]")
    listing = {
        "images": [{"file_name": f"{index}.png"} for index in range(4)],
        "categories": [{"id": 1, "name": "tall"}],
    }
    listing["categories"].append({"id": 2, "name": "wide"})
    Path("detections.images.json").write_text(json.dumps(listing))
    code, out, error = command(*arguments)
    assert code in (1, 2) and "no picture at" in out + error and "--images FOLDER" in out + error
    code, out, error = command(*arguments, "--images", "moved")
    assert "no picture at" not in out + error and code == 0, error


def test_training_says_how_many_pictures_are_background_and_what_is_repeated(command, pictures, training):
    """Each class is on two of four pictures, so a threshold of 1 gives sqrt(2): 3 x 1.41 + 1 = 5.24 pictures."""
    arguments = ["train", "-p", "all.txt", "--validation", "all.txt"]
    _, out, _ = command(*arguments, "--output", "one")
    assert "1 of the 4 pictures to train on show no object" in out and "rare classes" not in out
    _, out, _ = command(*arguments, "--output", "two", "data.repeat_threshold=1")
    assert "rare classes: tall x 1.41, wide x 1.41; an epoch takes 5 pictures of 4" in out
    _, out, _ = command(*arguments, "--output", "three", "data.repeat_threshold=0.4")
    assert "rare classes: none; an epoch takes 4 pictures of 4" in out


class TestKerasFrcnnsFlags:
    @pytest.mark.parametrize(
        ("flags", "overrides"),
        [
            ([], []),
            (["-n", "8"], ["roi.samples=8"]),
            (["--num_rois=8"], ["roi.samples=8"]),
            (["--network", "resnet50"], ["model.depth=50"]),
            (["--network=resnet34"], ["model.depth=34"]),
            (["--hf"], ["data.horizontal_flip=true"]),
            (["--hf", "data.horizontal_flip=false"], []),
            (["data.horizontal_flip=false"], ["data.horizontal_flip=false"]),
            (["--vf"], ["data.vertical_flip=true"]),
            (["--rot"], ["data.rotate_90=true"]),
            (["--rot_90"], ["data.rotate_90=true"]),
            (["--num_epochs", "7"], ["train.epochs=7"]),
            (["--num_epochs", "7", "--hf", "train.epochs=3"], ["train.epochs=7"]),
            (["--input_weight_path", "a: [b].h5"], ["model.weights='a: [b].h5'"]),
            (["-o", "simple", "--split=a"], None),
        ],
        ids=str,
    )
    def test_training_is_told(self, command, pictures, training, flags, overrides):
        code, _, error = command("train", "-p", "all.txt", "--output", "run", *flags)
        if overrides is None:
            return assert_one_sentence((code, "", error), "split")
        assert (code, error) == (0, "")
        assert training.config == load_config(None, overrides)

    def test_the_files_go_where_they_say_and_into_the_run(self, command, pictures, training):
        flags = ["--output_weight_path", "a/w.hdf5", "--config_filename", "b/c.pickle"]
        code, out, _ = command("train", "-p", "all.txt", "--output", "run", *flags)
        assert code == 0 and "--config_filename b/c.pickle" in out
        assert Path("a/w.hdf5").read_bytes() == b"w"
        assert load_pickle("b/c.pickle") == (load_config(), CLASS_NAMES, Path("a/w.hdf5").absolute())
        assert sorted(path.name for path in Path("run").iterdir()) == [
            "best.weights.h5",
            "config.pickle",
            "config.yaml",
        ]
        command("train", "-p", "all.txt", "--output", "run2", "--config_filename", "run2/c.pickle")
        assert load_pickle("run2/c.pickle")[2] == Path("run2/best.weights.h5")

    def test_without_them_only_the_run_is_written(self, command, pictures, training, tmp_path):
        before = set(tmp_path.iterdir())
        assert command("train", "-p", "all.txt", "--output", "run")[0] == 0
        assert set(tmp_path.iterdir()) - before == {tmp_path / "run"}

    def test_the_scripts_name_them_unless_told_otherwise(self, command, pictures, training):
        assert (
            run_script("train_frcnn.py", "-p", "all.txt", "--output", "run", "--config_filename", "other.pickle") == 0
        )
        assert not Path("config.pickle").exists()
        assert load_pickle("other.pickle")[2] == Path("model_frcnn.hdf5")

    @pytest.mark.parametrize(
        ("end", "code", "kept"),
        [(KeyboardInterrupt(), 130, True), (FloatingPointError("inf"), 2, True), (OSError(28, "no space"), 2, False)],
        ids=repr,
    )
    def test_what_an_interrupted_run_has_is_kept(self, command, pictures, training, end, code, kept):
        training.end = end
        flags = ["--output_weight_path", "w.hdf5", "--config_filename", "c.pickle"]
        result = command("train", "-p", "all.txt", "--output", "run", *flags)
        assert result[0] == code and result[2].startswith("frcnn train: ") and result[2].count("\n") == 1
        assert [Path(name).exists() for name in ("w.hdf5", "c.pickle")] == [kept, kept]

    def test_vgg_is_not_there(self, command, pictures):
        result = command("train", "-p", "all.txt", "--network", "vgg")
        assert_one_sentence(result, "network 'vgg' is not there: frcnn has ResNets only")
        assert_one_sentence(command("train", "-p", "all.txt", "--network", "resnet19"), "model.depth (19) must be")


VOC_OBJECT = (
    "<object><name>{}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"
)


@pytest.fixture
def voc(draw_picture, tmp_path):
    """VOCdevkit/VOC2007 with the splits train (0, 1), val (2), trainval and test (3); a picture a class a or b."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for index, name in enumerate("abab"):
        draw_picture(f"VOCdevkit/VOC2007/JPEGImages/{index}.jpg")
        text = f"<annotation><filename>{index}.jpg</filename>{VOC_OBJECT.format(name)}</annotation>"
        (root / "Annotations" / f"{index}.xml").write_text(text)
    for split, names in {"train": "01", "val": "2", "trainval": "012", "test": "3"}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def names_of(records):
    return [Path(record.path).stem for record in records]


@pytest.mark.parametrize(
    ("flags", "trained", "validated"),
    [
        (["data.val_fraction=0"], "012", ""),
        (["-o", "voc", "--split", "train", "--validation", "val"], "01", "2"),
        (["-o", "pascal_voc", "--validation", "test"], "012", "3"),
        (["-o", "auto", "--validation", "VOCdevkit/VOC2007"], "012", "012"),
    ],
    ids=str,
)
def test_training_on_a_voc_tree(command, voc, training, flags, trained, validated):
    code, out, error = command("train", "-p", "VOCdevkit/", "--output", "run", *flags)
    assert (code, error, training.class_names) == (0, "", ("a", "b"))
    assert (names_of(training.records), names_of(training.validation)) == (list(trained), list(validated))
    assert ("3 of the 3 validation pictures are trained on too" in out) == (validated == "012")


@pytest.mark.parametrize("to", ["huggingface", "yolo"])
@pytest.mark.parametrize(("name", "validated"), [("valid", "2"), ("validation", "2"), ("test", "3")])
def test_training_and_evaluation_know_the_splits_of_folders(command, voc, training, to, name, validated):
    assert command("convert-data", "VOCdevkit", "set", "--to", to)[0] == 0
    code, _, error = command("train", "-p", "set", "--validation", name, "--output", "run")
    assert (code, error) == (0, "")
    assert (names_of(training.records), names_of(training.validation)) == (["0", "1"], list(validated))
    images = [{"id": 1, "file_name": "3.jpg", "detections": 0}]
    categories = [{"id": number, "name": name} for number, name in enumerate("ab", 1)]
    Path("found.images.json").write_text(json.dumps({"images": images, "categories": categories}))
    Path("found.json").write_text("[]")
    code, out, error = command("evaluate", "-p", "set", "--detections", "found.json")
    assert (code, error) == (0, "") and out.startswith("split: test\n")


def test_a_class_that_training_never_sees_is_said(command, voc, training):
    code, out, _ = command("train", "-p", "VOCdevkit", "--split", "trainval", "data.val_fraction=0", "--output", "run")
    assert code == 0 and "note" not in out
    Path("VOCdevkit/VOC2007/Annotations/1.xml").write_text("<annotation/>")
    Path("VOCdevkit/VOC2007/ImageSets/Main/all.txt").write_text("0\n1\n2\n3\n")
    for seed in range(9):
        arguments = ["--split", "all", "data.val_fraction=0.3", f"train.seed={seed}", "--output", f"run{seed}"]
        code, out, _ = command("train", "-p", "VOCdevkit", *arguments)
        missing = [
            name for name, only in (("a", {"0", "2"}), ("b", {"3"})) if not only & set(names_of(training.records))
        ]
        assert code == 0 and [f"show no {name}:" in out for name in ("a", "b")] == [name in missing for name in "ab"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", ["all.txt is empty"]),
            ("pictures/0.png,,,,,\n", ["no box"]),
            ("pictures/0.png,1,1,20,20,a\n", ["1 picture(s) cannot be split", "data.val_fraction=0"]),
            ("pictures/0.png,1,1,20,20\n", ["line 1", "5 fields"]),
        ],
        ids=["empty", "no class", "one picture", "five fields"],
    )
    def test_annotations(self, command, pictures, text, words):
        Path("all.txt").write_text(text)
        assert_one_sentence(command("train", "-p", "all.txt", "--output", "run"), *words)
        assert not Path("run").exists()

    def test_one_class_is_enough(self, command, pictures, training):
        Path("all.txt").write_text("pictures/0.png,1,1,20,20,a\npictures/1.png,1,1,20,20,a\n")
        assert command("train", "-p", "all.txt", "--output", "run")[0] == 0
        assert training.class_names == ("a",)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-p", "pictures"], ["pictures is no Pascal VOC tree"]),
            (["-p", "all.txt", "-o", "voc"], ["all.txt is no Pascal VOC tree"]),
            (["-p", "pictures", "-o", "simple"], ["pictures is a folder"]),
            (["-p", "all.txt", "--validation", "pictures"], ["pictures is no Pascal VOC tree"]),
            (["-p", "all.txt", "--validation", "nothing.txt"], ["nothing.txt"]),
            (["-p", "all.txt", "--validation", "other.txt"], ["'new'", "model's classes"]),
            (["-p", "all.txt", "--config", "pictures"], ["pictures", "a folder, a pipe or a device"]),
            (["-p", "all.txt", "--output", "all.txt"], ["all.txt is a file: name a folder"]),
            (["-p", "all.txt", "--output", "all.txt/run"], ["all.txt/run: nothing can be written to"]),
            (["-p", "all.txt", "--config_filename", "pictures"], ["pictures is a folder: name a file"]),
            (["-p", "all.txt", "--output_weight_path", "all.txt/w"], ["all.txt", "exists"]),
            (["-p", "all.txt", "--config_filename", "all.txt/sub/c"], ["all.txt/sub", "Not a directory"]),
            (["-p", "all.txt", "--num_epochs", "0"], ["train.epochs (0) must be greater than or equal to 1"]),
            (["-p", "all.txt", "-n", "-1"], ["roi.samples (-1) must be greater than or equal to 1"]),
        ],
        ids=str,
    )
    def test_files_folders_and_numbers(self, command, pictures, training, arguments, words):
        Path("other.txt").write_text("pictures/0.png,1,1,20,20,new\n")
        assert_one_sentence(command("train", *arguments), *words)

    def test_a_run_is_not_overwritten(self, command, pictures, training):
        assert command("train", "-p", "all.txt", "--output", "run")[0] == 0
        Path("run/best.weights.h5").write_bytes(b"first")
        result = command("train", "-p", "all.txt", "--output", "run", "--output_weight_path", "w.hdf5")
        assert_one_sentence(result, "run holds a run already")
        assert Path("run/best.weights.h5").read_bytes() == b"first" and not Path("w.hdf5").exists()

    def test_no_space_left(self, command, pictures, training, monkeypatch):
        Path("w.hdf5").write_bytes(b"old")

        def full(source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

        monkeypatch.setattr("frcnn.files.os.replace", full)
        result = command("train", "-p", "all.txt", "--output", "run", "--output_weight_path", "w.hdf5")
        assert_one_sentence(result, "No space left on device")
        assert Path("w.hdf5").read_bytes() == b"old" and not list(Path().glob("**/*.tmp"))


@pytest.mark.parametrize("arguments", [[], ["dance"], ["doctor"], ["detect", "-p", "x", "--batch-size", "many"]])
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


def test_a_reader_that_leaves_early_is_no_mistake():
    """`frcnn inspect config | head -n 1`, the second line written when nobody reads any more."""
    program = "import sys; sys.stdout.reconfigure(line_buffering=True); from frcnn.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "inspect", "config"]
    end, start = os.pipe()
    os.close(end)
    finished = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, text=True, check=False)
    os.close(start)
    assert (finished.returncode, finished.stderr) == (141, "")


PRINTS = """
import sys
from frcnn import cli
from frcnn.cli import {command}

def run(arguments):
    for _ in range(3):
        print("a line", flush=True)
        sys.stderr.write("another")
    open("product", "w").close()
    raise ValueError("the end")

{command}.run = run
sys.exit(cli.main({arguments}))
"""


@pytest.mark.parametrize("end", ["pipe", "terminal"])
@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [("train", [], 2), ("inspect", ["model", "--output", "o"], 2), ("inspect", ["model"], 141)],
)
def test_a_command_that_makes_files_goes_on_when_nobody_reads(tmp_path, end, command, arguments, status):
    """`frcnn train | head -n 1` when head is gone; a terminal that was closed under nohup."""
    reader, writer = os.openpty() if end == "terminal" else os.pipe()
    os.close(reader)
    program = PRINTS.format(command=command, arguments=[command, *arguments])
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    streams = {"stdout": writer, "stderr": writer, "env": environment}
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, **streams)
    os.close(writer)
    assert finished.returncode == status or (end, status) == ("terminal", 141)
    assert (tmp_path / "product").exists() is (status != 141)


def test_a_name_that_no_console_shows_is_escaped(tmp_path):
    program = PRINTS.format(command="train", arguments=["train"]).replace("a line", "\\udcff ü")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert finished.stdout == "\\udcff \\xfc\n" * 3 and finished.stderr.endswith("frcnn train: the end\n")


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


def test_the_newest_finished_run_of_its_kind_is_taken_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = {"old": "best last", "detector": "best", "classifier": "best last", "unfinished": "", "damaged": "best"}
    for age, (name, weights) in enumerate(runs.items()):
        folder = tmp_path / "runs" / name
        save_config(load_config(), folder, CLASS_NAMES, "classifier" if name == "classifier" else "detector")
        for which in weights.split():
            (folder / f"{which}.weights.h5").touch()
        if name == "damaged":
            (folder / "config.pickle").write_bytes(b"")
        os.utime(folder / "config.pickle", (1e9 + age, 1e9 + age))
    assert find_run(None) == Path("runs/detector")
    assert capsys.readouterr().out == "no --run was named: runs/detector, the newest of a detector in runs/, is taken\n"
    assert find_run(None, weights="last") == Path("runs/old")
    assert find_run(None, "classifier") == Path("runs/classifier")
    assert find_run("elsewhere") == Path("elsewhere")


def test_only_fields_of_the_config_are_overrides(command, pictures):
    """A folder may be called my.run=1."""
    arguments = ["convert-data", "all.txt", "my.run=1", "--to", "yolo"]
    assert command(*arguments)[0] == 0 and Path("my.run=1/data.yaml").exists()
    assert_one_sentence(command("train", "-p", "x.txt", "trian.epochs=1"), "did you mean train.epochs?")


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
