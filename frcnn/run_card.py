"""The card of a run: what it was made from, how it went and what it finds, as card.json and one static page."""

import contextlib
import hashlib
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections import Counter
from datetime import timedelta

import keras
import numpy as np
import pandas as pd

from frcnn import backend, machine, memory
from frcnn.checkpoints import describe_no_best
from frcnn.config import changed_fields, describe_config
from frcnn.data.images import read_image
from frcnn.files import replacing
from frcnn.html_page import MOST_LETTERS, as_text, draw_on, embedded, facts, figure, missing_figure, page, shrink, table
from frcnn.run_folder import versions
from frcnn.visualize import DRAWN_SCORE

_PARTS = ("train", "validation")
_SAMPLES = 6  # validation pictures on the page
_RUNNING = "running when this was written; if it is not at work any more, it was interrupted"


class RunCard(keras.callbacks.Callback):
    """Writes card.json and card.html into a run folder when the block `written` starts and ends, and after each epoch.

    Must stand after what writes history.csv and curves.png. A card that cannot be written is a warning, never an end.

    Args:
        output: the run folder, a Path.
        model: a model with `config` and `class_names`.
        records, validation: lists of records.
        steps: in an epoch.
        found: list that holds the `Detections` of `validation` once an epoch has measured them; others fill it.
        monitor: the column of history.csv whose highest value is that of the best epoch; of "loss" the lowest.
    """

    def __init__(self, output, model, records, validation, steps, found=(), monitor="loss"):
        super().__init__()
        self.set_model(model)
        self.output, self.records, self.validation, self.steps = output, records, validation, steps
        self.found, self.monitor, self._failed = found, monitor, False
        self._facts, self._parts, self._warnings, self._small, self._start = {}, [], [], {}, time.monotonic()

    @contextlib.contextmanager
    def written(self):
        """The block that trains; an error that ends it is named on the card and goes on."""
        self._write(_RUNNING)
        try:
            yield
        except BaseException as error:
            self._write(f"stopped: {str(error) or type(error).__name__}")
            raise
        self._write(None)

    def on_epoch_end(self, epoch, logs=None):
        self._write(_RUNNING)

    def _write(self, state):
        try:
            if not self._parts:
                self._facts = describe_run(self.model, self.records, self.validation, self.output)
                self._continue()
            self._parts[-1]["seconds"] = round(time.monotonic() - self._start, 1)
            findings = [*self._warnings, *getattr(self.model, "findings", ())]
            card = self._facts | {"parts": self._parts, "warnings": findings}
            card |= describe_progress(read_history(self.output / "history.csv"), self.monitor, self.steps)
            done, planned = card["epochs"], self._facts["config"]["train"]["epochs"]
            card["state"] = state or ("finished" if done == planned else f"stopped after {done} of {planned} epochs")
            card["written"] = _now()
            with replacing(self.output / "card.json") as file:
                file.write(json.dumps(card, indent=2) + "\n")
            with replacing(self.output / "card.html") as file:
                file.write(to_html(card, self.model.config, self.output / "curves.png", self._figures()))
            self._failed = False
        except Exception as error:  # whatever it is: a card is not worth the training that it is about
            if not self._failed:
                warnings.warn(f"{self.output}: the run card is not written ({error})", stacklevel=1)
            self._failed = True

    def _continue(self):
        """Take over what the card of the parts before says, if this run goes on where another stopped."""
        try:
            before = json.loads((self.output / "card.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # there is none yet, or it is damaged
            before = {}
        before = before if isinstance(before, dict) else {}
        self._parts = [*before.get("parts", []), {"started": _now(), "seconds": 0}]
        self._warnings = before.get("warnings", [])

    def _figures(self):
        if not self.found:
            return ""
        with_objects = [index for index, record in enumerate(self.validation) if len(record.boxes)]
        indices = with_objects or range(len(self.validation))
        chosen = indices[:: max(1, len(indices) // _SAMPLES)][:_SAMPLES]
        return "".join(self._figure(self.validation[index], self.found[index]) for index in chosen)

    def _figure(self, record, found):
        try:  # read once: what the picture becomes later does not matter
            small = self._small.get(record.path)
            if small is None:
                small = self._small[record.path] = shrink(read_image(record.path, self.model.config.data.bit_depth))
        except ValueError as error:
            return missing_figure(error)
        sure, best = found.above(DRAWN_SCORE), f", best {found.scores.max():.2f}" if len(found) else ""
        truth = draw_on(small, record.size, record.boxes, record.labels, found.class_names)
        drawn = draw_on(small, record.size, sure.boxes, sure.labels, found.class_names, sure.scores)
        caption = f"{record.path}: {len(record.boxes)} annotated; {len(sure)} found by {DRAWN_SCORE} or more{best}"
        return figure(np.hstack([truth, np.full((len(small), 8, 3), 255, np.uint8), drawn]), caption)


def describe_run(model, records, validation, output):
    """What is known before the first step, as plain values.

    Args:
        model: with `config` and `class_names`.
        records, validation: lists of `ImageRecord`, or of `LabelledImage`.
        output: the run folder, a Path; a detector's holds train.txt and validation.txt.
    """
    digests, classes, parts = set(), [{"name": name} for name in model.class_names], {}
    for part, chosen in {"train": records, "validation": validation}.items():
        own = [record_digest(record, model.class_names) for record in chosen]
        boxes = Counter(label for record in chosen for label in record.labels.tolist())
        pictures = Counter(label for record in chosen for label in set(record.labels.tolist()))
        for label, entry in enumerate(classes):
            entry[part] = {"boxes": boxes[label], "pictures": pictures[label]}
        file = f"{part}.txt" if (output / f"{part}.txt").exists() else None
        parts[part] = {"pictures": len(chosen), "boxes": sum(boxes.values()), "sha256": _digest(own), "file": file}
        digests |= set(own)
    return {
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "seed": model.config.train.seed,
        "initial_weights": str(getattr(model, "weights_report", None) or "random").splitlines(),
        "versions": {"python": platform.python_version()} | versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": machine.processor_name(),
            "cores": machine.processor_cores(),
            "memory": memory.describe(memory.total()),
            "device": backend.device_name(),
        },
        # Of all pictures the same for another split; of the parts another for another split or order.
        "data": {"sha256": _digest(sorted(digests)), **parts, "classes": classes},
        "changed": changed_fields(model.config),
        "config": model.config.model_dump(mode="json"),
    }


def record_digest(record, class_names):
    """A digest of what a record says: path, size, boxes, names of their classes, flags; of an array its pixels."""
    digest = hashlib.sha256(repr((record.path, [class_names[label] for label in record.labels])).encode())
    for name in ("size", "boxes", "difficult", "crowd", "pixels"):
        if getattr(record, name, None) is not None:
            digest.update(np.asarray(getattr(record, name)).tobytes())
    return digest.hexdigest()


def _digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def describe_progress(rows, monitor, steps):
    """How far a run is, as plain values.

    Args:
        rows: of history.csv, list of dicts; None where a number is not finite.
        monitor: see `RunCard`.
        steps: in an epoch.
    """
    rows = [row | {"epoch": row["epoch"] + 1} for row in rows]
    known, best = [row for row in rows if row.get(monitor) is not None], min if monitor == "loss" else max
    speeds = [row["pictures_per_second"] for row in rows]
    return {
        "epochs": len(rows),
        "steps": len(rows) * steps,
        "pictures_per_second": sum(speeds) / len(speeds) if speeds else None,
        "last_epoch": rows[-1] if rows else None,
        "best_epoch": best(known, key=lambda row: row[monitor]) if known else None,
        "no_best_epoch": describe_no_best([row.get(monitor) for row in rows]) if rows else "",
    }


def read_history(path):
    """The rows of a history.csv, as far as it is written."""
    if not path.exists() or not path.stat().st_size:
        return []
    return json.loads(pd.read_csv(path).to_json(orient="records"))  # what is not finite becomes null


def to_html(card, config, curves, figures):
    """The page of a card, see `frcnn.html_page`.

    Args:
        card: what card.json holds.
        config: `frcnn.Config` of the run.
        curves: PNG file with the curves, a Path; left out where there is none.
        figures: HTML of the sample pictures.
    """
    speed, seconds = card["pictures_per_second"], sum(part["seconds"] for part in card["parts"])
    rate = f", {speed:.2f} pictures and {speed / config.train.batch_size:.2f} steps a second" if speed else ""
    progress = {
        "state": card["state"],
        "epochs": f"{card['epochs']} of {config.train.epochs}, {card['steps']} steps{rate}",
        "time": f"{timedelta(seconds=round(seconds))}, written {card['written']}",
        "started": "; again ".join(part["started"] for part in card["parts"]),
        "command": card["command"],
        "in": card["folder"],
        "seed": card["seed"],
        "initial weights": "; ".join(line.strip() for line in card["initial_weights"]),
    }
    warned = [*card["warnings"], *filter(None, [card["no_best_epoch"]])]
    notes = "".join(f"<li class=warning>{as_text(text)}</li>" for text in warned)
    whole = "\n".join(as_text(line) for line in describe_config(config).splitlines())
    parts = [
        f"<h1>{as_text(curves.parent.name)}</h1><ul>{notes}</ul>{facts(progress)}",
        f"<h2>Epochs</h2>{table(_metrics(card))}" if card["epochs"] else "",
        embedded(curves.read_bytes(), "png") if curves.exists() else "",
        f"<h2>Validation pictures: annotated; found after the last epoch</h2>{figures}" if figures else "",
        f"<h2>Data</h2>{_data(card['data'])}",
        f"<h2>Config: what differs from the defaults</h2>{facts(card['changed'])}",
        f"<details><summary>all of it</summary><pre>{whole}</pre></details>",
        f"<h2>Machine</h2>{facts(card['machine'])}{facts(card['versions'])}",
    ]
    return page(f"{curves.parent.name}: {card['state']}", parts)


def _data(data):
    digests = {"all": f"sha256 {data['sha256']}"}
    for part in _PARTS:
        file = f" ({data[part]['file']})" if data[part]["file"] else ""
        counts = f"{data[part]['pictures']} pictures, {data[part]['boxes']} boxes"
        digests[part + file] = f"{counts}, sha256 {data[part]['sha256']}"
    titles = ("class", *(f"{what}, {part}" for part in _PARTS for what in ("boxes", "pictures")))
    classes = [
        (entry["name"][:MOST_LETTERS], *(count for part in _PARTS for count in entry[part].values()))
        for entry in data["classes"]
    ]
    return facts(digests) + table([titles, *classes])


def _metrics(card):
    """The numbers of the last and the best epoch, as a table."""
    epochs = [card[name] for name in ("last_epoch", "best_epoch") if card[name]]
    titles = ("", *(f"{name} epoch, {epoch['epoch']}" for name, epoch in zip(("last", "best"), epochs)))
    shown = [{name: "-" if value is None else f"{value:.4g}" for name, value in epoch.items()} for epoch in epochs]
    return [titles, *((name, *(epoch[name] for epoch in shown)) for name in shown[0] if name != "epoch")]


def _now():
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
