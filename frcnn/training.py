"""Training: what `train_frcnn.py` calls. Stock `compile` and `fit`; the run folder; what is said after each epoch."""

import contextlib
import importlib.util
import json
import platform
import threading
import time
from pathlib import Path

import keras

from frcnn import backend
from frcnn.config import save_config
from frcnn.data.batches import batch_files, make_batch, plan_epoch, split_records, training_batches
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.health import HealthReport, validation_scores
from frcnn.models.detector import build_detector
from frcnn.models.resnet import ConvNorm
from frcnn.optimizer import build_optimizer
from frcnn.plots import plot_history
from frcnn.weights import flat_layers, load_weights, prepare

STAGES = 5


def train(config, records, *, class_names, validation=None, output="runs/frcnn", verbose="auto"):
    """Train a detector and write its run folder.

    The folder holds config.yaml, config.pickle (with the class names), train.txt and validation.txt (the split),
    environment.json, history.csv, curves.png, last.weights.h5, best.weights.h5 (by validation mAP) and, where the
    package tensorboard is installed, its logs.

    Args:
        config: `frcnn.Config`; the run folder holds it as `build_model` settled it.
        records: list of `ImageRecord` to train on.
        class_names: K strings, what the records' labels mean.
        validation: list of `ImageRecord`; None: a fraction `config.data.val_fraction` of `records`, drawn with
            `config.train.seed`. An empty list: none.
        output: the run folder; created.
        verbose: Keras's: 0 silent, 1 progress bar, 2 a line an epoch.

    Returns:
        keras.callbacks.History: per epoch the loss, the four losses, the same with `val_`, `val_map` (AP50, VOC all
        points, 0..1), `val_rpn_recall` and `val_best_score` (see `frcnn.health`), `pictures_per_second` and `data_wait`
        (share of the time, 0..1). `model.findings` of `train_model` holds what stood in the way of learning.

    Raises:
        ValueError: the output holds a run already, there are too few pictures to split, or weights do not fit.
        FloatingPointError: the loss was not finite; the message names the files of the batch.
    """
    refuse_finished(output)
    model = build_model(config, class_names)
    return train_model(model, records, validation=validation, output=output, verbose=verbose)


def refuse_finished(output):
    """Raise ValueError if a folder holds a run already."""
    if Path(output, "config.yaml").exists():
        raise ValueError(f"{output} holds a run already: choose another output folder, or delete it")


def build_model(config, class_names, build=build_detector):
    """Build the training model with the initial weights that `config.model.weights` asks for.

    Args:
        config: `frcnn.Config`.
        class_names: K strings.
        build: `build_detector` or `build_classifier`.

    Returns:
        What `build` does. Its `config` no longer says "auto" for `model.conventions` and `model.norm`; its
        `weights_report` is a `frcnn.weights.Report`, or None where it starts from random weights. With initial weights
        only the last `model.trainable_stages` of the ResNet's five stages are trainable.

    Raises:
        ValueError: the weights cannot be read or are for another network.
    """
    config, source = prepare(config)
    model = build(config, class_names)
    model.weights_report = source and load_weights(model, source, reinitialise=True)
    for layer in flat_layers(model) if source else ():
        if isinstance(layer, ConvNorm) and layer.name.startswith(("conv1", "res")):
            stage = int(layer.name[3]) if layer.name.startswith("res") else 1
            layer.trainable = stage > STAGES - config.model.trainable_stages
    return model


def train_model(model, records, *, validation=None, output="runs/frcnn", verbose="auto"):
    """Train what `build_model` built; arguments, result and errors as in `train`."""
    output, config = Path(output), model.config
    refuse_finished(output)
    if validation is None:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    records = [record.without_crowds() for record in records]  # they are no objects: torchvision, Detectron2
    compile_model(model, records)
    write_run_files(output, model)
    write_annotations(output / "train.txt", records, model.class_names)
    write_annotations(output / "validation.txt", validation, model.class_names)
    score = {"monitor": "val_map", "measure": validation_scores(validation)} if validation else {}
    return fit_model(model, records, validation, output, verbose, make_batch, **score)


def compile_model(model, records, **settings):
    """Compile a model whose `config` says how it is trained, with further settings of Keras's `compile`."""
    steps = _steps_in_an_epoch(model.config, records)
    model.compile(optimizer=build_optimizer(model.config.train, steps * model.config.train.epochs), **settings)


def _steps_in_an_epoch(config, records):
    threshold = config.data.repeat_threshold
    return len(plan_epoch(records, config.train.batch_size, config.train.seed, 0, repeat_threshold=threshold))


def fit_model(model, records, validation, output, verbose, make, **score):
    """Train a compiled model on the batches of `training_batches`.

    Args:
        model: with a `config`.
        records, validation: lists of records; validation may be empty.
        output, verbose: as in `train`.
        make: makes a batch, see `training_batches`.
        score: see `build_callbacks`.

    Returns:
        keras.callbacks.History.
    """
    config = model.config
    steps = _steps_in_an_epoch(config, records)
    health = HealthReport(records, config, steps)
    batches = TimedBatches(health.watch(training_batches(records, config, config.train.seed, make=make)))
    validation_batches = TimedBatches(_same_batches_forever(validation, config, make))
    validation_settings = {}
    callbacks = [*build_callbacks(output, config, records, batches, **score), health]
    with _closing_files(callbacks), _closing(batches, validation_batches):
        if validation:
            validation_settings = {
                "validation_data": _as_fit_data(validation_batches, validation, config, make),
                "validation_steps": len(plan_epoch(validation, config.train.batch_size, config.train.seed, 0)),
            }
        return model.fit(
            _as_fit_data(batches, records, config, make),
            epochs=config.train.epochs,
            steps_per_epoch=steps,
            callbacks=callbacks,
            verbose=verbose,
            shuffle=False,  # the plan of the epoch has shuffled
            **validation_settings,
        )


