"""Train, score and use a classifier of whole pictures, on the detector's ResNet.

Pictures come from a folder with a folder for each class (or with such folders in train and val or test), a CSV file
with a path,class a line, HDF5 as in the ResNet tutorials, MNIST's idx files, or npz arrays."""

import argparse
import json
import time
from pathlib import Path

from frcnn.cli import add_images_argument, add_override_argument, find_run
from frcnn.cli.detect import find_names, is_picture, say_skipped
from frcnn.cli.evaluate import write_confusion, write_csv
from frcnn.cli.train import (
    RESULTS,
    add_resume_arguments,
    describe_start,
    load_checkpoint,
    say_best,
    train_until_stopped,
)
from frcnn.files import replacing, require_room

EXAMPLE = "frcnn classify train -p train_signs.h5 --config config/signs.yaml --output runs/signs"
EXAMPLES = {
    "train": EXAMPLE,
    "evaluate": "frcnn classify evaluate -p test_signs.h5 --run runs/signs",
    "predict": "frcnn classify predict -p folder/ --run runs/signs --output predictions",
}
TO_SCORE = ("test", "val", "all", "train")  # the part that is taken, in this order
BATCH_SIZE = 32  # unless train.batch_size is set: the detector's 2 is too few for batch normalisation
IM_SIZE = 224  # of pictures in files unless data.im_size is set (He et al. 2015)
MOST_SHOWN = 100  # pictures on a contact sheet
FLIPS = ("horizontal_flip", "vertical_flip", "rotate_90")
AUGMENTATIONS = (*FLIPS, "scale_jitter", "colour_jitter", "random_crop", "blur", "jpeg_noise")


