import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from frcnn import backend, memory
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.memory import describe_need, estimate, free_memory, told_in_a_sentence
from frcnn.models.classifier import build_classifier
from frcnn.models.detector import build_detector
from frcnn.models.heads import Conv
from frcnn.records import ImageRecord
from tests.oracles.shapes import SHAPES, shape_records, shapes_config
from tests.oracles.tiny import CLASS_NAMES, OVERRIDES, SIZE, tiny_config, write_tiny_pictures
from tests.test_layout import ROOT

GIGABYTE = 10**9


def a_record(height=SIZE, width=SIZE):
    return ImageRecord("a.png", (height, width), np.zeros((0, 4)), [])


# ------------------------------------------------------------------------------------------------- what it takes


@functools.cache
def built(*overrides):
    return build_detector(tiny_config(*overrides), CLASS_NAMES)


def need(*overrides, records=None, validation=()):
    model = built(*(text for text in overrides if text.startswith("model.")))
    model.config = tiny_config(*overrides)
    return estimate(model, records or [a_record()], validation)


def test_what_layers_keep_by_hand():
    """8x8 pixels: convolution and ReLU keep 8*8*4 each, the pooling 4*4*4, the dense layer 3; the addition nothing."""
    inputs = keras.Input((None, None, 2))
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs))
    x = keras.layers.MaxPooling2D()(keras.layers.Add()([x, x]))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    outputs = memory._outputs(model, (5, 8, 8, 2))
    assert memory._kept(outputs) == 4 * 5 * (2 * 8 * 8 * 4 + 4 * 4 * 4 + 3)
    assert memory._columns(outputs) == 4 * (8 * 8) * (3 * 3 * 2)  # of one picture, whatever the batch
    model.get_layer("first").trainable = False  # then nothing before the dense layer has a gradient
    assert memory._kept(outputs) == 4 * 5 * 3


def test_the_projects_own_convolutions_keep_what_keras_does():
    shapes = [(layer(4, 3, name=layer.__name__.lower()), (5, 8, 8, 4)) for layer in (keras.layers.Conv2D, Conv)]
    for layer, _ in shapes:
        layer.build((None, 8, 8, 2))
    assert memory._kept(shapes[:1]) == memory._kept(shapes[1:]) == 4 * 5 * 8 * 8 * 4


@pytest.mark.tensorflow
def test_a_wide_convolution_keeps_its_map_at_the_points():
    """40x44 cells are 10x11 tiles, each of 36 points; their moment is three times that."""
    outputs = []
    for shape in ((1, 40, 44, 256), (1, 36, 44, 256)):  # the second has 9x11 tiles: too few
        layer = Conv(256, 3)
        layer.build((None, None, None, 256))
        outputs.append((layer, shape))
    maps, at_points = 4 * 256 * 44 * (40 + 36), 4 * 256 * 36 * 10 * 11
    assert memory._kept(outputs) == maps + at_points
    assert memory._columns(outputs[:1]) == 3 * at_points
    for layer, _ in outputs:
        layer.trainable = False
    assert memory._kept(outputs) == 0


def test_sizes_are_the_largest_that_a_batch_may_have():
    """480 x 640 becomes 64 x 85 (padded 64 x 96), 640 x 320 128 x 64; jitter of a half: 96 x 128, 192 x 96."""
    data = tiny_config("data.max_size=128").data
    records = [a_record(480, 640), a_record(64, 64)]
    assert memory._largest_size(records, data, 1.0) == (64, 96)
    assert memory._largest_size([*records, a_record(640, 320)], data, 1.0) == (128, 64)
    assert memory._largest_size([*records, a_record(640, 320)], data, 1.5) == (192, 96)


def test_more_takes_more():
    least = need()
    for more in ("train.batch_size=8", "roi.samples=4000", "data.scale_jitter=0.9", "model.depth=34"):
        assert need(more) > least, more
    assert need(records=[a_record(), a_record(64, 128)]) == least  # padded to 32 x 64
    assert need("data.max_size=640", records=[a_record(64, 640)]) > least


def test_many_boxes_take_a_row_of_overlaps_each():
    """64x64 pixels have 4*4*6 anchors; 2**17 slots a picture, and 2 pictures, six matrices of float32."""
    boxes = np.tile([[1, 1, 9, 9]], (2**17, 1))
    crowded = ImageRecord("a.png", (SIZE, SIZE), boxes, [0] * len(boxes))
    anchors = 2 * 4 * 4 * len(tiny_config().model.anchor_sizes) * 3
    expected = memory._WASTE * 6 * 4 * anchors * 2**17
    assert need(records=[crowded]) - need() == pytest.approx(expected, rel=0.02)


