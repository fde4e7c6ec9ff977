"""Train a Faster R-CNN on annotated pictures and write a run folder: weights, config, split, curves."""

import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from frcnn.cli import add_annotation_arguments, add_override_argument
from frcnn.files import replacing, require_room

EXAMPLE = "frcnn train -p annotations.txt --config config/resnet50_c4.yaml train.epochs=10"
RESULTS = ("best.weights.h5", "last.weights.h5", "history.csv", "steps.csv", "curves.png", "card.json", "card.html")
# What a run that goes on has in its folder.
SETTINGS = (
    *("path", "parser", "split", "validation", "config", "output", "backbone_from"),
    *("num_rois", "network", "hf", "vf", "rot", "num_epochs", "input_weight_path"),
)


def add_arguments(parser):
    """The arguments of `frcnn train`."""
    add_annotation_arguments(parser, required=False)
    add_resume_arguments(parser.add_argument, "instead of -p: its folder knows pictures, classes and config")
    parser.add_argument(
        "--validation",
        metavar="PATH",
        help="annotations to validate on, or a split of the same tree (default: data.val_fraction of the pictures)",
    )
    parser.add_argument("--config", metavar="YAML", help="a recipe (default: the defaults of `frcnn inspect config`)")
    parser.add_argument("--output", metavar="FOLDER", help="run folder to create (default: runs/<date>-<time>)")
    parser.add_argument(
        "--check",
        type=float,
        nargs="?",
        const=60.0,
        metavar="SECONDS",
        help="only see whether four of the pictures can be learned by heart; exit status 1 if not (default: 60)",
    )
    parser.add_argument("--backbone-from", metavar="RUN", help="initial weights, of a classifier too: model.weights")
    old = parser.add_argument_group("keras-frcnn's flags")
    old.add_argument("-n", "--num_rois", type=int, metavar="N", help="RoIs in the loss, per picture: roi.samples")
    old.add_argument("--network", metavar="NAME", help="resnet18, 34, 50, 101 or 152: model.depth")
    switch = {"action": "store_true", "default": None}
    old.add_argument("--hf", help="mirror left-right: data.horizontal_flip, on unless the config says no", **switch)
    old.add_argument("--vf", help="mirror top-bottom: data.vertical_flip", **switch)
    old.add_argument("--rot", "--rot_90", help="turn by multiples of 90 degrees: data.rotate_90", **switch)
    old.add_argument("--num_epochs", type=int, metavar="N", help="passes over the training pictures: train.epochs")
    old.add_argument("--input_weight_path", metavar="FILE", help="initial weights: model.weights")
    old.add_argument("--output_weight_path", metavar="FILE", help="where to put a copy of the best weights")
    old.add_argument("--config_filename", metavar="FILE", help="where to put a config.pickle that names those weights")
    add_override_argument(parser)


def add_resume_arguments(add, how):
    """The arguments of interrupted and of repeatable trainings; `add` adds one."""
    add("--resume", metavar="RUN", help=f"go on with an interrupted run, {how}")
    add("--deterministic", action="store_true", help="the same run again is the same to the last bit; may be slower")


def run(arguments):
    """Read, train, say where everything is."""
    if arguments.check is not None:
        return _check(arguments)
    output, config, records, class_names, validation, saved = (_resume if arguments.resume else _begin)(arguments)

    from frcnn import backend, memory, training
    from frcnn.models.detector import dtype_policy

    if not saved:
        training.refuse_finished(output)
    if arguments.deterministic:
        backend.make_deterministic(config.train.seed)
    device, start = backend.start_device(), time.perf_counter()
    model = training.build_model(config, class_names, resumed=bool(saved))
    model.deterministic = arguments.deterministic
    numbers = f"{dtype_policy(config.train.precision)}, {model.config.model.norm} normalisation"
    print(f"{device}, {numbers}; run folder {output}")
    print(describe_start(model, saved))
    print(memory.describe_need(model, records, validation), flush=True)
    settings = {"validation": validation, "output": output, "saved": saved}
    try:
        history = train_until_stopped(training.train_model, model, records, command="train", **settings)
    except (KeyboardInterrupt, FloatingPointError, MemoryError):
        _copy_out(arguments, output)  # what the epochs before gave is not lost
        raise
    _say_how_it_went(history.history, time.perf_counter() - start)
    copied = _copy_out(arguments, output)
    print(f"detect with: python test_frcnn.py -p FOLDER --{'config_filename' if copied else 'run'} {copied or output}")
    return 0


def describe_start(model, saved):
    """What a training begins with, as a sentence; `saved`: arrays and header of a checkpoint, or None."""
    from frcnn.checkpoints import is_finished
    from frcnn.run_folder import versions

    if not saved:
        return model.weights_report or "random initial weights"
    header, now = saved[1], versions()
    changed = [
        f"{name} {old} (now {now.get(name)})" for name, old in header["versions"].items() if old != now.get(name)
    ]
    if changed:
        print(f"note: the run began with {', '.join(changed)}: from here on it differs from an undisturbed one")
    if is_finished(header["rows"], header["monitor"], model.config.train):
        return f"this run is finished: {len(header['rows'])} epochs are done"
    return f"resumed at epoch {header['epoch'] + 1}, step {header['step'] + 1}"


