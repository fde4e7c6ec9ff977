"""frcnn.config: the tree, reading and overriding, errors that name the field. Pickles: see also test_legacy.py."""

import os
import pickle
from pathlib import Path

import pytest
import yaml

from frcnn.config import Config, describe_config, load_config, load_run_config, save_config, with_overrides

FIELDS = sum(len(section.annotation.model_fields) for section in Config.model_fields.values())


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into the working directory and return its name, so that messages are short."""
    monkeypatch.chdir(tmp_path)

    def write_file(content, name="x.yaml"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write_file


def config_error(*arguments):
    """The message of the ValueError that load_config raises."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_config(*arguments)
    return str(caught.value)


def test_defaults_are_valid_frozen_and_described():
    config = load_config()
    assert config == Config()
    assert (config.model.anchor_sizes, config.roi.delta_weights) == ((128, 256, 512), (10, 10, 5, 5))
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3


@pytest.mark.parametrize("architecture", ["fpn", "fpn_v2"])
def test_fpn_has_torchvisions_numbers_where_nothing_else_is_said(write, architecture):
    config = load_config(write(f"model: {{architecture: {architecture}, rpn_channels: 64}}\nrpn: {{test_pre_nms: 7}}"))
    assert (config.model.anchor_sizes, config.model.rpn_channels) == ((32, 64, 128, 256, 512), 64)
    assert (config.model.roi_pool_size, config.roi.samples, config.roi.box_loss) == (7, 512, "smooth_l1")
    counts = config.rpn.train_pre_nms, config.rpn.train_post_nms, config.rpn.test_pre_nms, config.rpn.test_post_nms
    assert counts == (2000, 2000, 7, 1000)
    assert load_config(None, [f"model.architecture={architecture}", "roi.samples=9"]).roi.samples == 9
    assert with_overrides(config, ["train.epochs=3"]).model == config.model


def test_an_fpn_has_one_anchor_size_a_level(write):
    assert config_error(write("model: {architecture: fpn, anchor_sizes: [32, 64]}")) == (
        "x.yaml: model.anchor_sizes [32.0, 64.0] must be five with model.architecture=fpn, one for each of P2 to P6"
    )
    assert "rpn (3) must be a section with fields" in config_error(write("model: {architecture: fpn}\nrpn: 3"))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "config").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_is_valid_and_short(path):
    config = load_config(path)
    assert (config.model.architecture == "c4") == ("fpn" not in path.stem)
    assert len(path.read_text().splitlines()) <= 60


def test_file_then_overrides_in_order(write):
    path = write("train: {epochs: 3, batch_size: 4}\nmodel:\n  anchor_sizes: [32, 64]\n")
    config = load_config(path, ["train.epochs=5", " train.epochs = 7", "model.anchor_ratios=[1]", "model.norm=group"])
    assert (config.train.epochs, config.train.batch_size) == (7, 4)
    assert (config.model.anchor_sizes, config.model.anchor_ratios, config.model.norm) == ((32, 64), (1,), "group")
    assert config.rpn == Config().rpn