def test_adam_keeps_a_value_more_of_each_weight_that_learns():
    trainable = sum(4 * int(np.prod(weight.shape)) for weight in built().trainable_weights)
    assert need("train.optimizer=adam") - need() == pytest.approx(trainable)


def test_frozen_stages_keep_nothing():
    before, layers = need("train.batch_size=8"), built().get_layer("backbone").layers
    for layer in layers:
        layer.trainable = False
    after = need("train.batch_size=8")
    for layer in layers:
        layer.trainable = True
    assert after < before - 8 * 32 * 32 * 64 * 4  # the stem's ReLU alone


def test_a_validation_may_take_more_than_training():
    settings = ("rpn.test_post_nms=20000", "model.roi_pool_size=7")
    assert need(*settings) < need(*settings, validation=[a_record()]) < need(*settings, validation=[a_record()] * 4)
    assert need(*settings, validation=[a_record()] * 4) == need(*settings, validation=[a_record()] * 5)  # batches of 4
    pooling = 2 * 4 * (4 * 20000) * 7 * 7 * 256  # RoIs of four pictures, and what each cell is made of
    tiles = 3 * 4 * (4 * 20000) * 36 * 512  # the head makes 4x4 cells of each, one tile
    low, high = (1.12 * (pooling + tiles) + base * GIGABYTE for base in (0.9, 1.5))
    assert low < need(*settings, validation=[a_record()] * 4) < high
    assert need(validation=[a_record()]) == need()


def test_a_classifier():
    small, large = (
        estimate(build_classifier(shapes_config(f"train.batch_size={batch}"), SHAPES), shape_records(4), [])
        for batch in (4, 64)
    )
    assert 0.5 * GIGABYTE < small < large < 1.5 * GIGABYTE


# ------------------------------------------------------------------------------------------------- what there is


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 5,000,000 kB available, of which this process has 1,000,000 more: machine({file: text})."""
    monkeypatch.setattr(backend, "device_name", lambda: "tensorflow on CPU")

    def make(files, groups="0::/"):
        files = {
            "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable:    5000000 kB\n",
            "proc/self/status": "Name: python\nVmSize:\t 2000000 kB\nVmRSS:\t 1000000 kB\n",
            "proc/self/cgroup": groups,
            **files,
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return free_memory(tmp_path)

    return make


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({}, "0::/\n", 6_000_000 * 1024),
        ({"sys/fs/cgroup/memory.max": "max\n"}, "0::/\n", 6_000_000 * 1024),
        ({"sys/fs/cgroup/memory.max": "2000000000\n"}, "0::/\n", 2 * GIGABYTE),
        ({"sys/fs/cgroup/a/memory.max": "3000000000"}, "1:cpu:/x\n0::/a/b\n", 3 * GIGABYTE),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000"}, "4:cpu,memory:/docker/x", 4 * GIGABYTE),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, "4:memory:/", 6_000_000 * 1024),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000"}, "4:cpu:/", 6_000_000 * 1024),
    ],
)
def test_what_is_free(machine, files, groups, expected):
    assert machine(files, groups) == expected


def test_a_limit_of_the_address_space_counts_and_too_little_of_it_ends_the_start(machine, monkeypatch):
    """TensorFlow crashes where memory is refused to it."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 * GIGABYTE, -1))
    left = 5 * GIGABYTE - 1_000_000 * 1024 - memory._MAPPED
    assert machine({}) == left
    monkeypatch.setattr(memory, "free_memory", lambda: left)
    model = SimpleNamespace(config=tiny_config(), name="faster_rcnn")
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_address_space", lambda: [left])
        patch.setattr(memory, "estimate", lambda *_: left - 1)
        assert describe_need(model, [], []).endswith("free")
        patch.setattr(memory, "estimate", lambda *_: left + 1)
        with pytest.raises(MemoryError, match=r"about 3.7 GB, and the shell's limit \(ulimit -v\) leaves 3.7 GB"):
            describe_need(model, [], [])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert machine({}) == 6_000_000 * 1024


def test_where_nothing_tells_nothing_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "device_name", lambda: "torch on CPU")
    assert free_memory(tmp_path) is None
    monkeypatch.setattr(backend, "device_name", lambda: "torch on NVIDIA H100")
    monkeypatch.setattr(backend, "free_gpu_memory", lambda: 5)
    assert free_memory() == 5


