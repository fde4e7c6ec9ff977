"""Classifiers: what `frcnn classify` calls. Training on the detector's loop, its run folder, prediction."""

from pathlib import Path

import keras
import numpy as np

from frcnn.data.batches import load_picture, make_labelled_batch, split_records
from frcnn.data.images import resize_image
from frcnn.data.threads import map_in_threads
from frcnn.inference import build_run, in_batches
from frcnn.models.classifier import build_classifier
from frcnn.records import LabelledImage, require_labels
from frcnn.training import compile_model, fit_model, refuse_finished, write_run_files
from frcnn.weight_files import require_plain


def train_classifier(
    model, records, *, validation=None, output="runs/classifier", verbose="auto", saved=None, stop=None
):
    """Train a classifier and write its run folder: that of `frcnn.train`, without annotation files.

    Args:
        model: from `frcnn.build_classifier`, or `frcnn.training.build_model` with it, which loads initial weights.
        records: list of `LabelledImage` to train on.
        validation: the same; None: a fraction `data.val_fraction` of `records`, drawn with `train.seed`. Empty: none.
        output, verbose: as in `frcnn.train`.
        saved, stop: as in `frcnn.training.train_model`.

    Returns:
        keras.callbacks.History: per epoch `loss`, `accuracy` (0..1), both with `val_` before them,
        `pictures_per_second` and `data_wait`. The best weights are those of the highest `val_accuracy`.

    Raises:
        ValueError, FloatingPointError: as in `frcnn.train`.
    """
    output, config = Path(output), model.config
    if not saved:
        refuse_finished(output)
    if validation is None:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    require_labels([*records, *validation], model.class_names)
    identity = np.eye(len(model.class_names), dtype=np.float32)

    def make(*arguments, **settings):
        images, labels = make_labelled_batch(*arguments, **settings)
        return images, identity[labels]

    loss = keras.losses.CategoricalCrossentropy(label_smoothing=config.classify.label_smoothing)
    compile_model(model, records, loss=loss, metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")])
    settings = {"describe": lambda: write_run_files(output, model, "classifier"), "saved": saved, "stop": stop}
    monitor = "val_accuracy" if validation else "loss"
    return fit_model(model, records, validation, output, verbose, make, monitor=monitor, **settings)


def load_classifier(run, *, weights="best", overrides=()):
    """Build the classifier of a run and load its weights; arguments and errors as in `frcnn.load_detector`.

    Returns:
        keras.Model as `frcnn.build_classifier` returns it.
    """
    return build_run(run, "classifier", build_classifier, weights, overrides)[0]


def classify_stream(classifier, records):
    """Yield, record by record and in order, its probabilities (K,) float32, or the ValueError that says why not.

    Pictures are read and resized in threads, a few batches of `train.batch_size` ahead.

    Args:
        classifier: from `load_classifier` or `load_whole_model`.
        records: iterable of `LabelledImage`; labels are not looked at.
    """
    side, batch_size = classifier.input_shape[1], classifier.config.train.batch_size

    def load(record):
        if not isinstance(record, LabelledImage):
            return ValueError(f"a picture must be a LabelledImage, not a {type(record).__name__}")
        try:
            return resize_image(load_picture(record, classifier.config.data.bit_depth), (side, side))
        except ValueError as error:
            return error

    def run(batch):  # a full batch always: JAX would compile for each other size
        images = np.stack(batch + batch[:1] * (batch_size - len(batch)))
        return classifier.predict_on_batch(images)[: len(batch)]

    return in_batches(map_in_threads(load, records, classifier.config.data.workers, 2 * batch_size), batch_size, run)


def load_whole_model(path, class_names, config):
    """Load a classifier that Keras saved whole, as the tutorials' `ResNet50.h5`; nothing in it is executed.

    Args:
        path: .h5 or .keras file.
        class_names: K strings, or None: "0", "1", ...
        config: `frcnn.Config`, of which batch size and workers count.

    Returns:
        keras.Model like those of `load_classifier`: uint8 RGB images, which are divided by 255 as in the tutorials
        unless the model takes uint8 itself.

    Raises:
        ValueError: Keras cannot load it, or it is no classifier of square RGB pictures or of other classes.
    """
    try:
        require_plain(path)
        network = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # anything may be wrong with a config of another Keras, and Keras raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path}: Keras {keras.__version__} cannot load this model ({reason:.200}); where it "
            "holds a ResNet's weights, model.weights=FILE takes these"
        ) from error
    inputs, outputs = network.input_shape, network.output_shape
    is_square = isinstance(inputs, tuple) and len(inputs) == 4 and inputs[1] == inputs[2] and inputs[3] == 3
    if not is_square or inputs[1] is None or not isinstance(outputs, tuple) or len(outputs) != 2:
        raise ValueError(f"{path} maps {inputs} to {outputs}: expected (None, S, S, 3) to (None, K), a classifier")
    names = tuple(class_names or map(str, range(outputs[1])))
    if len(names) != outputs[1]:
        raise ValueError(f"{path} has {outputs[1]} classes, the pictures {len(names)} ({', '.join(names)})")
    images = keras.Input(inputs[1:], dtype="uint8", name="images")
    is_raw = network.inputs[0].dtype == "uint8"
    x = images if is_raw else keras.layers.Rescaling(1 / 255, name="divide_by_255", dtype="float32")(images)
    classifier = keras.Model(images, network(x), name="classifier")
    classifier.config, classifier.class_names = config, names
    return classifier
