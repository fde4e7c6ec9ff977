"""What `benchmarks.speed` divides by and splits into; nothing here is timed."""

import keras
import numpy as np
import pytest

from benchmarks import parts
from frcnn.models.detector import build_detector
from frcnn.optimizer import build_optimizer
from tests.oracles.tiny import CLASS_NAMES, SIZE, tiny_batch, tiny_config

STEPS = ["backbone", "given maps", "RPN", "proposals", "sampling", "RPN at samples", "RoIAlign", "head", "losses"]


@pytest.fixture(scope="module")
def model():
    changes = ["model.architecture=fpn", "model.anchor_sizes=[8,16,24,36,48]", "model.norm=frozen", "roi.samples=20"]
    return build_detector(tiny_config(*changes), CLASS_NAMES)


def test_multiply_adds_count_the_rpn_on_each_level_and_the_head_on_each_roi(model):
    train, detect = (parts.multiply_adds(model, task, SIZE, SIZE) for task in ("train", "detect"))
    classes = len(CLASS_NAMES)
    head = 2 * 2 * 256 * 1024 + 1024 * 1024 + 1024 * (classes + 1 + 4 * classes)
    assert train - detect == (20 - 16) * head
    cells = [(SIZE // stride) ** 2 for stride in (4, 8, 16, 32, 64)]
    rpn = sum(cells) * 16 * (9 * 256 + 3 + 12)  # a 3x3 convolution of 16 channels, one score and four deltas an anchor
    pyramid = sum(count * 256 * (channels + 9 * 256) for count, channels in zip(cells, (64, 128, 256, 512)))
    stem = (SIZE // 2) ** 2 * 7 * 7 * 3 * 64
    blocks = sum(  # two of two 3x3 convolutions a stage; the first one halves the sides, doubles the channels, projects
        count * channels * (9 * (channels * 3 + entering) + (entering if entering < channels else 0))
        for count, channels, entering in zip(cells, (64, 128, 256, 512), (64, 64, 128, 256))
    )
    assert train == stem + blocks + pyramid + rpn + 20 * head


@pytest.mark.parametrize("task", ["train", "detect"])
def test_the_stages_are_the_network_up_to_each_step(model, task):
    stages = dict(parts.stages(model, task))
    batch, steps = tiny_batch(), STEPS
    if task == "detect":
        steps = [step for step in STEPS[:-1] if "sampl" not in step] + ["detections"]
    assert list(stages) == steps
    features = model.get_layer("backbone")(model.get_layer("normalize")(batch["images"], batch["image_sizes"]))
    maps = {f"map{level}": keras.ops.convert_to_numpy(one_map) for level, one_map in enumerate(features)}
    assert {name: one_map.shape[1:] for name, one_map in maps.items()} == parts.map_shapes(model, SIZE, SIZE)

    def output(stage):
        return float(stage.predict_on_batch({name: (batch | maps)[name] for name in stage.input}))

    outputs = {name: output(stage) for name, stage in stages.items()}
    expected = sum(one_map.mean() for one_map in maps.values())
    assert outputs["backbone"] == pytest.approx(expected, rel=1e-4)
    assert outputs["given maps"] == pytest.approx(expected, rel=1e-4)
    assert len({outputs[step] for step in steps[1:]}) == len(steps) - 1  # none is the one before
    if task == "train":
        losses = model.predict_on_batch(batch)
        expected = sum(np.mean(loss) for loss in losses.values())
        assert outputs["losses"] - outputs["RPN at samples"] == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_a_stage_reaches_the_maps_that_it_is_given(model):
    stage = dict(parts.stages(model, "train"))["RoIAlign"]
    throughs = [layer for layer in stage.layers if isinstance(layer, parts.Through)]
    batch = tiny_batch()
    shapes = parts.map_shapes(model, SIZE, SIZE)
    batch |= {name: np.ones((len(batch["images"]), *shape), np.float32) for name, shape in shapes.items()}
    stage.compile(build_optimizer(model.config.train, 10))
    stage.train_on_batch({name: batch[name] for name in stage.input})
    assert len(throughs) == 5 and all(float(keras.ops.convert_to_numpy(one.weight)) != 1.0 for one in throughs)


def test_floor_and_optimizer_train_the_variables_of_the_model(model):
    shapes = parts.given_shapes(model, "train")
    assert shapes == {"pooled": (20, 2, 2, 256), "patches": (32, 3, 3, 256)}
    batch = tiny_batch() | {name: np.ones((2, *shape), np.float32) for name, shape in shapes.items()}
    kernel = model.get_layer("backbone").get_layer("conv1").kernel
    for part in (parts.floor(model, "train"), parts.optimizer(model)):
        before = keras.ops.convert_to_numpy(kernel).copy()
        part.compile(build_optimizer(model.config.train, 10))
        part.train_on_batch(
            {name: batch[name] for name in part.input} if isinstance(part.input, dict) else np.zeros((1, 1))
        )
        assert not np.array_equal(before, keras.ops.convert_to_numpy(kernel))