def test_the_line_and_its_warning(monkeypatch):
    monkeypatch.setattr(memory, "estimate", lambda *_: 3.14 * GIGABYTE)
    model = SimpleNamespace(config=tiny_config(), name="faster_rcnn")
    for free, expected in ((None, "memory: about 3.1 GB"), (4 * GIGABYTE, "memory: about 3.1 GB of 4.0 GB free")):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        assert describe_need(model, [], []) == expected
    monkeypatch.setattr(memory, "free_memory", lambda: GIGABYTE)
    assert describe_need(model, [], []).splitlines() == [
        "memory: about 3.1 GB of 1.0 GB free",
        "note: it may not be enough; lower train.batch_size (2), data.im_size (64), data.max_size (64), "
        "roi.samples (16), rpn.train_pre_nms (64) or detect.batch_size (4)",
    ]


# ------------------------------------------------------------------------------------------------ when it runs out


def too_much():
    """Ask for more memory than any machine has, by the framework's own means."""
    return keras.ops.ones((1 << 40, 1 << 10), dtype="float32") + 1.0


def fail_as(name, text):
    raise type(name, (RuntimeError,), {})(text)


@pytest.mark.parametrize(
    "fail",
    [
        lambda: np.zeros(1 << 50),
        lambda: [0] * (1 << 60),
        too_much,
        lambda: fail_as("ResourceExhaustedError", "OOM when allocating tensor with shape[9,9] on /cpu:0"),
        lambda: fail_as("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."),
        lambda: fail_as("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB"),
        lambda: fail_as(
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        ),
        lambda: fail_as("InternalError", "Failed copying input tensor: Dst tensor is not initialized."),
    ],
    ids=["numpy", "python", "framework", "tensorflow", "jax", "torch", "torch on CPU", "tensorflow, copying"],
)
def test_every_kind_of_failure_becomes_a_sentence(monkeypatch, fail):
    monkeypatch.setattr(memory, "estimate", lambda *_: 12.34 * GIGABYTE)
    model = SimpleNamespace(config=tiny_config(), name="faster_rcnn")
    with pytest.raises(MemoryError) as caught, told_in_a_sentence(model, [], []):
        fail()
    text = str(caught.value)
    assert text.startswith(
        "memory ran out: this training takes about 12.3 GB; lower train.batch_size (2), data.im_size"
    )
    assert "\n" not in text and caught.value.__cause__ is not None


def test_a_classifiers_sentence_names_its_own_fields():
    model = build_classifier(shapes_config(), SHAPES)
    with pytest.raises(MemoryError, match=r"; lower train.batch_size \(4\) or data.im_size \(\d+\)$"):  # noqa: SIM117
        with told_in_a_sentence(model, shape_records(2), []):
            raise MemoryError


def test_other_errors_go_on():
    for error in (ValueError("no memory of this"), RuntimeError("shapes differ"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, told_in_a_sentence(None, [], []):
            raise error
        assert caught.value is error
        assert not backend.is_out_of_memory(error)


PROGRAM = """
import resource, sys
import tensorflow as tf
from frcnn import memory
from frcnn.cli import main
from frcnn.machine import keep_freed_memory
from tests.test_memory import held
keep_freed_memory()
tf.ones((9, 9)) @ tf.ones((9, 9))
memory._address_space = lambda root="/": []  # or it ends before its start
resource.setrlimit(resource.RLIMIT_AS, (held() + 12 * 10**8,) * 2)
sys.exit(main(sys.argv[1:]))
"""


def held():
    """Bytes of address space that this process has."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmSize"))


@pytest.mark.tensorflow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_a_training_that_may_not_have_the_memory_ends_in_a_sentence(tmp_path):
    write_annotations(tmp_path / "all.txt", write_tiny_pictures(tmp_path), CLASS_NAMES)
    large = ["data.im_size=3000", "data.max_size=3000", "train.batch_size=4"]  # one tensor of it is over the limit
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "train",
        "-p",
        str(tmp_path / "all.txt"),
        "--output",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    # oneDNN, which TensorFlow takes where there is AVX-512, may fall over a refused allocation before it is told of.
    environment["TF_ENABLE_ONEDNN_OPTS"] = "0"
    result = subprocess.run(
        [*command, *OVERRIDES, *large], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("frcnn train: memory ran out: this training takes about ")
    assert "train.batch_size (4)" in result.stderr and "Traceback" not in result.stderr
    assert "memory: about " in result.stdout
    assert '"state": "stopped: memory ran out' in (tmp_path / "run" / "card.json").read_text()


def test_without_posix_the_machines_memory_is_unknown(monkeypatch):
    assert memory.total() > 10**8
    monkeypatch.delattr(os, "sysconf")
    assert memory.describe(memory.total()) == "unknown"
