"""Checkpoints of a training: whole on the disk or not there, checked when they are read; and one training a folder.

A file holds the line that names its format, the length of a JSON text (8 bytes, little-endian), that text with the
header and the layout of the arrays, their bytes, and the SHA-256 of all before it. What a checkpoint holds is the truth
about a run: the other files of the run folder are made from it.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from frcnn.files import locked, open_regular, reading, remove_drafts, replacing

FORMAT = 1
FLAGS = ("difficult", "crowd")
KEPT = 2  # the one before is taken where the newest is damaged
SAFE_FIELDS = ("data.workers", "detect.batch_size", "train.checkpoint_minutes", "train.patience")
_MAGIC = b"frcnn checkpoint, format "
_DIGEST_BYTES = 32


class DamagedCheckpoint(ValueError):
    """A file that is no whole checkpoint."""


def checkpoint_files(run):
    """The checkpoints of a run folder, the newest last, by what their names say: clocks may be set back."""
    files = Path(run, "checkpoints").glob("epoch-*-step-*.ckpt")
    return sorted(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def write_checkpoint(run, arrays, header):
    """Write a checkpoint, then delete all but the newest two.

    Args:
        run: the run folder.
        arrays: {name: numpy array}.
        header: dict that JSON can hold; `epoch` and `step` name the file.

    Returns:
        Path of the file.

    Raises:
        OSError: it could not be written; the older ones are still there.
    """
    path = Path(run, "checkpoints", f"epoch-{header['epoch']:05d}-step-{header['step']:07d}.ckpt")
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    layout = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    text = json.dumps({"header": header, "arrays": layout}).encode()
    digest = hashlib.sha256()
    with replacing(path, binary=True, durable=True) as file:
        for part in (_MAGIC + b"%d\n" % FORMAT, len(text).to_bytes(8, "little"), text, *arrays.values()):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
    for old in checkpoint_files(run)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path):
    """Read a checkpoint back.

    Returns:
        {name: numpy array}, read-only; the header.

    Raises:
        DamagedCheckpoint: the file cannot be read, or is not what was written: cut off, or changed.
        ValueError: it has another format.
    """
    with reading(path, "a checkpoint", DamagedCheckpoint):
        with open_regular(path) as file:
            data = memoryview(file.read())
        return _parse(path, data)


def _parse(path, data):
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if bytes(data[: len(_MAGIC)]) != _MAGIC or hashlib.sha256(content).digest() != digest:
        raise DamagedCheckpoint(f"{path} is damaged or only half written: its checksum is wrong")
    line, start = bytes(data[:80]).partition(b"\n")[0], data.obj.index(b"\n") + 1
    if int(line[len(_MAGIC) :]) != FORMAT:
        raise ValueError(
            f"{path} is of {line.decode().partition(', ')[2]}, this frcnn reads format {FORMAT}: "
            "resume with the version of frcnn that card.json names"
        )
    end = start + 8 + int.from_bytes(data[start : start + 8], "little")
    text = json.loads(bytes(data[start + 8 : end]))
    arrays = {}
    for name, dtype, shape in text["arrays"]:
        arrays[name] = np.frombuffer(content, dtype, math.prod(shape), end).reshape(shape)
        end += arrays[name].nbytes
    return arrays, text["header"]


def newest_checkpoint(run):
    """Read the newest checkpoint of a run that is whole.

    Returns:
        arrays and header as from `read_checkpoint`; list of sentences about newer ones that are damaged.

    Raises:
        ValueError: there is none, or it has another format.
    """
    damaged = []
    for path in reversed(checkpoint_files(run)):
        try:
            return *read_checkpoint(path), damaged
        except DamagedCheckpoint as error:
            damaged.append(f"{error}; the one before is taken")
    reason = f" that can be read ({damaged[0].rpartition(';')[0]})" if damaged else ""
    raise ValueError(f"{run} holds no checkpoint{reason}: nothing can be resumed; start again with another --output")


def require_same_run(run, header, config, class_names):
    """Raise ValueError where a run cannot go on with this config or these classes; says what differs."""
    if list(class_names) != header["class_names"]:
        names = [", ".join(group) for group in (header["class_names"], class_names)]
        raise ValueError(
            f"{run} was trained on the classes {names[0]}, but its config.pickle names {names[1]}: put the "
            "config.pickle of that training back"
        )
    old, new = _flat(header["config"]), _flat(config.model_dump(mode="json"))
    changed = [name for name in new if old.get(name) != new[name] and name not in SAFE_FIELDS]
    if changed:
        fields = ", ".join(f"{name} {json.dumps(old.get(name))} (now {json.dumps(new[name])})" for name in changed)
        raise ValueError(
            f"{run} was trained with {fields}: only {', '.join(SAFE_FIELDS)} may change when a run is resumed. Leave "
            f"the others as they were, or start another run from its weights: model.weights={run}"
        )


def _flat(config):
    return {f"{section}.{name}": value for section, fields in config.items() for name, value in fields.items()}


def best_epoch(rows, monitor):
    """The first epoch with the best score; the last of all where no score is a finite number.

    Args:
        rows: a dict of numbers for each epoch, at least one.
        monitor: "loss", the lowest of which is the best, or the name of a score, of which it is the highest.
    """
    sign = -1 if monitor == "loss" else 1
    scores = {epoch: sign * row[monitor] for epoch, row in enumerate(rows) if math.isfinite(row[monitor])}
    return max(scores, key=scores.get) if scores else len(rows) - 1


def describe_no_best(scores):
    """A sentence where none of the epochs' scores, numbers or None, is finite, and so none is the best; else ""."""
    if any(score is not None and math.isfinite(score) for score in scores):
        return ""
    return (
        "no epoch has a validation score (do its pictures show boxes?): best.weights.h5 holds the last epoch's weights"
    )


