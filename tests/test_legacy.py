"""frcnn.legacy: pickles are read without executing anything, and an old Config becomes ours."""

import contextlib
import copyreg
import math
import os
import pickle
import pickletools
import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.cli import main
from frcnn.config import load_config, load_pickle, load_run_config, save_pickle
from frcnn.legacy import OldConfig, network_depth, read_pickle, translate
from tests.oracles.golden import FOLDER, read_json

GOLDEN = [FOLDER / f"legacy_config_protocol{protocol}.pickle" for protocol in (0, 2, 4)]
OLD = dict(read_pickle(GOLDEN[0]))
CONFIG = b"ckeras_frcnn.config\nConfig\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a pickle into the working directory and return its path, so that messages are short."""
    monkeypatch.chdir(tmp_path)

    def write_file(content):
        (tmp_path / "x.pickle").write_bytes(content)
        return Path("x.pickle")

    return write_file


def assert_refused(path, what=""):
    with pytest.raises(ValueError, match=r"^x\.pickle holds more than plain values \(.*\): refused$") as caught:
        read_pickle(path)
    assert what in str(caught.value)


# ------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_golden_configs_become_ours(path):
    config, class_names, weights = load_pickle(path)
    assert class_names == ("RBC", "WBC", "Platelets")
    assert weights == path.parent / "model_frcnn.hdf5"
    assert config == load_config(
        None,
        [
            "data.im_size=300",
            "data.max_size=100000",
            "data.horizontal_flip=true",
            "model.depth=50",
            "model.conventions=keras_frcnn",
            "model.norm=frozen",
            "model.anchor_sizes=[128, 256, 512]",
            "model.anchor_ratios=[1, 2, 0.5]",
            "rpn.delta_weights=[4, 4, 4, 4]",
            "roi.samples=32",
            "roi.delta_weights=[8, 8, 4, 4]",
        ],
    ).model_copy(update={"model": config.model})
    assert config.model.anchor_ratios == pytest.approx((1, 2, 0.5))


def test_reading_imports_nothing_by_that_name(tmp_path, monkeypatch):
    (tmp_path / "keras_frcnn").mkdir()
    (tmp_path / "keras_frcnn" / "__init__.py").write_text("open('marker', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in GOLDEN:
        assert isinstance(read_pickle(path), OldConfig)
    assert "keras_frcnn" not in sys.modules and not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(ikeras_frcnn.config\nConfig\np0\n(dp1\nS'network'\np2\nS'vgg'\np3\nsS'x'\np4\ng3\nsb.",
        b"(" + CONFIG + b"q\0oq\1}q\2(U\7networkq\3U\3vggq\4U\1xh\4ub.",
        CONFIG + b")\x81}(S'network'\nS'vgg'\np1\nS'x'\ng1\nub.",
        b"ccopyreg\n_reconstructor\n(" + CONFIG + b"cbuiltins\nobject\nNtR}(S'network'\nS'vgg'\np1\nS'x'\ng1\nub.",
    ],
    ids=["Python 2, protocol 0", "Python 2, protocol 2", "protocol 2", "Python 3 names"],
)
def test_every_way_in_which_pickle_writes_the_old_class(write, content):
    value = read_pickle(write(content))
    assert type(value) is OldConfig and value == {"network": "vgg", "x": "vgg"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_as_pickle_reads_them(write, protocol):
    value = {
        "a": [1, -1, 255, 65536, 2**40, -(2**40), True, False, None, 1.5, -math.inf, "é", "x" * 300],
        "b": {"a": (), "c": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))},
        "c": [[], {}, ["a", "a"]],
    }
    assert read_pickle(write(pickle.dumps(value, protocol))) == value


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 754), st.integers(0, 255))
def test_any_changed_byte_gives_plain_values_or_a_sentence(tmp_path_factory, which, place, byte):
    content = bytearray(GOLDEN[which].read_bytes())
    content[place] = byte
    path = tmp_path_factory.getbasetemp() / "changed.pickle"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):  # anything else is a defect
        load_pickle(path)


# ----------------------------------------------------------------------------------------------- what is refused

