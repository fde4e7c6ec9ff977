"""Training: what `train_frcnn.py` calls. Stock `compile` and `fit`; the run folder; what is said after each epoch."""

import contextlib
import importlib.util
import math
import threading
import time
import warnings
from pathlib import Path

import keras

from frcnn import backend, memory
from frcnn.checkpoints import fingerprint, flags_of, is_finished, lock_run
from frcnn.config import save_config
from frcnn.data.batches import batch_files, make_batch, plan_epoch, split_records, training_batches
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.health import HealthReport, validation_scores
from frcnn.models.detector import build_detector, require_class_names
from frcnn.models.resnet import ConvNorm
from frcnn.optimizer import build_optimizer
from frcnn.records import require_labels
from frcnn.run_card import RunCard
from frcnn.run_folder import RunFolder
from frcnn.schema import Config
from frcnn.weights import flat_layers, load_weights, prepare

STAGES = 5
MOST_SKIPPED = 5  # steps that are not finite, one after the other, end a run


def train(config, records, *, class_names, validation=None, output="runs/frcnn", verbose="auto"):
    """Train a detector and write its run folder.

    The folder holds config.yaml, config.pickle (with the class names), train.txt and validation.txt (the split),
    card.json and card.html (`RunCard`), history.csv, steps.csv, curves.png, last.weights.h5, best.weights.h5 (by
    validation mAP), checkpoints and, where the package tensorboard is installed, its logs.

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
        points, 0..1), `val_rpn_recall` and `val_best_score` (see `frcnn.health`), `skipped_steps` (see
        `frcnn.models.guarded`), `pictures_per_second` and `data_wait` (share of the time, 0..1). `model.findings` of
        `train_model` holds what stood in the way of learning.

    Raises:
        ValueError: the output holds a run already, a label has no class, there are too few pictures to split, or
            weights do not fit.
        FloatingPointError: loss or gradients of `MOST_SKIPPED` steps in a row were not finite; each of these steps
            changed nothing, and the message names the pictures of the last.
        MemoryError: memory ran out; the message says how much it takes, and which fields to lower.
    """
    refuse_finished(output)
    if not isinstance(config, Config):
        raise ValueError(f"config is a {type(config).__name__}: give what frcnn.load_config returns")
    class_names = require_class_names(class_names)
    for part in (records, validation or ()):
        require_labels(part, class_names)
    if not records:
        raise ValueError("records is empty: give at least one picture to train on")
    model = build_model(config, class_names)
    return train_model(model, records, validation=validation, output=output, verbose=verbose)


def refuse_finished(output):
    """Raise ValueError if a folder holds a run already."""
    if Path(output, "config.yaml").exists():
        raise ValueError(
            f"{output} holds a run already: choose another output folder, delete it, or resume it "
            f"(frcnn train --resume {output})"
        )


def build_model(config, class_names, build=build_detector, resumed=False):
    """Build the training model with the initial weights that `config.model.weights` asks for.

    Args:
        config: `frcnn.Config`.
        class_names: K strings.
        build: `build_detector` or `build_classifier`.
        resumed: the weights come from a checkpoint, those of the config are not read; it must be the config of a run.

    Returns:
        What `build` does. Its `config` no longer says "auto" for `model.conventions` and `model.norm`; its
        `weights_report` is a `frcnn.weights.Report`, or None where it starts from random weights. With initial weights
        only the last `model.trainable_stages` of the ResNet's five stages are trainable.

    Raises:
        ValueError: the weights cannot be read or are for another network.
    """
    config, source = (config, None) if resumed else prepare(config)
    model = build(config, class_names)
    model.weights_report = source and load_weights(model, source, reinitialise=True)
    for layer in flat_layers(model) if config.model.weights != "none" else ():
        if isinstance(layer, ConvNorm) and layer.name.startswith(("conv1", "res")):
            stage = int(layer.name[3]) if layer.name.startswith("res") else 1
            layer.trainable = stage > STAGES - config.model.trainable_stages
    return model


