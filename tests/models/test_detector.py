import h5py
import keras
import numpy as np
import pytest

from frcnn.backend import training_data
from frcnn.evaluation import evaluate
from frcnn.inference import detect
from frcnn.models.detector import LOSSES, build_detector, detection_model, dtype_policy
from frcnn.models.resnet import ConvNorm
from frcnn.optimizer import build_optimizer
from frcnn.records import ImageRecord
from frcnn.training import TimedBatches
from tests.oracles.tensors import array, gradient
from tests.oracles.tiny import CLASS_NAMES, SCENES, SIZE, tiny_batch, tiny_config, tiny_images

AFTER_THE_HEADS = [
    "anchors",
    "sample_anchors",
    "pick_anchors",
    "train_proposals",
    "sample_rois",
    "roi_align",
    *LOSSES,
]


@pytest.fixture(scope="module")
def model():
    """Frozen norm: nothing of it changes by being called."""
    return build_detector(tiny_config("model.norm=frozen"), CLASS_NAMES)


@pytest.fixture(scope="module")
def detector(model):
    return detection_model(model)


@pytest.fixture(scope="module")
def losses_of(model):
    """The four losses of a batch as numpy, compiled once (JAX's eager mode compiles every operation)."""
    return compiled_call(model)


def compiled_call(model):
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        variables = [[v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]
        step = jax.jit(lambda inputs: model.stateless_call(*variables, inputs, training=True)[0])
    elif backend == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda inputs: model(inputs, training=True), reduce_retracing=True)
    else:

        def step(inputs):
            return model(inputs, training=True)

    def call(batch):
        outputs = step({name: keras.ops.convert_to_tensor(value) for name, value in batch.items()})
        return {name: array(value) for name, value in outputs.items()}

    return call


def run_detector(detector, images, sizes=None):
    """{boxes, scores, labels} of a batch of pictures."""
    sizes = np.full((len(images), 2), SIZE, np.int32) if sizes is None else np.array(sizes, np.int32)
    return detector.predict_on_batch({"images": np.asarray(images), "image_sizes": sizes})


def assert_same_detections(first, second, tolerance=1e-3):
    assert np.array_equal(first["labels"], second["labels"])
    np.testing.assert_allclose(first["scores"], second["scores"], atol=tolerance)
    np.testing.assert_allclose(first["boxes"], second["boxes"], atol=tolerance)


# --------------------------------------------------------------------------------------------------- training


def test_outputs_are_the_four_losses_one_number_a_picture(model, losses_of):
    losses = losses_of(tiny_batch())
    assert set(losses) == set(model.output) == set(LOSSES)
    for name in LOSSES:
        assert (losses[name].shape, losses[name].dtype) == ((2,), np.float32)
        assert (losses[name] > 0).all()
        assert model.output[name].shape == (None,)
    # An untrained predictor: binary cross-entropy log 2.
    assert losses["rpn_class_loss"].mean() == pytest.approx(np.log(2), abs=0.2)


