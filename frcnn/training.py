"""Training: what `train_frcnn.py` calls. Stock `compile` and `fit`; the run folder; what is said after each epoch."""

import contextlib
import importlib.util
import json
import platform
import threading
import time
from pathlib import Path

import keras
from keras import ops

from frcnn import backend
from frcnn.config import save_config
from frcnn.data.batches import batch_files, make_batch, plan_epoch, split_records, training_batches
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.evaluation import evaluate
from frcnn.inference import detect
from frcnn.models.detector import build_detector, detection_model
from frcnn.models.resnet import ConvNorm
from frcnn.plots import plot_history
from frcnn.weights import load_weights, prepare

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
        points, 0..1), `pictures_per_second` and `data_wait` (share of the time, 0..1).

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


def build_model(config, class_names):
    """Build the training model with the initial weights that `config.model.weights` asks for.

    Args:
        config: `frcnn.Config`.
        class_names: K strings.

    Returns:
        `FasterRCNN`. Its `config` no longer says "auto" for `model.conventions` and `model.norm`; its `weights_report`
        is a `frcnn.weights.Report`, or None where it starts from random weights. With initial weights only the last
        `model.trainable_stages` of the ResNet's five stages are trainable.

    Raises:
        ValueError: the weights cannot be read or are for another network.
    """
    config, source = prepare(config)
    model = build_detector(config, class_names)
    model.weights_report = source and load_weights(model, source, reinitialise=True)
    for layer in model.get_layer("backbone").layers if source else ():
        if isinstance(layer, ConvNorm) and not layer.name.startswith("fpn"):
            stage = int(layer.name[3]) if layer.name.startswith("res") else 1
            layer.trainable = stage > STAGES - config.model.trainable_stages
    return model