def train_until_stopped(train, model, records, *, output, command, **settings):
    """Call `train` with its arguments; signals end it in time, and then the command that goes on with it is shown."""
    from frcnn.checkpoints import checkpoint_files
    from frcnn.stopping import Interrupted, stopping

    def say(sentence):
        print(f"\nfrcnn {command.partition(' -')[0]}: {sentence}", file=sys.stderr, flush=True)

    verbose = 1 if sys.stdout.isatty() else 2
    resume = f"go on with: frcnn {command} --resume {shlex.quote(str(output))}"
    try:
        with stopping(say, resume) as stop:
            return train(model, records, output=output, verbose=verbose, stop=stop, **settings)
    except Interrupted:
        if checkpoint_files(output):
            print(resume, flush=True)
        raise


def load_checkpoint(arguments, kind):
    """Config, class names, arrays and header of the run that `arguments.resume` names; says what is odd.

    Raises:
        ValueError: there is none, or the config or the classes are others now.
    """
    from frcnn.checkpoints import newest_checkpoint, require_same_run
    from frcnn.config import load_run_config, with_overrides

    run = Path(arguments.resume)
    if not (run / "config.pickle").exists():
        raise ValueError(f"{run} is no run folder that could be resumed: it holds no config.pickle")
    config, class_names = load_run_config(run, kind)
    config = with_overrides(config, arguments.overrides)
    arrays, header, damaged = newest_checkpoint(run)
    for sentence in damaged:
        print(f"note: {sentence}")
    require_same_run(run, header, config, class_names)
    arguments.deterministic = arguments.deterministic or header["deterministic"]
    return config, class_names, arrays, header


def _begin(arguments):
    """Run folder, config, records to train on, class names, records to validate on, and None, of a new run."""
    from frcnn.config import load_config

    if not arguments.path:
        raise ValueError("name annotated pictures with -p, or an interrupted run with --resume")
    config = load_config(arguments.config, [*arguments.overrides, *_flag_overrides(arguments)])
    output = Path(arguments.output or time.strftime("runs/%Y%m%d-%H%M%S"))
    _check_places(arguments, output)
    records, class_names, validation = _read(arguments, config)
    return output, config, records, class_names, validation, None


def _resume(arguments):
    """What `_begin` gives, of a run that goes on, and the arrays and the header of its checkpoint."""
    from frcnn.checkpoints import with_flags
    from frcnn.data.readers import read_records

    run = Path(arguments.resume)
    given = [name for name in SETTINGS if getattr(arguments, name) not in (None, "auto")]
    if given:
        raise ValueError(f"--resume takes pictures, classes and config from {run}: leave out {', '.join(given)}")
    _check_places(arguments, run)
    config, class_names, arrays, header = load_checkpoint(arguments, "detector")
    parts = []
    for path in (run / "train.txt", run / "validation.txt"):
        is_empty = path.stat().st_size == 0  # nothing to validate on: no annotation file otherwise
        parts.append([] if is_empty else read_records(path, "simple", class_names, images=arguments.images)[0])
    return run, config, parts[0], class_names, with_flags(parts[1], arrays), (arrays, header)


def _check(arguments):
    """Learn four pictures by heart; say how it goes, and what fails."""
    from frcnn.config import load_config

    if not arguments.path:
        raise ValueError("--check: name annotated pictures with -p")
    config = load_config(arguments.config, [*arguments.overrides, *_flag_overrides(arguments)])
    if not 0 < arguments.check < float("inf"):
        raise ValueError(f"--check {arguments.check:g}: give a number of seconds above 0")
    records, class_names, _ = _read(arguments, config)

    from frcnn import backend, check, training

    backend.start_device()
    if missed := check.uncovered(records, config, class_names):
        print(f"check failed at the anchors: {missed}")
        return 1
    chosen = check.choose_pictures(records, config.train.seed)
    model, history = training.build_model(config, class_names), []
    shown = sorted({class_names[label] for record in chosen for label in record.labels})
    boxes = sum(len(record.boxes) for record in chosen)
    print(
        f"check: {len(chosen)} pictures, {boxes} boxes of {', '.join(shown)}, {model.config.model.norm} normalisation"
    )
    print(f"after compiling, at most {arguments.check:g} s of training; nothing is written", flush=True)
    for progress in check.learn_by_heart(model, chosen, arguments.check):
        print(
            f"{progress.seconds:4.0f} s  step {progress.steps:4}  loss {progress.loss:.3f}  proposals cover "
            f"{progress.recall:.0%}  AP50 {progress.mean_ap:.2f}",
            flush=True,
        )
        history.append(progress)
    if history[-1].mean_ap >= check.GOAL:
        print(f"check passed: anchors, RPN and head learn these {len(chosen)} pictures; now it is data and time")
        return 0
    print(f"check failed: {check.diagnose(history, arguments.check)}")
    return 1