def test_losses_depend_on_the_sampling_seeds_and_nothing_else(losses_of):
    first, again, other = (losses_of(tiny_batch(seed=seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in LOSSES)
    # Some draws are the same whatever the seed, when there are no more candidates than samples; not all four.
    assert not all(np.allclose(first[name], other[name], rtol=1e-6) for name in LOSSES)


def test_a_pictures_losses_do_not_depend_on_its_place(losses_of):
    batch = tiny_batch()
    swapped = losses_of({name: value[::-1].copy() for name, value in batch.items()})
    for name, values in losses_of(batch).items():
        np.testing.assert_allclose(swapped[name][::-1], values, rtol=1e-4, atol=1e-6)


def test_an_empty_ground_truth_gives_box_losses_of_exactly_0(losses_of):
    batch = tiny_batch()
    batch["gt_boxes"][:], batch["gt_labels"][:] = 0, -1
    losses = losses_of(batch)
    assert not losses["rpn_box_loss"].any() and not losses["roi_box_loss"].any()
    assert (losses["rpn_class_loss"] > 0).all() and (losses["roi_class_loss"] > 0).all()


@pytest.mark.parametrize("empty", [True, False])
def test_gradients_are_finite_and_reach_the_first_convolution(model, empty):
    batch = tiny_batch(1)
    if empty:
        batch["gt_boxes"][:], batch["gt_labels"][:] = 0, -1
    inputs = {name: keras.ops.convert_to_tensor(value) for name, value in batch.items()}
    trainable = [variable.value for variable in model.trainable_variables]
    frozen = [variable.value for variable in model.non_trainable_variables]
    first = model.trainable_variables[0]
    assert first.path.endswith("conv1/kernel")

    def loss(kernel):
        outputs, _ = model.stateless_call([kernel, *trainable[1:]], frozen, inputs, training=True)
        return sum(keras.ops.mean(outputs[name]) for name in LOSSES)

    found = gradient(loss, array(first.value))
    assert np.isfinite(found).all() and np.abs(found).max() > 0


def test_the_backbone_runs_once_a_step(model, monkeypatch):
    backbone, calls = model.get_layer("backbone"), []
    call = backbone.call
    monkeypatch.setattr(backbone, "call", lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs))
    batch = {name: keras.ops.convert_to_tensor(value) for name, value in tiny_batch(1).items()}
    model.compute_loss(y_pred=model(batch, training=True))
    assert len(calls) == 1


@pytest.mark.tensorflow
def test_the_train_step_of_tensorflow_convolves_a_picture_once():
    import tensorflow as tf

    model = build_detector(tiny_config("model.norm=batch"), CLASS_NAMES)
    model.compile(optimizer="sgd")
    traced = tf.function(model.train_step).get_concrete_function((tiny_batch(),))
    stem = [7, 7, 3, 64]
    operations = [op for op in traced.graph.get_operations() if op.type.startswith("Conv2D")]
    forward = [op.type for op in operations if op.type == "Conv2D" and op.inputs[1].shape == stem]
    kernels = [op.type for op in operations if op.type.endswith("Filter") and op.outputs[0].shape == stem]
    assert (len(forward), len(kernels)) == (1, 1)


def test_fit_on_a_generator_one_step():
    model = build_detector(tiny_config("model.norm=batch"), CLASS_NAMES)
    model.compile(optimizer=build_optimizer(model.config.train, 4))
    before = {weight.path: array(weight.value) for weight in model.weights}
    data = training_data(lambda: TimedBatches(iter([(tiny_batch(),)])), tiny_batch())
    history = model.fit(data, steps_per_epoch=1, shuffle=False, verbose=0).history
    assert set(history) == {"loss", *LOSSES, "skipped_steps"}
    assert history["loss"][0] == pytest.approx(sum(history[name][0] for name in LOSSES), rel=1e-5)
    after = {weight.path: array(weight.value) for weight in model.weights}
    assert all(np.isfinite(value).all() for value in after.values())
    changed = {path for path, value in before.items() if not np.array_equal(value, after[path])}
    kernels = {path for path in before if path.endswith("/kernel")}
    # Every kernel learns from the first step on, but the class-specific rows that no sampled RoI asked for.
    assert kernels <= changed
    assert {path for path in before if path.endswith(("moving_mean", "moving_variance"))} <= changed


def test_mixed_precision_ends_at_the_heads():
    config = tiny_config("train.precision=bfloat16", "model.norm=frozen")
    assert dtype_policy(config.train.precision) == "mixed_bfloat16"
    model = build_detector(config, CLASS_NAMES)
    layers = {layer.name: layer for layer in model.layers}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    convolutions = [layer for layer in layers["backbone"].layers if isinstance(layer, ConvNorm)]
    assert {layer.compute_dtype for layer in convolutions} == {"bfloat16"}
    inside = {name: layers[name].output for name in AFTER_THE_HEADS}
    inside |= {name: layers[name].output for name in layers if name.startswith("per_picture")}
    assert len(inside) == 12
    inputs = {name: keras.ops.convert_to_tensor(value) for name, value in tiny_batch(1).items()}
    actual = keras.Model(model.input, inside)(inputs)
    for name, declared in inside.items():
        found = [keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(actual[name])]
        assert found == [x.dtype for x in keras.tree.flatten(declared)], name
        integers = {"sample_anchors": [0, 1], "sample_rois": [1]}.get(name, [])  # indices and labels
        assert found == ["int32" if index in integers else "float32" for index in range(len(found))], name
    # Coordinates went through no bfloat16, whose steps at 64 are 0.5: thirds of pixels survive.
    rois, labels, _ = array(actual["sample_rois"])
    assert (rois * 2 % 1 != 0).any() and set(labels.ravel()) <= {-1, 0, 1, 2}
    assert [layers[name].compute_dtype for name in AFTER_THE_HEADS] == ["float32"] * len(AFTER_THE_HEADS)


def test_the_rpns_delta_weights_reach_its_targets_and_both_decodings():
    model = build_detector(tiny_config("model.norm=frozen", "rpn.delta_weights=[1,2,3,4]"), CLASS_NAMES)
    layers = [model.get_layer(name) for name in ("sample_anchors", "train_proposals")]
    for layer in [*layers, detection_model(model).get_layer("test_proposals")]:
        assert layer.settings["delta_weights"] == (1, 2, 3, 4)


def test_a_weight_file_holds_the_rpn_once_where_it_always_was(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        names = []
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    assert sum("/functional_1/" in name for name in names) == 6  # backbone, RPN and head are the models without a class
    assert not [name for name in names if "sampled" in name]


# -------------------------------------------------------------------------------------------------- detection


def test_detections_have_declared_shapes_and_dtypes_and_lie_inside(detector):
    found = run_detector(detector, tiny_images())
    assert {name: (x.shape, x.dtype) for name, x in detector.output.items()} == {
        "boxes": ((None, 10, 4), "float32"),
        "scores": ((None, 10), "float32"),
        "labels": ((None, 10), "int32"),
    }
    assert {name: (x.shape, str(x.dtype)) for name, x in found.items()} == {
        "boxes": ((2, 10, 4), "float32"),
        "scores": ((2, 10), "float32"),
        "labels": ((2, 10), "int32"),
    }
    filled = found["labels"] >= 0
    assert filled.any()
    assert not found["scores"][~filled].any()
    assert found["boxes"].min() >= 0 and found["boxes"].max() <= SIZE
    assert (np.diff(found["scores"], axis=1) <= 0).all()


def test_detection_shares_the_layers_of_training(model, detector):
    for name in ("normalize", "backbone", "rpn", "anchors", "roi_align", "roi_head"):
        assert detector.get_layer(name) is model.get_layer(name)
    assert {id(weight) for weight in detector.weights} == {id(weight) for weight in model.weights}
    bias = model.get_layer("roi_head").get_layer("class_logits").bias
    before = array(bias.value)
    try:
        bias.assign(np.float32([0, 8, 0]))
        found = run_detector(detector, tiny_images())
        assert set(found["labels"][found["labels"] >= 0]) == {1} and found["scores"].max() > 0.9
    finally:
        bias.assign(before)
    assert run_detector(detector, tiny_images())["scores"].max() < 0.9


def test_what_stands_in_the_padding_changes_nothing(detector):
    images = np.zeros((2, 96, 128, 3), np.uint8)
    images[:, :SIZE, :SIZE] = tiny_images()
    garbage = images.copy()
    garbage[:, SIZE:], garbage[:, :, SIZE:] = 200, 90
    assert_same_detections(run_detector(detector, images), run_detector(detector, garbage), tolerance=0)


def test_detections_stay_inside_the_true_picture(detector):
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    sizes = np.array([(60, 100), (96, 40)])
    found = run_detector(detector, images, sizes)
    assert (found["labels"] >= 0).all(axis=1).any()
    for boxes, (height, width) in zip(found["boxes"], sizes):
        assert boxes[:, [0, 2]].max() <= width and boxes[:, [1, 3]].max() <= height


def test_saved_weights_give_the_same_detections(model, detector, tmp_path):
    file = tmp_path / "x.weights.h5"
    model.save_weights(file)
    twin = build_detector(tiny_config("model.norm=frozen", "train.seed=5"), CLASS_NAMES)
    images = tiny_images()
    expected, other = run_detector(detector, images), run_detector(detection_model(twin), images)
    assert not np.allclose(other["scores"], expected["scores"], atol=1e-5)
    twin.load_weights(file)
    assert_same_detections(run_detector(detection_model(twin), images), expected, tolerance=0)


@pytest.mark.tensorflow
def test_two_pictures_are_learned_by_heart():
    """Everything together, from anchors to NMS, or it does not learn: AP50 of 0.9 or more after 60 steps."""
    steps = 60
    changes = ["model.roi_pool_size=4", "roi.samples=32", "train.learning_rate=0.02", "train.warmup_steps=5"]
    model = build_detector(tiny_config("model.norm=batch", *changes), CLASS_NAMES)
    model.compile(optimizer=build_optimizer(model.config.train, steps))
    data = training_data(lambda: ((tiny_batch(seed=step),) for step in range(steps)), tiny_batch())
    model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
    records = [
        ImageRecord(str(picture), (SIZE, SIZE), [box for _, box in scene], [label for label, _ in scene])
        for picture, scene in enumerate(SCENES[:2])
    ]
    found = detect(detection_model(model), tiny_images(), batch_size=2)
    assert evaluate(records, found, CLASS_NAMES).mean_ap >= 0.9


@pytest.mark.parametrize("class_names", [(), ("a", "b", "a")])
def test_class_names_must_be_there_and_distinct(class_names):
    with pytest.raises(ValueError, match="must be one or more distinct names"):
        build_detector(tiny_config(), class_names)