def add_arguments(parser):
    """The arguments of `frcnn classify` and its three actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    for name, (_, summary) in ACTIONS.items():
        style = argparse.RawDescriptionHelpFormatter
        action = actions.add_parser(
            name, help=summary, description=summary, epilog=f"example: {EXAMPLES[name]}", formatter_class=style
        )
        add = action.add_argument
        others = ", or what -p of `frcnn detect` takes" if name == "predict" else ""
        add("-p", "--path", required=True, metavar="PATH", help=f"class folders, CSV, HDF5, idx or npz{others}")
        add_images_argument(add)
        if name == "train":
            add(
                "--validation",
                metavar="PATH",
                help="what to validate on, or a part of PATH (default: its val, or data.val_fraction of the pictures)",
            )
            add(
                "--config",
                metavar="YAML",
                help="a recipe (default: the defaults of `frcnn inspect config`, but "
                f"data.im_size {IM_SIZE}, or the side of arrays, and train.batch_size {BATCH_SIZE})",
            )
            add("--backbone-from", metavar="RUN", help="initial weights, of a detector too: model.weights")
            add("--output", metavar="FOLDER", help="run folder to create (default: runs/<date>-<time>)")
            add_resume_arguments(add, "on the same -p and --validation: its folder knows the config")
        else:
            _add_model_arguments(add, name)
        add_override_argument(action)


def _add_model_arguments(add, action):
    add("--run", metavar="FOLDER", help="run folder that training wrote (default: the newest in runs/)")
    add("--weights", default="best", choices=["best", "last"], help="which weights of it (default: best)")
    add("--model", metavar="FILE", help="instead of a run: a classifier that Keras saved whole, such as ResNet50.h5")
    add("--split", metavar="NAME", help="part of PATH: train, val or test (default: test where there is one)")
    if action == "evaluate":
        add("--top-k", type=int, default=3, metavar="K", help="of the top-k accuracy (default: 3)")
        add("--output", metavar="FOLDER", help="where to write (default: the folder of the run or model)")
    else:
        add("--output", default="predictions", metavar="FOLDER", help="where to write (default: predictions)")


def run(arguments):
    """Do what the action says."""
    return ACTIONS[arguments.action][0](arguments)


# ------------------------------------------------------------------------------------------------------- train


def train(arguments):
    """Train a classifier and write its run folder."""
    from frcnn.config import load_config

    saved = None
    if arguments.resume:
        given = [name for name in ("config", "backbone_from", "output") if getattr(arguments, name)]
        if given:
            raise ValueError(f"--resume takes the config from {arguments.resume}: leave out {', '.join(given)}")
        config, known, *saved = load_checkpoint(arguments, "classifier")
    else:
        flags = [f"model.weights={json.dumps(arguments.backbone_from)}"] if arguments.backbone_from else []
        config, known = load_config(arguments.config, [*arguments.overrides, *flags]), None
    output = Path(arguments.resume or arguments.output or time.strftime("runs/%Y%m%d-%H%M%S"))
    if output.is_file():
        raise ValueError(f"{output} is a file: name a folder for the run")
    require_room(output, RESULTS)
    records, class_names, validation, config = _read(arguments, config, known)

    from frcnn import backend, training
    from frcnn.classification import train_classifier
    from frcnn.models.classifier import build_classifier
    from frcnn.models.detector import dtype_policy

    if not saved:
        training.refuse_finished(output)
    if arguments.deterministic:
        backend.make_deterministic(config.train.seed)
    device, start = backend.start_device(), time.perf_counter()
    model = training.build_model(config, class_names, build_classifier, resumed=bool(saved))
    model.deterministic = arguments.deterministic
    numbers = f"{dtype_policy(config.train.precision)}, {model.config.model.norm} normalisation"
    print(f"{device}, {numbers}, {model.count_params():,} parameters; run folder {output}")
    print(describe_start(model, saved), flush=True)
    settings = {"validation": validation, "output": output, "saved": saved, "command": "classify train -p PATH"}
    history = train_until_stopped(train_classifier, model, records, **settings).history
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(history['loss'])} epochs in {minutes:.1f} minutes, loss {history['loss'][-1]:.3f}")
    say_best("accuracy", history.get("val_accuracy"))
    print(f"use it with: frcnn classify predict -p FOLDER --run {output}")
    return 0


def _read(arguments, config, known):
    """Records to train on, class names, records to validate on, and the config with what was left open."""
    from frcnn.data.batches import split_records
    from frcnn.data.readers.labelled import read_labelled

    parts, class_names = read_labelled(arguments.path, known, arguments.images)
    records = parts.get("train") or parts.get("all")
    if records is None:
        raise ValueError(f"{arguments.path} holds pictures to {' and '.join(parts)} with, none to train on")
    config = _settle(config, records[0])
    if arguments.validation:
        others = (
            parts
            if arguments.validation in parts
            else read_labelled(arguments.validation, class_names, arguments.images)[0]
        )
        validation = _part(others, arguments.validation if others is parts else None, arguments.validation)
    elif "val" in parts:
        validation = parts["val"]
    else:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    print(f"{len(records)} pictures to train on, {len(validation)} to validate on")
    print(f"{len(class_names)} classes: {', '.join(class_names)}")
    unseen = set(range(len(class_names))) - {record.label for record in records}
    if unseen:
        names = ", ".join(class_names[label] for label in sorted(unseen))
        print(f"note: the pictures to train on show no {names}: it cannot be learned")
    used = {name: getattr(config.data, name) for name in AUGMENTATIONS}
    augmentation = [name if value is True else f"{name} {value:g}" for name, value in used.items() if value]
    print(f"brought to {config.data.im_size}x{config.data.im_size}; augmentation: {', '.join(augmentation) or 'none'}")
    return records, class_names, validation, config


def _settle(config, example):
    """The config with a classifier's picture and batch size where none is set."""
    from frcnn.config import with_overrides
    from frcnn.models.classifier import SMALLEST_SIDE

    changes = []
    if "im_size" not in config.data.model_fields_set:
        side = IM_SIZE if example.pixels is None else max(SMALLEST_SIDE, min(example.pixels.shape[:2]))
        changes = [f"data.im_size={side}", f"data.max_size={max(side, config.data.max_size)}"]
    if "batch_size" not in config.train.model_fields_set:
        changes.append(f"train.batch_size={BATCH_SIZE}")
    return with_overrides(config, changes)


# ------------------------------------------------------------------------------------------ evaluate and predict


def evaluate(arguments):
    """Score a classifier; print the table, write everything."""
    import numpy as np

    from frcnn.evaluation import evaluate_classification
    from frcnn.plots import plot_confusion_matrix

    known = None if arguments.model else _run_names(arguments)
    records, names = _labelled(arguments, known)
    classifier, place = _load(arguments, names)
    output = Path(arguments.output or place)
    require_room(output, ("evaluation.json", "confusion_matrix.csv", "confusion_matrix.png"))
    found = []
    for result in _timed(classifier, records):
        if isinstance(result, Exception):
            raise result
        found.append(result)
    labels = [record.label for record in records]
    result = evaluate_classification(labels, np.array(found), classifier.class_names, arguments.top_k)
    print(result.to_table())
    with replacing(output / "evaluation.json") as file:
        file.write(json.dumps(result.to_dict(), indent=2) + "\n")
    write_confusion(output / "confusion_matrix.csv", result.confusion, result.class_names, result.class_names)
    title = f"Confusion matrix, accuracy {result.accuracy:.3f}"
    plot_confusion_matrix(result.confusion, result.class_names, output / "confusion_matrix.png", title)
    print(f"written to {output}: evaluation.json; confusion_matrix, .csv and .png")
    return 0