def test_one_override_may_be_a_bare_string():
    assert load_config(overrides="train.epochs=5").train.epochs == 5


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_every_spelling_of_a_small_number_works(write, text):
    # YAML 1.1 reads 1e-4, without a dot, as a string.
    assert load_config(write(f"train: {{learning_rate: {text}}}")).train.learning_rate == 1e-4
    assert load_config(None, [f"train.learning_rate={text}"]).train.learning_rate == 1e-4


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train:\n  # epochs: 3\n", "{}"])
def test_an_empty_file_or_section_means_the_defaults(write, text):
    assert load_config(write(text)) == Config()
    assert load_config(write(text), ["train.epochs=9"]).train.epochs == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 5}", "x.yaml: unknown field train.epoch; did you mean train.epochs?"),
        ("rpn: {positive_io: 1}", "x.yaml: unknown field rpn.positive_io; did you mean rpn.positive_iou?"),
        ("roi: {positive_io: 1}", "x.yaml: unknown field roi.positive_io; did you mean roi.positive_iou?"),
        ("trian: {epochs: 5}", "x.yaml: unknown field trian; did you mean train?"),
        ("epochs: 5", "x.yaml: unknown field epochs; did you mean train.epochs?"),
        ("detect: {im_size: 5}", "x.yaml: unknown field detect.im_size; did you mean data.im_size?"),
        ("xyz: 1", "x.yaml: unknown field xyz; known here: data, model, rpn, roi, detect, train, classify"),
        ("1: 2", "x.yaml: unknown field 1; known here: data, model, rpn, roi, detect, train, classify"),
        ("train: {epochs: 0}", "x.yaml: train.epochs (0) must be greater than or equal to 1"),
        (
            "train: {epochs: 1.5}",
            "x.yaml: train.epochs (1.5) must be a valid integer, got a number with a fractional part",
        ),
        ("train: {epochs: many}", "x.yaml: train.epochs ('many') must be a valid integer"),
        ("train: {epochs: }", "x.yaml: train.epochs (None) must be a valid integer"),
        ("train: {clip_norm: .inf}", "x.yaml: train.clip_norm (inf) must be a finite number"),
        ("train: {precision: half}", "x.yaml: train.precision ('half') must be 'auto', 'float32' or 'bfloat16'"),
        ("model: {depth: 19}", "x.yaml: model.depth (19) must be 18, 34, 50, 101 or 152"),
        ("model: {anchor_sizes: [8, -1]}", "x.yaml: model.anchor_sizes[1] (-1) must be greater than 0"),
        ("model: {anchor_sizes: []}", "x.yaml: model.anchor_sizes ([]) must have at least 1 item, not 0"),
        ("model: {anchor_sizes: 128}", "x.yaml: model.anchor_sizes (128) must be a list"),
        ("roi: {delta_weights: [1, 1, 1, 0]}", "x.yaml: roi.delta_weights[3] (0) must be greater than 0"),
        ("roi: {delta_weights: [1, 1, 1]}", "x.yaml: roi.delta_weights ([1, 1, 1]) has too few items: [3] is missing"),
        (
            "data: {im_size: 800, max_size: 700}",
            "x.yaml: data.max_size (700) must be at least data.im_size (800)",
        ),
        (
            "rpn: {negative_iou: 0.8}",
            "x.yaml: rpn.negative_iou (0.8) must be at most rpn.positive_iou (0.7)",
        ),
        ("- train", "x.yaml: expected sections (data, model, rpn, roi, detect, train, classify), got ['train']"),
        ("train", "x.yaml: expected sections (data, model, rpn, roi, detect, train, classify), got 'train'"),
    ],
)
def test_a_wrong_file_is_said_in_one_sentence(write, text, message):
    assert config_error(write(text)) == message


def test_a_section_without_fields_names_them(write):
    fields = "score_threshold, nms_iou, max_detections, batch_size"
    message = f"x.yaml: detect (5) must be a section with fields of its own: {fields}"
    assert config_error(write("detect: 5")) == message
    assert config_error(write("detect: 5"), ["detect.nms_iou=0.4"]) == message


def test_several_mistakes_are_a_few_lines(write):
    lines = config_error(write("train: {epochs: 0, epoch: 1, seed: -1}")).splitlines()
    assert [line.split(" ")[1] for line in lines] == ["train.epochs", "train.seed", "unknown"]
    many = "rpn: {samples: 0, train_pre_nms: 0, train_post_nms: 0, test_pre_nms: 0, test_post_nms: 0, nms_iou: 2, a: 1}"
    lines = config_error(write(many)).splitlines()
    assert (len(lines), lines[-1]) == (6, "... and 2 more")


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("train: {epochs: [", "x.yaml line 1: not valid YAML ("),
        ("data:\n\tim_size: 5", "x.yaml line 2: not valid YAML ("),
        ("train: {seed: 2020-13-45}", "x.yaml: not valid YAML ("),
        (b"\xff\xfe\x00", "x.yaml: not valid YAML ("),
        ("!!python/object/apply:os.system [ls]", "x.yaml line 1: not valid YAML ("),
    ],
)
def test_broken_yaml_names_the_line(write, content, start):
    message = config_error(write(content))
    assert message.startswith(start)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: &a {epochs: 5}\nrpn: *a", "x.yaml: YAML aliases (*name) and deep nesting can hide attacks and are"),
        ("train: " + "[" * 5000, "x.yaml: YAML aliases (*name) and deep nesting can hide attacks and are not read"),
        ("train: {epochs: 5}\nrpn: {}\ntrain: {seed: 1}", "x.yaml line 3: train stands here again, first in line 1"),
        ("train:\n  epochs: 5\n  epochs: 6", "x.yaml line 3: epochs stands here again, first in line 2"),
        ("#" * 2**20 + "x", "x.yaml: more than 1 MiB is no config"),
        ("train: {seed: " + "9" * 5000 + "}", "x.yaml: not valid YAML (Exceeds the limit (4300 digits)"),
        ('"\\e[2J": {}', "x.yaml: unknown field \\x1b[2J; known here: data"),
    ],
)
def test_hostile_yaml_is_one_sentence(write, content, message):
    assert config_error(write(content)).startswith(message)