PLAIN = {
    "INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "NONE", "NEWTRUE", "NEWFALSE",
    "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET",
    "LONG_BINGET", "PROTO", "FRAME", "STOP",
}  # fmt: skip
ARGUMENTS = {
    "stringnl_noescape_pair": b"os\nsystem\n",
    "stringnl_noescape": b"7\n",
    "uint1": b"\1",
    "uint2": b"\1\0",
    "int4": b"\1\0\0\0",
    "bytes1": b"\1a",
    "bytes4": b"\1\0\0\0a",
    "bytes8": b"\1" + 7 * b"\0" + b"a",
    "bytearray8": b"\1" + 7 * b"\0" + b"a",
    "long4": b"\1\0\0\0\1",
}


@pytest.mark.parametrize(
    "opcode", [code for code in pickletools.opcodes if code.name not in PLAIN], ids=lambda c: c.name
)
def test_every_opcode_that_does_not_make_a_plain_value_is_refused(write, opcode):
    argument = ARGUMENTS[opcode.arg.name] if opcode.arg else b""
    # On the stack: what STACK_GLOBAL, REDUCE, NEWOBJ, NEWOBJ_EX, OBJ, BUILD, ADDITEMS and the like would take.
    assert_refused(write(b"(U\2osU\6system" + opcode.code.encode("latin-1") + argument + b"."))
    with pytest.raises(ValueError, match=r"^x\.pickle"):
        read_pickle(write(b"U\2os(U\6system)}" + opcode.code.encode("latin-1") + argument + b"."))


class Attack:
    """Unpickled the ordinary way, makes the file `marker`."""

    def __reduce__(self):
        return os.system, ("touch marker",)


BUILTIN = b"c__builtin__\n"
TOUCH = b"(S'touch marker'\n"
ATTACKS = {
    "os.system": b"cos\nsystem\n" + TOUCH + b"tR.",
    "eval": BUILTIN + b"eval\n(S'open(\"marker\", \"w\").close()'\ntR.",
    "exec": BUILTIN + b"exec\n(S'open(\"marker\", \"w\").close()'\ntR.",
    "getattr": BUILTIN + b"getattr\n(" + BUILTIN + b"__import__\n(S'os'\ntRS'system'\ntR" + TOUCH + b"tR.",
    "dotted": b"\x80\4\x8c\2os\x8c\x0epath.os.system\x93\x8c\x0ctouch marker\x85R.",
    "dotted on Config": b"\x80\4\x8c\x12keras_frcnn.config\x8c\x10Config.os.system\x93\x8c\x0ctouch marker\x85R.",
    "INST": TOUCH + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch marker'\no.",
    "subprocess": b"csubprocess\ncheck_output\n((lS'touch'\naS'marker'\natR.",
    "NEWOBJ": b"\x80\2csubprocess\nPopen\n)\x81cos\nsystem\n" + TOUCH + b"tR0.",
    "_reconstructor": b"ccopy_reg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR"
    + b"cos\nsystem\n" + TOUCH + b"tR.",
    "state": CONFIG + b")\x81}S'im_size'\ncos\nsystem\n" + TOUCH + b"tRsb.",
    "argument": CONFIG + b"cos\nsystem\n" + TOUCH + b"tR\x85R.",
    "BUILD": CONFIG + b")\x81}S'__setstate__'\ncos\nsystem\nsbS'touch marker'\nb.",
    "EXT1": b"\x82B" + TOUCH + b"tR.",
    "EXT2": b"\x83B\0" + TOUCH + b"tR.",
    "EXT4": b"\x84B\0\0\0" + TOUCH + b"tR.",
    **{f"in {type(box).__name__}, {protocol}": pickle.dumps(box, protocol)
       for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
       for box in ([Attack()], {"config": {}, "class_names": [Attack()]}, (1, Attack()))},
}  # fmt: skip


@pytest.fixture
def dangerous(monkeypatch):
    """What makes all of `ATTACKS` work on `pickle.load`: a keras_frcnn with its Config, a registered extension."""

    class Config:
        def __init__(self, *_):
            pass

    Config.os = os
    Config.__module__ = "keras_frcnn.config"
    package, module = types.ModuleType("keras_frcnn"), types.ModuleType("keras_frcnn.config")
    module.Config, package.config = Config, module
    monkeypatch.setitem(sys.modules, "keras_frcnn", package)
    monkeypatch.setitem(sys.modules, "keras_frcnn.config", module)
    copyreg.add_extension("os", "system", 0x42)
    yield
    copyreg.remove_extension("os", "system", 0x42)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_that_works_on_pickle_is_refused(write, dangerous, name):
    path, marker = write(ATTACKS[name]), Path("marker")
    pickle.loads(ATTACKS[name])
    assert marker.exists()
    marker.unlink()
    assert_refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "state", "EXT1", "dotted"])