def is_finished(rows, monitor, settings):
    """Whether a run with these epochs behind it is at its end, or out of patience; `settings`: `TrainConfig`."""
    out_of_patience = rows and 0 < settings.patience < len(rows) - best_epoch(rows, monitor)
    return len(rows) >= settings.epochs or bool(out_of_patience)


def fingerprint(records, with_folders=False):
    """SHA-256 in hex digits of what is trained on: names, sizes, boxes, labels; of pictures in arrays the pixels.

    Args:
        records: list of ImageRecord or LabelledImage.
        with_folders: as in older checkpoints: a run whose pictures were moved could not go on.
    """
    digest = hashlib.sha256()
    for record in records:
        values = [getattr(record, name, None) for name in ("size", "boxes", "labels", "pixels")]
        name = os.path.abspath(record.path) if with_folders else os.path.basename(record.path).casefold()
        for value in (name, *values):
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
            digest.update(b"\n")
    return digest.hexdigest()


def flags_of(records):
    """{"difficult": ..., "crowd": ...}, (boxes of all records,) bool: what train.txt's format cannot hold."""
    empty = np.zeros(0, bool)
    return {name: np.concatenate([empty, *(getattr(record, name) for record in records)]) for name in FLAGS}


def with_flags(records, flags):
    """The records with what `flags_of` took from them; ValueError where the boxes are not as many."""
    counts = [len(record.boxes) for record in records]
    if sum(counts) != len(flags[FLAGS[0]]):
        raise ValueError(f"validation.txt has {sum(counts)} boxes, the checkpoint {len(flags[FLAGS[0]])}: put it back")
    parts = [np.split(flags[name], np.cumsum(counts)[:-1]) for name in FLAGS] if records else ([], [])
    return [replace(record, difficult=d, crowd=c) for record, d, c in zip(records, *parts)]


@contextlib.contextmanager
def lock_run(run):
    """Keep other trainings out of a run folder, and clear away what a killed one left half written.

    Raises:
        ValueError: another process trains there.
    """
    place = Path(run, "checkpoints")
    with locked(place / "lock", f"{run} is being trained in", "stop that one, or choose another folder"):
        remove_drafts(run, place)
        yield