def test_an_override_is_read_as_carefully():
    assert "deep nesting" in config_error(None, ["model.anchor_sizes=" + "[" * 5000])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in (tmp_path / "pipe.yaml", "/dev/zero"):
        assert config_error(place) == f"{place}: cannot be read as a config (a folder, a pipe or a device, not a file)"


def test_missing_file_and_folder(write, tmp_path):
    assert config_error("no.yaml") == "no.yaml: cannot be read as a config (No such file or directory)"
    assert config_error(tmp_path) == (
        f"{tmp_path}: cannot be read as a config (a folder, a pipe or a device, not a file)"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "override 'train.epochs': expected section.field=value, as in train.epochs=5"),
        ("train=5", "override 'train=5': train is a section; set one of its fields, as in train.epochs=..."),
        ("train.epoch=5", "override 'train.epoch=5': unknown field train.epoch; did you mean train.epochs?"),
        ("epochs=5", "override 'epochs=5': unknown field epochs; did you mean train.epochs?"),
        ("trian.epochs=5", "override 'trian.epochs=5': unknown field trian.epochs; did you mean train.epochs?"),
        ("train.epochs=0", "override 'train.epochs=0': train.epochs (0) must be greater than or equal to 1"),
        ("train.epochs=", "override 'train.epochs=': train.epochs (None) must be a valid integer"),
        (
            "data.max_size=400",
            "x.yaml, override 'data.max_size=400': data.max_size (400) must be at least data.im_size (500)",
        ),
    ],
)
def test_a_wrong_override_is_said_in_one_sentence(write, override, message):
    assert config_error(write("data: {im_size: 500}"), [override]) == message


def test_an_override_that_is_no_yaml():
    assert config_error(None, ["train.epochs=["]).startswith("override 'train.epochs=[' line 1: not valid YAML (")


def test_the_files_mistakes_are_not_blamed_on_the_overrides(write):
    message = config_error(write("train: {epochs: 0}"), ["train.seed=1"])
    assert message == "x.yaml: train.epochs (0) must be greater than or equal to 1"


def test_saving_and_reading_both_files_gives_the_same_config(tmp_path):
    config = load_config(None, ["train.weight_decay=1e-07", "model.anchor_sizes=[16, 32.5]", "train.schedule=step"])
    save_config(config, tmp_path / "new" / "run", ["circle", "été, 'x'"])
    folder = tmp_path / "new" / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["config.pickle", "config.yaml"]
    assert load_config(folder / "config.yaml") == config
    assert load_run_config(folder) == load_run_config(folder / "config.pickle") == (config, ("circle", "été, 'x'"))


def test_a_list_of_very_many_classes_comes_back(tmp_path):
    names = tuple(f"{'a long name of a class ' * 5}{number}" for number in range(20_000))
    save_config(Config(), tmp_path, names)
    assert load_run_config(tmp_path)[1] == names


def test_saved_yaml_explains_every_field(tmp_path):
    save_config(Config(), tmp_path, [])
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert "  epochs: 20  # passes over the training pictures" in lines
    assert sum("  # " in line for line in lines) == FIELDS


