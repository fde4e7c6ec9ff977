"""The run folder while a training runs: its checkpoints, and what is made from them."""

import csv
import importlib.metadata
import io
import math
import time
import warnings

import keras
import numpy as np

from frcnn.checkpoints import best_epoch, is_finished, write_checkpoint
from frcnn.files import replacing
from frcnn.plots import plot_history
from frcnn.stopping import Stop

READ_SECONDS = 1.0  # between two looks at what a GPU has computed


class RunFolder(keras.callbacks.Callback):
    """Holds what a run has come to, and writes it into the run folder.

    Checkpoints are written every `train.checkpoint_minutes`, before the last step of an epoch that is validated (so a
    run that ends in validation has that step to do again, and `fit` ends the epoch as ever), and at each epoch's end.
    There history.csv, steps.csv, curves.png, best.weights.h5 and last.weights.h5 follow. What cannot be written is
    tried again with the next checkpoint; the training goes on.

    Must stand behind whatever adds to the logs.

    Attributes:
        epoch, step: of the next step.
        rows: the logs of each epoch that is done.
        losses: of each step done, the mean loss of its epoch so far, as Keras shows it; NaN for a step that changed
            nothing, see `frcnn.models.guarded`. The newest are read within `READ_SECONDS`.
        error: the OSError of the last attempt to write, or None.
    """

    def __init__(self, output, model, steps, *, data, describe, monitor="loss", validated=True, keep=None, stop=None):
        """
        Args:
            output: the run folder, a Path.
            model: the compiled training model.
            steps: in an epoch.
            data: list of the `frcnn.checkpoints.fingerprint`s that a checkpoint may have, its own first.
            describe: function that writes the files which describe the run.
            monitor: what decides which weights are the best, see `best_epoch`.
            validated: whether a validation follows each epoch.
            keep: further {name: array} for the checkpoints.
            stop: `frcnn.stopping.Stop`, or None.
        """
        super().__init__()
        self.output, self.steps, self.data, self.monitor = output, steps, data, monitor
        self.describe, self.validated, self.keep, self.stop = describe, validated, keep or {}, stop or Stop()
        self.epoch, self.step, self.rows, self.losses, self.error = 0, 0, [], [], None
        self._trained = model  # `self.model` puts JAX's state back into the model, which costs time in each step
        self._metrics, self._best, self._written = None, None, time.monotonic()
        self._unread, self._read = [], time.monotonic()

    # ------------------------------------------------------------------------------------------------- resuming

    def start(self, saved=None):
        """Write the files of a new run; or give model and optimizer the state of `read_checkpoint`'s (arrays, header).

        Raises:
            ValueError: the pictures are others than those of the checkpoint.
            OSError: a new run's files cannot be written.
        """
        self.set_model(self._trained)
        self._written = time.monotonic()
        if saved is None:
            return self.describe()
        arrays, header = saved
        if header["data"] not in self.data:
            raise ValueError(
                f"{self.output} was trained on other pictures, sizes or boxes than its train.txt and validation.txt "
                "give now: put these files and their pictures back as they were, or start another run"
            )
        self._trained.optimizer.build(self._trained.trainable_variables)
        for name, variables in _variables(self._trained).items():
            if name != "metrics":
                _assign(variables, arrays, name)
        self.epoch, self.step, self.rows = header["epoch"], header["step"], header["rows"]
        self.losses, self._metrics = arrays["losses"].tolist(), arrays if self.step else None
        if self.rows and not self.step:  # the run may have ended before it wrote them
            self._write_epoch()

    def set_params(self, params):
        """Let Keras's progress bar count to the end of the run, also in a first `fit` that ends with its epoch."""
        if "epochs" in params:
            params["epochs"] = self._trained.config.train.epochs
        super().set_params(params)

    def history(self):
        """{name: values of all epochs}, as Keras's `History.history`."""
        return {name: [row[name] for row in self.rows] for name in self.rows[0]}

    # --------------------------------------------------------------------------------------------- what Keras calls

    def on_epoch_begin(self, epoch, logs=None):
        # Keras has just reset them; an older checkpoint, without `skipped_steps`, leaves them so.
        if self._metrics and f"metrics/{len(self.model.metrics_variables) - 1}" in self._metrics:
            _assign(self.model.metrics_variables, self._metrics, "metrics")
            self._metrics = None
        self.stop.awaited = True

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self._unread.append((logs["loss"], logs["skipped_steps"]))
        if time.monotonic() - self._read > READ_SECONDS:
            self._read_losses()
        if self.step == self.steps:  # the epoch's end is near; before it lies a checkpoint
            return
        minutes = (time.monotonic() - self._written) / 60
        is_due = minutes >= self._trained.config.train.checkpoint_minutes
        if is_due or self.stop.signal or (self.validated and self.step == self.steps - 1):
            self._tolerate(self._write_checkpoint, self._write_best)
        self.stop.check()

    def _read_losses(self):
        """Not in every step: a GPU would be waited for."""
        skipped = np.isnan(self.losses[self.epoch * self.steps :]).sum()
        for loss, count in self._unread:
            self.losses.append(float(loss) if float(count) == skipped else math.nan)
            skipped = float(count)
        self._unread, self._read = [], time.monotonic()

    def on_test_begin(self, logs=None):
        self.stop.awaited = False
        self.stop.check()

    def on_epoch_end(self, epoch, logs=None):
        self.stop.awaited = True
        self._read_losses()
        self.rows.append({name: float(value) for name, value in logs.items()})
        self.epoch, self.step = epoch + 1, 0
        self._write_epoch(self._write_checkpoint)
        if is_finished(self.rows, self.monitor, self.model.config.train):
            self.model.stop_training = True
        else:
            self.stop.check()

    # ---------------------------------------------------------------------------------------------------- writing

    def _tolerate(self, *writers):
        """Call functions that write; of what cannot be written warn once, until it can be written again."""
        error = None
        for write in writers:
            try:
                if not (self.output / "config.pickle").exists():  # the folder was deleted
                    self.describe()
                write()
            except OSError as found:
                error = found
        if error and not self.error:
            warnings.warn(
                f"{self.output} cannot be written ({error.strerror or error}): training goes on without, and tries "
                "again with the next checkpoint",
                stacklevel=2,
            )
        self.error, self._written = error, time.monotonic()

    def _write_epoch(self, *first):
        """Write what an epoch that has just ended gives; `first` goes first."""
        if best_epoch(self.rows, self.monitor) == len(self.rows) - 1:
            self._best = _weights(self.model)
        self._tolerate(*first, self._write_tables, self._write_best, self._write_last)

    def _write_checkpoint(self):
        self._read_losses()
        arrays = {"losses": np.array(self.losses), **self.keep}
        for name, variables in _variables(self.model).items():
            arrays |= {f"{name}/{index}": _array(variable) for index, variable in enumerate(variables)}
        header = {"epoch": self.epoch, "step": self.step, "rows": self.rows, "monitor": self.monitor}
        header |= {"class_names": list(self._trained.class_names), "data": self.data[0], "versions": versions()}
        header |= {"deterministic": getattr(self._trained, "deterministic", False)}
        write_checkpoint(self.output, arrays, {**header, "config": self._trained.config.model_dump(mode="json")})

    def _write_tables(self):
        _write_csv(self.output / "history.csv", [{"epoch": epoch, **row} for epoch, row in enumerate(self.rows)])
        _write_csv(self.output / "steps.csv", _step_rows(self.losses, self.steps))
        plot_history(self.output / "history.csv", self.output / "curves.png")

    def _write_last(self):
        save_weights(self.model, self.output / "last.weights.h5")

    def _write_best(self):
        """Write the weights of the best epoch, if they are not written yet; it may lie back, with no room then."""
        if self._best is None:
            return
        now = _weights(self.model)
        self.model.set_weights(self._best)
        try:
            save_weights(self.model, self.output / "best.weights.h5")
        finally:
            self.model.set_weights(now)
        self._best = None