def train_model(model, records, *, validation=None, output="runs/frcnn", verbose="auto", saved=None, stop=None):
    """Train what `build_model` built; arguments, result and errors as in `train`, and further:

    Args:
        saved: what `frcnn.checkpoints.read_checkpoint` returned, of this run folder, to go on from; or None.
        stop: a `frcnn.stopping.Stop` that may end the run; or None.

    Raises:
        frcnn.stopping.Interrupted: it did.
        ValueError: the results could not be written in the end.
    """
    output, config = Path(output), model.config
    if not saved:
        refuse_finished(output)
    if validation is None:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    records = [record.without_crowds() for record in records]  # they are no objects: torchvision, Detectron2
    compile_model(model, records)

    def describe():
        write_run_files(output, model)
        write_annotations(output / "train.txt", records, model.class_names)
        write_annotations(output / "validation.txt", validation, model.class_names)

    found = []
    score = {"monitor": "val_map", "measure": validation_scores(validation, found)} if validation else {}
    settings = {"describe": describe, "keep": flags_of(validation), "saved": saved, "stop": stop, "found": found}
    return fit_model(model, records, validation, output, verbose, make_batch, **settings, **score)


def compile_model(model, records, **settings):
    """Compile a model whose `config` says how it is trained, with further settings of Keras's `compile`."""
    steps = _steps_in_an_epoch(model.config, records)
    optimizer = build_optimizer(model.config.train, steps * model.config.train.epochs)
    optimizer.build(model.trainable_variables)  # else the step is traced twice, at first to make its variables
    model.compile(optimizer=optimizer, **settings)


def _steps_in_an_epoch(config, records):
    threshold = config.data.repeat_threshold
    return len(plan_epoch(records, config.train.batch_size, config.train.seed, 0, repeat_threshold=threshold))


def fit_model(
    model, records, validation, output, verbose, make, *, saved=None, monitor="loss", measure=None, found=(), **settings
):
    """Train a compiled model on the batches of `training_batches`.

    Args:
        model: with a `config`.
        records, validation: lists of records; validation may be empty.
        output, verbose, saved: as in `train_model`.
        make: makes a batch, see `training_batches`.
        monitor: what decides which weights are the best, see `frcnn.checkpoints.best_epoch`.
        measure: function of the model that gives validation scores, a dict; or None.
        found: list into which `measure` puts the `Detections` of the validation, for the card.
        settings: of `RunFolder`.

    Returns:
        keras.callbacks.History.
    """
    steps, epochs = _steps_in_an_epoch(model.config, records), model.config.train.epochs
    data = [fingerprint([*records, *validation], with_folders) for with_folders in (False, True)]
    settings |= {"data": data, "monitor": monitor, "validated": bool(validation)}
    run = RunFolder(output, model, steps, **settings)
    card = RunCard(output, model, records, validation, steps, found, monitor)
    with lock_run(output):
        run.start(saved)
        if run.step and f"metrics/{len(model.metrics_variables)}" in saved[0]:  # compiled ones: a batch builds them
            model.test_on_batch(*make(records, model.config, model.config.train.seed, 0, 0))
        health = HealthReport(records, model.config, steps, [row["loss"] for row in run.rows])
        legs = [] if is_finished(run.rows, monitor, model.config.train) else _legs(run.epoch, run.step, steps, epochs)
        model.history = keras.callbacks.History()
        with card.written(), memory.told_in_a_sentence(model, records, validation):
            for leg in legs:
                _fit_leg(model, records, validation, leg, make, verbose, measure, (health, run, card))
                if model.stop_training:
                    break
    if run.error:
        reason = run.error.strerror or run.error
        raise ValueError(f"{output}: the results could not be written ({reason}): make room, then resume the run")
    model.history.epoch, model.history.history = list(range(len(run.rows))), run.history()
    return model.history


def _legs(epoch, step, steps, epochs):
    """Yield (epoch, step to begin with, steps an epoch, epoch to end before): `fit` has epochs of one length only."""
    if step:
        yield epoch, step, steps - step, epoch + 1
    if epoch + bool(step) < epochs:
        yield epoch + bool(step), 0, steps, epochs


def _fit_leg(model, records, validation, leg, make, verbose, measure, watchers):
    """A stretch of the training that one call of `fit` can do; `leg`: of `_legs`, `watchers`: of `build_callbacks`."""
    config, (epoch, step, steps, end) = model.config, leg
    batches = watchers[0].watch(training_batches(records, config, config.train.seed, start=(epoch, step), make=make))
    batches, validation_batches = TimedBatches(batches), TimedBatches(_same_batches_forever(validation, config, make))
    callbacks, validation_settings = build_callbacks(*watchers, config, records, batches, measure), {}
    with _closing(batches, validation_batches, callbacks=callbacks):
        if validation:
            validation_settings = {
                "validation_data": _as_fit_data(validation_batches, validation, config, make),
                "validation_steps": len(plan_epoch(validation, config.train.batch_size, config.train.seed, 0)),
            }
        model.fit(
            _as_fit_data(batches, records, config, make),
            initial_epoch=epoch,
            epochs=end,
            steps_per_epoch=steps,
            callbacks=callbacks,
            verbose=verbose,
            shuffle=False,  # the plan of the epoch has shuffled
            **validation_settings,
        )