def test_the_commands_refuse_it_with_2(write, dangerous, capsys, name):
    Path("a.png").touch()
    for command in ("evaluate", "detect"):
        assert main([command, "-p", "a.png", "--config_filename", str(write(ATTACKS[name]))]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"frcnn {command}: x.pickle holds more than plain values (") and error.count("\n") == 1
    assert not Path("marker").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"P7\n.", "PERSID"),
        (b"K\7Q.", "BINPERSID"),
        (BUILTIN + b"object\n)\x81.", "a call"),
        (CONFIG + b"(S'x'\ntR.", "a call"),
        (b"(" + CONFIG + b"S'x'\no.", "a call"),
        (b"(S'x'\nikeras_frcnn.config\nConfig\n.", "a call"),
        (b"ccopy_reg\n_reconstructor\n(" + CONFIG + b"c__builtin__\nobject\n}tR.", "a call"),
        (b"ccopy_reg\n_reconstructor\n(" + CONFIG + b"c__builtin__\ndict\n}tR.", "__builtin__.dict"),
        (b"\x80\4\x8c\x12keras_frcnn.config\x8c\x1bConfig.__init__.__globals__\x93.", "Config.__init__.__globals__"),
        (b"ckeras_frcnn.config\nos\n.", "keras_frcnn.config.os"),
        (CONFIG + b"}b.", "BUILD"),
        (b"}}b.", "BUILD"),
        (CONFIG + b")\x81(S'x'\nlb.", "BUILD"),
        (CONFIG + b")\x81N}\x86b.", "BUILD"),
        (b"](" + CONFIG + b")\x81e.", "objects"),
        (CONFIG + b")\x81}S'x'\n" + CONFIG + b")\x81sb.", "objects"),
        (CONFIG + b")\x81}" + CONFIG + b")\x81I1\nsb.", "a key"),
    ],
)
def test_half_a_config_is_refused(write, content, what):
    assert_refused(write(content), what)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"]q\0h\0a.", "used twice"),
        (b"](]q\0h\0e.", "used twice"),
        (b"](" + pickle.dumps("a" * 10_000, 2)[2:-1] + b"h\0" * 100 + b"e.", "again and again"),
        (pickle.dumps("a" * (1 << 18), 2), "more than 262144 bytes"),
        (pickle.dumps([None] * 1000, 2), "more than 1000 steps"),
    ],
    ids=["a list in itself", "a list twice", "a text 100 times", "a large file", "many values"],
)
def test_what_could_grow_is_refused(write, content, what, monkeypatch):
    monkeypatch.setattr("frcnn.legacy.MOST_BYTES", 1 << 18)
    monkeypatch.setattr("frcnn.legacy._MOST_STEPS", 1000)
    pickle.loads(content)
    assert_refused(write(content), what)


def test_attributes_with_special_names_stay_plain_keys(write):
    value = read_pickle(write(CONFIG + b")\x81}(S'__class__'\nI1\nS'__setstate__'\nI2\nub."))
    assert type(value) is OldConfig and value == {"__class__": 1, "__setstate__": 2}


DEEP = 60_000


@pytest.mark.parametrize(
    "content",
    [
        b"X\xff\xff\xff\x7fa.",
        b"\x8d" + struct.pack("<Q", 2**62) + b"a.",
        b"\x8e" + struct.pack("<Q", 2**62) + b"a.",
        b"\x80\4\x95" + struct.pack("<Q", 2**62) + b"N",
        b"r\xff\xff\xff\x7f.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000 + b".",
        b")" + b"\x85" * DEEP + b".",
        b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"}(U\6configN" + b"}U\1a" * DEEP + b"N" + b"s" * DEEP + b"u.",
        b"})" + b"\x85" * DEEP + b"Ns.",
        b"(" * DEEP + b".",
        b"]q\0h\0a.",
        b"]q\0(h\0h\0e" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60)) + b".",
        b"](X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\0" + b"h\0" * 60_000 + b"e.",
        b"U\1a" + b"0" * (1 << 18),
    ],
    ids=lambda content: content[:4],
)
def test_a_bomb_ends_in_a_sentence(write, content):
    path = write(content)
    with pytest.raises(ValueError, match=r"^x\.pickle.{1,200}$"):
        load_run_config(path)