def versions():
    """{package: version} of what the numbers of a run hang on."""
    packages = ("frcnn", "keras", keras.backend.backend(), "numpy", "opencv-python-headless")
    return {name: importlib.metadata.version(name) for name in packages}


class _Memory(io.BytesIO):
    """A file of weights in memory, by a name that Keras takes."""

    def __str__(self):
        return "memory.weights.h5"


def save_weights(model, path):
    """Write the weights of a model to a .weights.h5 file that takes the place of `path` once it is whole.

    By way of memory: HDF5 that runs out of disk cannot close its file any more, and ends the process in the end.

    Raises:
        OSError: it could not be written.
    """
    memory = _Memory()
    model.save_weights(memory)
    with replacing(path, binary=True, durable=True) as file:
        file.write(memory.getbuffer())


def _variables(model):
    """All that changes in training, in groups; the order within each is that of the model's layers."""
    return {
        "weights": [*model.trainable_variables, *model.non_trainable_variables],
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def _weights(model):
    return [np.array(values) for values in model.get_weights()]  # PyTorch's would change in place


def _array(variable):
    return keras.ops.convert_to_numpy(variable.value)


def _assign(variables, arrays, name):
    for index, variable in enumerate(variables):
        variable.assign(arrays[f"{name}/{index}"])


def _step_rows(losses, steps):
    """A row for each step: its own loss, from the means that Keras keeps, and the mean of the epoch so far.

    Both are empty for a step that changed nothing.
    """
    for index, mean in enumerate(losses):
        epoch, step = divmod(index, steps)
        if step == 0:
            total = count = 0
        row = {"epoch": epoch, "step": step, "loss": "", "mean_loss": ""}
        if not math.isnan(mean):
            own = mean * (count + 1) - total
            total, count = mean * (count + 1), count + 1
            row |= {"loss": f"{own:.5g}", "mean_loss": mean}
        yield row


def _write_csv(path, rows):
    rows = list(rows)
    with replacing(path) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