def test_saved_pickle_holds_builtin_values_of_protocol_2(tmp_path):
    save_config(Config(), tmp_path, ("a", "b"))
    content = (tmp_path / "config.pickle").read_bytes()
    plain = pickle.loads(content)  # written a line above
    assert content[:2] == b"\x80\x02"
    assert plain["class_names"] == ["a", "b"]
    assert plain["config"] == yaml.safe_load((tmp_path / "config.yaml").read_text())


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    save_config(Config(), tmp_path, ["old"])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("frcnn.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_config(Config(), tmp_path, ["new"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.pickle", "config.yaml"]
    assert load_run_config(tmp_path)[1] == ("old",)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\x80\x02", b"\x80\x63.", b"]b.", b"s.", b"NN.", b"\x80\x02X\xff\xff\xff\x7f."]
)
def test_garbage_is_a_value_error_with_the_files_name(write, content):
    with pytest.raises(ValueError, match=r"^config\.pickle: damaged, or not a pickle \("):
        load_run_config(write(content, "config.pickle"))


def test_truncation_is_a_value_error(write, tmp_path):
    save_config(Config(), tmp_path, ["a"])
    content = (tmp_path / "config.pickle").read_bytes()
    for length in range(0, len(content), 9):
        with pytest.raises(ValueError, match=r"^short\.pickle: "):
            load_run_config(write(content[:length], "short.pickle"))


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([1], "expected {"),
        ({"class_names": []}, "expected {"),
        ({"config": {}}, "class_names (None) must be a list of strings"),
        ({"config": {}, "class_names": [1]}, "class_names ([1]) must be a list of strings"),
        ({"config": {}, "class_names": [], "weights": 1}, "weights (1) must be the path of a file"),
        (
            {"config": {"train": {"epoch": 1}}, "class_names": []},
            "unknown field train.epoch; did you mean train.epochs?",
        ),
    ],
)
def test_a_pickle_of_other_values_says_what_is_expected(write, plain, message):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_run_config(write(pickle.dumps(plain), "config.pickle"))
    assert str(caught.value).startswith(f"config.pickle: {message}")


def test_a_run_of_the_other_kind_is_refused(tmp_path):
    config = load_config()
    for kind, other in (("detector", "classifier"), ("classifier", "detector")):
        save_config(config, tmp_path, ["a"], kind)
        assert load_run_config(tmp_path) == load_run_config(tmp_path, kind) == (config, ("a",))
        with pytest.raises(ValueError, match=rf"config.pickle is of a {kind}, not of a {other}: frcnn .* takes it"):
            load_run_config(tmp_path, other)
    plain = {"config": config.model_dump(mode="json"), "class_names": ["a"]}  # before there were two kinds
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(plain))
    assert load_run_config(tmp_path, "detector")[1] == ("a",)


def test_a_run_without_a_pickle(tmp_path):
    with pytest.raises(ValueError, match=r"config\.pickle: cannot be read as a pickle \(No such file"):
        load_run_config(tmp_path)


def test_description_has_one_line_per_field():
    lines = describe_config(load_config(None, ["train.epochs=7"])).splitlines()
    assert len(lines) == FIELDS
    row = next(line for line in lines if line.startswith("train.epochs "))
    assert row.split(maxsplit=2) == ["train.epochs", "7", "passes over the training pictures"]
    assert all(len(line.split(maxsplit=2)) == 3 for line in lines)


def test_overrides_of_a_config_are_checked_and_leave_it_alone():
    config = load_config(None, ["train.epochs=3"])
    changed = with_overrides(config, ["train.batch_size=7", "model.anchor_sizes=[8, 16]"])
    assert (changed.train.epochs, changed.train.batch_size, changed.model.anchor_sizes) == (3, 7, (8, 16))
    assert (config.train.batch_size, config.model.anchor_sizes) == (2, (128, 256, 512))
    assert with_overrides(config, []) == config
    with pytest.raises(ValueError, match=r"override 'train.batch_size=0': train.batch_size \(0\) must be greater"):
        with_overrides(config, ["train.batch_size=0"])
    with pytest.raises(ValueError, match=r"data.max_size \(100\) must be at least data.im_size \(600\)"):
        with_overrides(config, ["data.max_size=100"])