@contextlib.contextmanager
def _closing(*sources):
    """Close these `TimedBatches` in the end, and raise their own error, not what the backend made of it."""
    try:
        yield
    except Exception:
        for source in sources:
            if source.error:
                raise source.error from None
        raise
    finally:
        for source in sources:
            source.close()


@contextlib.contextmanager
def _closing_files(callbacks):
    """Close the files of Keras's loggers, which do so themselves at the end of a run that ends well only."""
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger | keras.callbacks.TensorBoard):
                callback.on_train_end()
        raise


class TimedBatches:
    """An iterator that adds up how long its consumer has waited for it, in `seconds`.

    TensorFlow draws from it in a thread of its own, which may be at work when the run ends (a generator cannot be
    closed then, hence the lock), and raises another error than the one that stopped it, kept as `error`.
    """

    def __init__(self, batches):
        self._batches = batches
        self._lock = threading.Lock()
        self.seconds, self.error = 0.0, None

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        with self._lock:
            try:
                batch = next(self._batches)
            except ValueError as error:
                self.error = error
                raise
        self.seconds += time.perf_counter() - start
        return batch

    def close(self):
        self.error = None  # TensorFlow keeps what it drew from, and an error keeps the frames that it came through
        with self._lock:
            self._batches.close()


def _same_batches_forever(records, config, make):
    """The validation batches of epoch 0 again and again: not augmented, sampled with a fixed seed."""
    settings = {"epochs": 1, "augment": False, "shuffle": False, "make": make}
    while True:
        yield from training_batches(records, config, config.train.seed, **settings)


def _as_fit_data(batches, records, config, make):
    example = make(records, config, config.train.seed, 0, 0)
    return backend.training_data(lambda: batches, example)


# --------------------------------------------------------------------------------------------------- callbacks


class EpochReport(keras.callbacks.Callback):
    """Adds `pictures_per_second`, `data_wait` and, where there is one, what `measure` gives of the model to the logs.

    Must stand before whatever writes them.
    """

    def __init__(self, batch_size, batches, measure=None):
        super().__init__()
        self.batch_size, self.batches, self.measure = batch_size, batches, measure

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._waited, self._steps = time.perf_counter(), self.batches.seconds, 0
        self._end = self._start

    def on_train_batch_end(self, batch, logs=None):
        self._end, self._steps = time.perf_counter(), self._steps + 1
        self._share = min((self.batches.seconds - self._waited) / max(self._end - self._start, 1e-9), 1.0)

    def on_epoch_end(self, epoch, logs=None):
        elapsed = max(self._end - self._start, 1e-9)
        logs["pictures_per_second"] = self._steps * self.batch_size / elapsed
        logs["data_wait"] = self._share
        if self.measure:
            logs.update(self.measure(self.model))


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends the run at the first loss that is not finite, before any weights are written, and names the pictures."""

    def __init__(self, files_of):
        super().__init__()
        self.files_of = files_of
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not abs(float(logs["loss"])) < float("inf"):
            raise FloatingPointError(
                f"the loss is not finite at epoch {self._epoch + 1}, step {batch + 1}, with the pictures "
                f"{', '.join(self.files_of(self._epoch, batch))}; a lower train.learning_rate is the usual cure"
            )


class PlotCurves(keras.callbacks.Callback):
    """Draws curves.png from history.csv after each epoch."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def on_epoch_end(self, epoch, logs=None):
        plot_history(self.output / "history.csv", self.output / "curves.png")


def build_callbacks(output, config, records, batches, monitor="loss", measure=None):
    """Everything that watches a run, in the order in which it must be called.

    Args:
        output: the run folder, a Path.
        config, records: as in `train`.
        batches: the `TimedBatches` that training draws from.
        monitor: what decides which weights are the best: "loss", the lowest, or the name of a score, the highest.
        measure: function of the model that gives validation scores, a dict, or None.
    """

    def files_of(epoch, step):
        return batch_files(records, config, config.train.seed, epoch, step)

    monitor = {"monitor": monitor, "mode": "min" if monitor == "loss" else "max"}
    save = {"save_weights_only": True, "verbose": 0}
    callbacks = [
        StopOnNonFinite(files_of),
        EpochReport(config.train.batch_size, batches, measure),
        keras.callbacks.CSVLogger(str(output / "history.csv")),
        PlotCurves(output),
        keras.callbacks.ModelCheckpoint(str(output / "last.weights.h5"), **save),
        keras.callbacks.ModelCheckpoint(str(output / "best.weights.h5"), save_best_only=True, **monitor, **save),
    ]
    if config.train.patience:
        callbacks.append(keras.callbacks.EarlyStopping(patience=config.train.patience, verbose=1, **monitor))
    if importlib.util.find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(str(output / "tensorboard"), write_graph=False))
    return callbacks


# -------------------------------------------------------------------------------------------------- run folder


def write_run_files(output, model, kind="detector"):
    """Write into a run folder, before training, the config and the environment of its model; see `save_config`."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "environment.json").write_text(json.dumps(_environment(model), indent=2) + "\n")
    save_config(model.config, output, model.class_names, kind)


def _environment(model):
    import importlib.metadata

    packages = ("frcnn", "keras", keras.backend.backend(), "numpy", "opencv-python-headless")
    return {
        "seed": model.config.train.seed,
        "initial_weights": str(getattr(model, "weights_report", None) or "random").splitlines(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": backend.device_name(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