# --------------------------------------------------------------------------------------------------- its fields


def old_pickle(**changes):
    values = {name: value for name, value in (OLD | changes).items() if value is not KeyError}
    return CONFIG + b")\x81" + pickle.dumps(values, 2)[2:-1] + b"b."


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"im_size": 321}, "data.im_size=321"),
        ({"use_horizontal_flips": False}, "data.horizontal_flip=false"),
        ({"use_vertical_flips": True}, "data.vertical_flip=true"),
        ({"rot_90": True}, "data.rotate_90=true"),
        ({"network": "resnet101"}, "model.depth=101"),
        ({"anchor_box_scales": [16, 32]}, "model.anchor_sizes=[16, 32]"),
        ({"anchor_box_ratios": [[2, 0.5], [1, 1]]}, "model.anchor_ratios=[0.25, 1]"),
        ({"rpn_min_overlap": 0.2}, "rpn.negative_iou=0.2"),
        ({"rpn_max_overlap": 0.6}, "rpn.positive_iou=0.6"),
        ({"std_scaling": 2}, "rpn.delta_weights=[2, 2, 2, 2]"),
        ({"num_rois": 4}, "roi.samples=4"),
        ({"classifier_max_overlap": 0.4}, "roi.positive_iou=0.4"),
        ({"classifier_regr_std": [1.0, 2.0, 3.0, 4.0]}, "roi.delta_weights=[1, 2, 3, 4]"),
    ],
)
def test_every_field_has_its_place_and_only_that_changes(write, changes, field):
    before, after = load_run_config(write(old_pickle()))[0], load_run_config(write(old_pickle(**changes)))[0]
    expected = load_config(None, [field])
    section, name = field.partition("=")[0].split(".")
    assert getattr(getattr(after, section), name) == getattr(getattr(expected, section), name)
    restored = getattr(after, section).model_copy(update={name: getattr(getattr(before, section), name)})
    assert after != before and after.model_copy(update={section: restored}) == before


def test_class_names_are_in_the_order_of_their_numbers(write):
    mapping = {"b": 1, "bg": 3, "c": 0, "a": 2}
    assert load_run_config(write(old_pickle(class_mapping=mapping)))[1] == ("c", "b", "a")


