"""A step that is not finite changes nothing, on every backend."""

import keras
import numpy as np
import pytest

from frcnn import backend, optimizer
from frcnn.models.classifier import build_classifier
from frcnn.models.detector import build_detector
from frcnn.models.guarded import nan_gradients_unless_finite
from tests.oracles.tensors import array, gradient, tensor
from tests.oracles.tiny import CLASS_NAMES, tiny_batch, tiny_config


def fit(model, batches):
    """The logs of each step, and all numbers afterwards."""
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seen.append({name: float(value) for name, value in logs.items()})
    )
    data = backend.training_data(lambda: iter(batches), batches[0])
    model.fit(data, steps_per_epoch=len(batches), verbose=0, shuffle=False, callbacks=[watch])
    variables = [*model.variables, *model.optimizer.variables]
    return seen, [array(variable.value) for variable in variables]


def build(kind, *changes):
    config = tiny_config("model.norm=batch", "train.learning_rate=0.01", *changes)
    model = (build_detector if kind == "detector" else build_classifier)(config, CLASS_NAMES)
    settings = {} if kind == "detector" else {"loss": "categorical_crossentropy", "metrics": ["accuracy"]}
    model.compile(optimizer=optimizer.build_optimizer(config.train, 8), **settings)
    model.optimizer.build(model.trainable_variables)
    return model


def good_and_bad(kind):
    batch = tiny_batch()
    if kind == "classifier":
        return (batch["images"], np.eye(2, dtype=np.float32)), (batch["images"], np.full((2, 2), np.nan, np.float32))
    boxes = batch["gt_boxes"].copy()
    boxes[0, 0] = np.nan
    return (batch,), ({**batch, "gt_boxes": boxes},)


@pytest.mark.parametrize(("kind", "name"), [("detector", "sgd"), ("classifier", "adam")])
@pytest.mark.filterwarnings("ignore:.*shuffle=True")
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(kind, name):
    """Weights, momentum, moving statistics and metrics; what comes after it as well."""
    good, bad = good_and_bad(kind)
    logs, numbers = fit(build(kind, f"train.optimizer={name}"), [good, bad, bad, good])
    without, expected = fit(build(kind, f"train.optimizer={name}"), [good, good])
    assert [one.pop("skipped_steps") for one in logs] == [0, 1, 2, 2]
    assert [one.pop("skipped_steps") for one in without] == [0, 0]
    for one, other in zip(logs, [without[0], without[0], without[0], without[1]]):
        assert one == pytest.approx(other, rel=1e-5)
    for number, other in zip(numbers, expected, strict=True):
        np.testing.assert_allclose(number, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused(value):
    variable = keras.Variable(np.ones(3, np.float32))
    sgd = optimizer.CoupledSGD(0.1, 0.9, global_clipnorm=1.0)
    sgd.build([variable])
    for slopes in ([value, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, value]):
        sgd.apply([tensor(slopes)], [variable])
    np.testing.assert_allclose(array(variable.value), [0.95, 1.0, 1.0], rtol=1e-6)
    assert int(array(sgd.iterations.value)) == 1


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 2.0), (np.nan, np.nan), (np.inf, np.nan)])
def test_the_gradients_of_a_loss_that_is_not_finite_are_not_either(factor, expected):
    """Also those that do not come from what broke it."""

    def loss(x):
        return nan_gradients_unless_finite(2.0 * x[0] + keras.ops.stop_gradient(x[1] * factor))

    np.testing.assert_array_equal(gradient(loss, np.ones(2)), [expected, 0.0])