def predict(arguments):
    """Print the probabilities of one picture; write those of many, and a contact sheet."""
    from frcnn.data.images import SUFFIXES, UNREAD, write_image
    from frcnn.data.readers.labelled import is_labelled
    from frcnn.files import find_files
    from frcnn.records import LabelledImage

    path, output, unlisted = Path(arguments.path), Path(arguments.output), {}
    is_one = path.is_file() and is_picture(path)
    holds_pictures = path.is_dir() and find_files(path, SUFFIXES + UNREAD, output, {})
    if not is_one and not holds_pictures and is_labelled(path):
        records, _ = _labelled(arguments, None)
        names = {record.path: record.path for record in records}
    else:
        where = {"split": arguments.split, "images": arguments.images, "unlisted": unlisted}
        names = {str(path): path.name} if is_one else find_names(path, output, **where)
        records = [LabelledImage(place, 0) for place in names]
    if not is_one:
        require_room(output, ("predictions.csv", "contact_sheet.png"))
    classifier, _ = _load(arguments, None)
    if is_one:
        (found,) = _timed(classifier, records)
        if isinstance(found, Exception):
            raise found
        width = max(map(len, classifier.class_names))
        print(f"{path}: {classifier.class_names[found.argmax()]}")
        print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in zip(classifier.class_names, found)))
        return 0
    shown, broken = [], []
    rows = _rows(classifier, records, names, shown, broken)
    write_csv(output / "predictions.csv", ["file", "class", "probability", *classifier.class_names], rows)
    if shown:
        write_image(output / "contact_sheet.png", _contact_sheet(shown, classifier.config.data.bit_depth))
    print(f"written to {output}: predictions.csv{', contact_sheet.png' if shown else ''}")
    broken += unlisted.values()
    say_skipped("classify", broken)
    return 1 if broken else 0


def _rows(classifier, records, names, shown, broken):
    """Yield the rows of predictions.csv; note what could not be read, and the first pictures with their captions."""
    for found, record in zip(_timed(classifier, records), records):  # this order lets it come to its end
        if isinstance(found, Exception):
            broken.append(found)
            continue
        best = found.argmax()
        name = classifier.class_names[best]
        if len(shown) < MOST_SHOWN:
            shown.append((record, f"{name} {found[best]:.2f}"))
        yield names[record.path], name, *(f"{value:.5f}" for value in (found[best], *found))


def _contact_sheet(shown, bit_depth):
    from frcnn.data.batches import load_picture
    from frcnn.visualize import contact_sheet

    records, captions = zip(*shown)
    return contact_sheet([load_picture(record, bit_depth) for record in records], captions, side=96)


def _timed(classifier, records):
    """The results of `classify_stream`; prints how fast they came. Compiling the model does not count."""
    import numpy as np

    from frcnn.classification import classify_stream

    classifier.predict_on_batch(np.zeros((classifier.config.train.batch_size, *classifier.input_shape[1:]), np.uint8))
    start = time.perf_counter()
    yield from classify_stream(classifier, records)
    seconds = time.perf_counter() - start
    print(f"{len(records)} pictures in {seconds:.1f} s, {len(records) / seconds:.1f}/s")


def _run_names(arguments):
    from frcnn.config import load_run_config

    arguments.run = find_run(arguments.run, "classifier", arguments.weights)
    return load_run_config(arguments.run, "classifier")[1]


def _labelled(arguments, class_names):
    """The records of the part that is asked for, and the class names."""
    from frcnn.data.readers.labelled import read_labelled

    parts, class_names = read_labelled(arguments.path, class_names, arguments.images)
    return _part(parts, arguments.split, arguments.path), class_names


def _part(parts, name, path):
    if name is not None and name not in parts:
        raise ValueError(f"{path} has no part {name!r}, only {', '.join(parts)}")
    return parts[name or next(name for name in TO_SCORE if name in parts)]


def _load(arguments, class_names):
    """The classifier, and the folder that it comes from."""
    if arguments.model and arguments.run:
        raise ValueError("--model and --run name two classifiers: leave one of them out")

    from frcnn import backend
    from frcnn.classification import load_classifier, load_whole_model
    from frcnn.config import load_config

    if arguments.model:
        print(f"{backend.start_device()}; model {arguments.model}", flush=True)
        config = load_config(None, [f"train.batch_size={BATCH_SIZE}", *arguments.overrides])
        return load_whole_model(arguments.model, class_names, config), Path(arguments.model).parent
    place = find_run(arguments.run, "classifier", arguments.weights)
    print(f"{backend.start_device()}; classifier {place}", flush=True)
    classifier = load_classifier(place, weights=arguments.weights, overrides=arguments.overrides)
    return classifier, place if place.is_dir() else place.parent


ACTIONS = {  # name: (function, what it does)
    "train": (train, "train a classifier and write its run folder"),
    "evaluate": (evaluate, "score a classifier: accuracy, top-k, a table of the classes, the confusion matrix"),
    "predict": (predict, "print the probabilities of one picture; write those of many, and a contact sheet"),
}