@pytest.mark.parametrize("name", ["verbose", "base_net_weights", "balanced_classes", "classifier_min_overlap"])
def test_what_has_no_counterpart_may_be_missing_or_anything(write, name):
    config = load_run_config(write(old_pickle()))
    assert load_run_config(write(old_pickle(**{name: KeyError}))) == config
    assert load_run_config(write(old_pickle(**{name: ["anything"]}))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vgg"}, "network 'vgg' is not there: frcnn has ResNets only"),
        ({"network": None}, "network None is not there"),
        ({"network": "resnet19"}, "x.pickle: model.depth (19) must be "),
        ({"anchor_box_ratios": [[1, 1], [1, 2]]}, "[1, 2], which changes the anchor's area"),
        ({"anchor_box_ratios": 3}, "cannot be used here"),
        ({"anchor_box_ratios": [[1, 1, 1]]}, "cannot be used here"),
        ({"rpn_stride": 8}, "rpn_stride is 8, and 16 is all that is there"),
        ({"img_channel_mean": [0, 0, 0]}, "img_channel_mean is [0, 0, 0]"),
        ({"class_mapping": None}, "class_mapping (None) must number the classes from 0"),
        ({"class_mapping": {"a": 1, "bg": 2}}, "must number the classes from 0"),
        ({"class_mapping": {"a": 0, "b": 0, "bg": 1}}, "must number the classes from 0"),
        ({"class_mapping": {"bg": 0, "a": 1}}, "ends with 'a', not with bg"),
        ({"class_mapping": {}}, "cannot be used here"),
        ({"class_mapping": {"a": "x", "bg": []}}, "cannot be used here"),
        ({"im_size": -1}, "x.pickle: data.im_size (-1) must be greater than or equal to 28"),
        ({"num_rois": KeyError}, "x.pickle is a keras-frcnn config without num_rois"),
        ({"model_path": KeyError}, "without model_path"),
        ({"model_path": 5}, "weights (5) must be the path of a file"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_sentence(write, changes, message):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_run_config(write(old_pickle(**changes)))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("x.pickle")


def test_an_empty_old_config_says_what_is_missing():
    with pytest.raises(ValueError, match=r"^x is a keras-frcnn config without im_size$"):
        translate(OldConfig(), "x")


@pytest.mark.parametrize("network", ["vgg", "resnet", "50", "resnet50v2", ""])
def test_other_networks_are_not_there(network):
    with pytest.raises(ValueError, match="is not there"):
        network_depth(network)
    assert network_depth("resnet50") == 50


# ------------------------------------------------------------------------------------------------- its weights


def test_a_pickle_names_weights_beside_it_or_far_away(tmp_path, monkeypatch):
    config = load_config()
    for folder, weights in (("a", "a/model.hdf5"), ("a", "b/model.hdf5")):
        monkeypatch.chdir(tmp_path)
        Path(weights).parent.mkdir(exist_ok=True)
        Path(weights).touch()
        save_pickle(config, Path(folder, "config.pickle"), ["x"], weights)
        monkeypatch.chdir(tmp_path / folder)
        assert load_pickle("config.pickle")[2].samefile(tmp_path / weights)
    (tmp_path / "a").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    save_pickle(config, "moved/config.pickle", ["x"], "moved/model.hdf5")
    (tmp_path / "moved").rename(tmp_path / "again")
    assert load_pickle("again/config.pickle") == (config, ("x",), Path("again/model.hdf5"))


def test_old_weights_are_found_beside_the_pickle_or_in_the_working_directory(write, tmp_path):
    path = write(old_pickle(model_path="./m.hdf5"))
    (tmp_path / "sub").mkdir()
    path.rename("sub/x.pickle")
    assert load_pickle("sub/x.pickle")[2] == Path("sub/m.hdf5")
    Path("m.hdf5").touch()
    assert load_pickle("sub/x.pickle")[2] == Path("m.hdf5")
    Path("sub/m.hdf5").touch()
    assert load_pickle("sub/x.pickle")[2] == Path("sub/m.hdf5")


@pytest.mark.tensorflow
def test_an_old_pair_detects(write, draw_picture, capsys):
    """config.pickle and model_frcnn.hdf5 as keras-frcnn left them; what its weights compute is in test_weights.py."""
    import h5py

    golden, groups = read_json("keras_frcnn_seed0.json"), {}
    with h5py.File("model_frcnn.hdf5", "w") as file:
        for layer, name, _, shape, *_ in golden["weights"]:
            values = np.random.default_rng(0).normal(0, 0.01, shape) if len(shape) > 1 else np.full(shape, 0.1)
            file.require_group(layer).create_dataset(name, data=values.astype(np.float32))
            groups.setdefault(layer, []).append(name.encode())
        for layer, names in groups.items():
            file[layer].attrs["weight_names"] = names
        file.attrs["layer_names"] = [layer.encode() for layer in groups]
    write(GOLDEN[0].read_bytes()).rename("config.pickle")
    draw_picture("pictures/a.png")
    flags = ["-n", "32", "--network", "resnet50", "--config_filename", "config.pickle", "--score", "0"]
    settings = ["data.im_size=64", "rpn.test_post_nms=8", "train.precision=float32"]
    assert main(["detect", "-p", "pictures", *flags, *settings]) == 0
    out, error = capsys.readouterr()
    assert error == "" and re.search(r"loaded (\d+) of \1 tensors from model_frcnn\.hdf5 \(keras_frcnn, ResNet-50", out)
    table = Path("detections/detections.csv").read_text().splitlines()[1:]
    assert {line.split(",")[-1] for line in table} <= {"RBC", "WBC", "Platelets"}

    with h5py.File("model_frcnn.hdf5", "a") as file:
        del file["dense_class_4"]
        file.attrs["layer_names"] = [name for name in file.attrs["layer_names"] if name != b"dense_class_4"]
    assert main(["detect", "-p", "pictures", *flags, *settings]) == 2
    assert "model_frcnn.hdf5 lacks 2 of the 328 tensors" in capsys.readouterr().err