def _flag_overrides(arguments):
    """keras-frcnn's flags as overrides, so that they are checked like any field."""
    from frcnn.legacy import network_depth

    flags = {
        "roi.samples": arguments.num_rois,
        "model.depth": arguments.network and network_depth(arguments.network),
        "model.weights": arguments.backbone_from or arguments.input_weight_path,
        "data.horizontal_flip": arguments.hf,
        "data.vertical_flip": arguments.vf,
        "data.rotate_90": arguments.rot,
        "train.epochs": arguments.num_epochs,
    }
    return [f"{field}={json.dumps(value)}" for field, value in flags.items() if value is not None]


def _check_places(arguments, output):
    """Before hours of training, not after them."""
    if output.is_file():
        raise ValueError(f"{output} is a file: name a folder for the run")
    require_room(output, RESULTS)
    for file in map(Path, filter(None, (arguments.config_filename, arguments.output_weight_path))):
        if file.is_dir():
            raise ValueError(f"{file} is a folder: name a file in it")
        file.parent.mkdir(parents=True, exist_ok=True)
        require_room(file.parent)


def _read(arguments, config):
    """The training records, the class names, the validation records; says how many there are and what is odd."""
    from frcnn.data.batches import split_records
    from frcnn.data.readers import match_split, read_records, require_boxes, split_names

    where = {"outside": arguments.outside, "images": arguments.images}
    records, class_names = read_records(arguments.path, arguments.parser, split=arguments.split, **where)
    require_boxes(records, arguments.path)
    boxes = sum(len(record.boxes) for record in records)
    print(f"{len(records)} pictures, {boxes} boxes, {len(class_names)} classes: {', '.join(class_names)}")
    if arguments.validation:
        names = split_names(arguments.path, arguments.parser)
        own_split = match_split(arguments.validation, names) in names
        place = (arguments.path, arguments.validation) if own_split else (arguments.validation, None)
        validation, _ = read_records(place[0], arguments.parser, class_names, place[1], **where)
        both = {record.path for record in records} & {record.path for record in validation}
        if both:
            print(f"note: {len(both)} of the {len(validation)} validation pictures are trained on too")
    else:
        records, validation = split_records(records, config.data.val_fraction, config.train.seed)
    shown = {label for record in records for label in record.labels.tolist()}
    if not shown:
        raise ValueError(
            "all pictures with objects are held out for validation: annotate more, or lower data.val_fraction"
        )
    unseen = [name for label, name in enumerate(class_names) if label not in shown]
    _describe_epoch(records, class_names, config.data.repeat_threshold)
    if unseen:
        print(f"note: the {len(records)} pictures to train on show no {', '.join(unseen)}: it cannot be learned")
    return records, class_names, validation


def _describe_epoch(records, class_names, threshold):
    """Say how many pictures are background only, and what is repeated how often."""
    from frcnn.data.batches import repeat_factors

    background = sum(not len(record.boxes) for record in records)
    if background:
        print(f"{background} of the {len(records)} pictures to train on show no object: background only")
    if threshold:
        of_picture, of_class = repeat_factors(records, threshold)
        raised = sorted((label, factor) for label, factor in of_class.items() if factor > 1)
        rare = ", ".join(f"{class_names[label]} x {factor:.2f}" for label, factor in raised) or "none"
        print(f"rare classes: {rare}; an epoch takes {of_picture.sum():.0f} pictures of {len(records)}")


def _copy_out(arguments, output):
    """Put the best weights, and a config that names them, where keras-frcnn's flags say; return the config's place."""
    from frcnn.config import load_pickle, save_pickle

    best = output / "best.weights.h5"
    if not best.exists():  # stopped within the first epoch
        return None
    weights = Path(arguments.output_weight_path or best)
    if arguments.output_weight_path:
        with replacing(weights, binary=True) as file, best.open("rb") as source:
            shutil.copyfileobj(source, file)
    if arguments.config_filename:
        config, class_names, _ = load_pickle(output)
        save_pickle(config, arguments.config_filename, class_names, weights)
    return arguments.config_filename


def _say_how_it_went(history, seconds):
    print(f"{len(history['loss'])} epochs in {seconds / 60:.1f} minutes, loss {history['loss'][-1]:.3f}")
    say_best("mAP", history.get("val_map"))


def say_best(name, scores):
    """Say which epoch has the best validation score; `scores`: a number for each epoch, or None."""
    from frcnn.checkpoints import best_epoch, describe_no_best

    if scores:
        best = best_epoch([{name: score} for score in scores], name)
        text = f"best validation {name} {scores[best]:.3f} after epoch {best + 1}, last {scores[-1]:.3f}"
        print(describe_no_best(scores) or text)