def train_model(model, records, *, validation=None, output="runs/frcnn", verbose="auto"):
    """Train what `build_model` built; arguments, result and errors as in `train`."""
    output, config = Path(output), model.config
    refuse_finished(output)
    if validation is None:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    steps = len(plan_epoch(records, config.train.batch_size, config.train.seed, 0))
    model.compile(optimizer=build_optimizer(config.train, steps * config.train.epochs))
    _write_run_files(output, model, records, validation)
    batches = TimedBatches(training_batches(records, config, config.train.seed))
    validation_batches = TimedBatches(_same_batches_forever(validation, config))
    validation_settings = {}
    with _closing(batches, validation_batches):
        if validation:
            validation_settings = {
                "validation_data": _as_fit_data(validation_batches, validation, config),
                "validation_steps": len(plan_epoch(validation, config.train.batch_size, config.train.seed, 0)),
            }
        return model.fit(
            _as_fit_data(batches, records, config),
            epochs=config.train.epochs,
            steps_per_epoch=steps,
            callbacks=build_callbacks(output, config, records, validation, batches),
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
        with self._lock:
            self._batches.close()


def _same_batches_forever(records, config):
    """The validation batches of epoch 0 again and again: not augmented, sampled with a fixed seed."""
    while True:
        yield from training_batches(records, config, config.train.seed, epochs=1, augment=False, shuffle=False)


def _as_fit_data(batches, records, config):
    example = make_batch(records, config, config.train.seed, 0, 0)
    return backend.training_data(lambda: batches, example)


# --------------------------------------------------------------------------------------------------- optimizer


@keras.saving.register_keras_serializable("frcnn")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 (Goyal et al. 2017), then a cosine to 0 or steps of a tenth at 2/3 and 8/9 of the way.

    Args:
        peak: highest learning rate.
        warmup_steps, total_steps: in optimizer steps.
        schedule: "cosine" or "step".
    """

    def __init__(self, peak, warmup_steps, total_steps, schedule):
        self.peak, self.warmup_steps = peak, warmup_steps
        self.total_steps, self.schedule = total_steps, schedule

    def __call__(self, step):
        step = ops.cast(step, "float32")
        progress = ops.minimum(step / self.total_steps, 1.0)
        if self.schedule == "cosine":
            factor = 0.5 * (1.0 + ops.cos(3.14159265 * progress))
        else:
            passed = ops.cast(progress >= 2 / 3, "float32") + ops.cast(progress >= 8 / 9, "float32")
            factor = ops.power(0.1, passed)
        return self.peak * factor * ops.minimum((step + 1.0) / (self.warmup_steps + 1.0), 1.0)

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "total_steps", "schedule")}


@keras.saving.register_keras_serializable("frcnn")
class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay is the field's: `decay * kernel` joins the gradient, after clipping, before momentum.

    So do torch and Detectron2; Keras's own `weight_decay` is decoupled (AdamW's). Only variables named `kernel` decay.
    """

    def __init__(self, *args, kernel_decay=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.kernel_decay = kernel_decay

    def build(self, variables):
        super().build(variables)
        self._decays = [self.kernel_decay if variable.name == "kernel" else 0.0 for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        # By index: on TensorFlow `variable` is the bare tf.Variable, which does not know what its layer called it.
        decay = self._decays[self._get_variable_index(variable)]
        if decay:
            gradient = ops.add(gradient, ops.multiply(ops.cast(variable, gradient.dtype), decay))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "kernel_decay": self.kernel_decay}


def build_optimizer(settings, total_steps):
    """Momentum SGD with warm-up, decay, coupled weight decay and global clipping.

    Args:
        settings: `TrainConfig`.
        total_steps: of the whole run.
    """
    warmup = min(settings.warmup_steps, total_steps // 4)  # a short run must not end before its warm-up does
    schedule = WarmupDecay(settings.learning_rate, warmup, total_steps, settings.schedule)
    return CoupledSGD(
        schedule, settings.momentum, kernel_decay=settings.weight_decay, global_clipnorm=settings.clip_norm
    )


# --------------------------------------------------------------------------------------------------- callbacks


class EpochReport(keras.callbacks.Callback):
    """Adds `val_map`, `pictures_per_second` and `data_wait` to the logs; must stand before whatever writes them."""

    def __init__(self, config, validation, batches):
        super().__init__()
        self.config, self.validation, self.batches = config, validation, batches
        self._detector = None

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._waited, self._steps = time.perf_counter(), self.batches.seconds, 0
        self._end = self._start

    def on_train_batch_end(self, batch, logs=None):
        self._end, self._steps = time.perf_counter(), self._steps + 1
        self._share = min((self.batches.seconds - self._waited) / max(self._end - self._start, 1e-9), 1.0)

    def on_epoch_end(self, epoch, logs=None):
        elapsed = max(self._end - self._start, 1e-9)
        logs["pictures_per_second"] = self._steps * self.config.train.batch_size / elapsed
        logs["data_wait"] = self._share
        if self.validation:
            logs["val_map"] = self._mean_ap()

    def _mean_ap(self):
        self._detector = self._detector or detection_model(self.model)
        found = detect(self._detector, [record.path for record in self.validation])
        return evaluate(self.validation, found, self.model.class_names, metric="voc12").mean_ap


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


def build_callbacks(output, config, records, validation, batches):
    """Everything that watches a run, in the order in which it must be called.

    Args:
        output: the run folder, a Path.
        config, records, validation: as in `train`.
        batches: the `TimedBatches` that training draws from.
    """

    def files_of(epoch, step):
        return batch_files(records, config, config.train.seed, epoch, step)

    monitor = {"monitor": "val_map", "mode": "max"} if validation else {"monitor": "loss", "mode": "min"}
    save = {"save_weights_only": True, "verbose": 0}
    callbacks = [
        StopOnNonFinite(files_of),
        EpochReport(config, validation, batches),
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


def _write_run_files(output, model, records, validation):
    output.mkdir(parents=True, exist_ok=True)
    write_annotations(output / "train.txt", records, model.class_names)
    write_annotations(output / "validation.txt", validation, model.class_names)
    (output / "environment.json").write_text(json.dumps(_environment(model), indent=2) + "\n")
    save_config(model.config, output, model.class_names)


def _environment(model):
    import importlib.metadata

    packages = ("frcnn", "keras", keras.backend.backend(), "numpy", "opencv-python-headless")
    return {
        "seed": model.config.train.seed,
        "initial_weights": str(model.weights_report or "random").splitlines(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": backend.device_name(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