@contextlib.contextmanager
def _closing(*sources, callbacks):
    """Close these `TimedBatches` in the end, and raise their own error, not what the backend made of it.

    TensorBoard's files too, which it closes itself at the end of a run that ends well only.
    """
    try:
        yield
    except BaseException:
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.TensorBoard):
                callback.on_train_end()
        for source in sources:
            if source.error:
                raise source.error from None
        raise
    finally:
        for source in sources:
            source.close()


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
            except (ValueError, MemoryError) as error:
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

    def __init__(self, batch_size, steps, batches, measure=None):
        super().__init__()
        self.batch_size, self.steps, self.batches, self.measure = batch_size, steps, batches, measure

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._waited, self._steps = time.perf_counter(), self.batches.seconds, 0
        self._end = self._start

    def on_train_batch_end(self, batch, logs=None):
        self._end, self._steps = time.perf_counter(), self._steps + 1
        self._share = min((self.batches.seconds - self._waited) / max(self._end - self._start, 1e-9), 1.0)

    def on_epoch_end(self, epoch, logs=None):
        elapsed = max(self._end - self._start, 1e-9)
        logs.pop("val_skipped_steps", None)
        if logs["skipped_steps"] == self.steps:  # Keras's means of nothing are 0
            own = [name for name in logs if not name.startswith("val_") and name != "skipped_steps"]
            logs.update(dict.fromkeys(own, math.nan))
        logs["pictures_per_second"] = self._steps * self.batch_size / elapsed
        logs["data_wait"] = self._share
        if self.measure:
            logs.update(self.measure(self.model))


class SkippedSteps(keras.callbacks.Callback):
    """Warns of the first step that was not finite and so changed nothing, and ends a run with many in a row.

    Must stand behind the `RunFolder`, whose `losses` say which steps these were.

    Args:
        run: the `RunFolder`.
        files_of_step: function of epoch and step, both from 0, that gives the paths of the batch.
    """

    def __init__(self, run, files_of_step):
        super().__init__()
        self.run, self.files_of_step = run, files_of_step
        self._in_a_row, self._seen, self._is_said = 0, len(run.losses), False

    def on_train_batch_end(self, batch, logs=None):
        losses = self.run.losses
        for index in range(self._seen, len(losses)):
            self._in_a_row = self._in_a_row + 1 if math.isnan(losses[index]) else 0
            if self._in_a_row and not self._is_said:
                self._is_said = True
                warnings.warn(
                    f"{self._describe(index)}: the step changed nothing; history.csv counts these", stacklevel=2
                )
            if self._in_a_row == MOST_SKIPPED:
                advice = "a lower train.learning_rate is the usual cure"
                raise FloatingPointError(f"{self._describe(index)}, the {MOST_SKIPPED}th in a row; {advice}")
        self._seen = len(losses)

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_end(None)

    def _describe(self, index):
        epoch, step = divmod(index, self.run.steps)
        files = ", ".join(self.files_of_step(epoch, step))
        return f"loss or gradients are not finite at epoch {epoch + 1}, step {step + 1}, with the pictures {files}"


def build_callbacks(health, run, card, config, records, batches, measure=None):
    """Everything that watches a run, in the order in which it must be called.

    Args:
        health, run, card: the `HealthReport`, the `RunFolder` and the `RunCard`.
        config, records: as in `train`.
        batches: the `TimedBatches` that training draws from.
        measure: function of the model that gives validation scores, a dict; or None.
    """

    def files_of_step(epoch, step):
        return batch_files(records, config, config.train.seed, epoch, step)

    report = EpochReport(config.train.batch_size, run.steps, batches, measure)
    callbacks = [report, health, run, SkippedSteps(run, files_of_step), card]
    if importlib.util.find_spec("tensorboard"):
        callbacks.append(keras.callbacks.TensorBoard(str(run.output / "tensorboard"), write_graph=False))
    return callbacks


# -------------------------------------------------------------------------------------------------- run folder


def write_run_files(output, model, kind="detector"):
    """Write into a run folder, before training, the config of its model; see `save_config`."""
    output.mkdir(parents=True, exist_ok=True)
    save_config(model.config, output, model.class_names, kind)
