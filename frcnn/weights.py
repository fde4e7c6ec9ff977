"""Weights from other programs and other runs: checked against the model, loaded, reported."""

import os
import socket
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from frcnn.config import load_config, save_config
from frcnn.models.detector import build_detector, conventions_name
from frcnn.models.resnet import BOTTLENECK_DEPTH, CONVENTIONS, Conventions
from frcnn.published import PUBLISHED, fetch
from frcnn.weight_files import Description, describe, listed

KERAS_FRCNN_RATIOS = (1.0, 2.0, 0.5)  # height / width, in the order of keras-frcnn's anchors
DOWNLOAD_TIMEOUT = 20  # seconds without a byte


@dataclass(frozen=True)
class Report:
    """What `load_weights` did, in names of tensors; `str()` says it in a few lines.

    Attributes:
        source: the `Description`.
        loaded, missing: of the model: found in the source, and not.
        unexpected: of the source: without a place in the model.
        reinitialised: classes whose predictor rows keep their initial values.
        shared: where there are such, the classes whose rows come from the source.
    """

    source: Description
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialised: tuple[str, ...]
    shared: tuple[str, ...] = ()

    def __str__(self):
        lists = {
            "not in it, left as they were": self.missing,
            "in it, without a place here": self.unexpected,
            "classes that it does not know, their predictor rows left as they were": self.reinitialised,
            "classes that it knows, their predictor rows taken": self.shared,
        }
        first = f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors from {self.source}"
        return "\n".join([first, *(f"  {text} ({len(x)}): {listed(x)}" for text, x in lists.items() if x)])


def load_weights(model, source, *, reinitialise=False, anchor_ratios=KERAS_FRCNN_RATIOS) -> Report:
    """Load weights by name into a detector or a classifier.

    Args:
        model: `FasterRCNN`, its detection twin, or another model of their layers with a `config`; or `build_resnet`'s.
        source: as in `describe`, or a `Description`.
        reinitialise: what to do with a detector of other classes: False: refuse it; True: copy the predictor rows of
            the classes that both have, and leave the others as they are. Of a classifier: whether the last layer may
            stay as it is where its number of classes differs.
        anchor_ratios: height / width of the anchors of a keras-frcnn file, in its order.

    Raises:
        ValueError: the source cannot be read, is for another network, holds nothing for this model, or a tensor has
            another shape or a value that is not finite; nothing was changed then.
    """
    source = source if isinstance(source, Description) else describe(source)
    variables = named_variables(model)
    _check_network(source, model.spec if hasattr(model, "spec") else model.config.model)
    tensors, reinitialised = dict(source.tensors), ()
    if reinitialise:  # the last layer of a classifier of other classes stays as it is
        others = source.class_names not in (None, getattr(model, "class_names", None))
        for name in {"fc/kernel", "fc/bias"} & variables.keys() & tensors.keys():
            if others or tensors[name].shape != tuple(variables[name].shape):
                del tensors[name]
    if source.kind == "keras_frcnn" and "rpn_out_class/kernel" in variables:
        _reorder_anchors(tensors, source, model.config.model, anchor_ratios)
    if source.num_classes and "class_logits/bias" in variables:
        reinitialised = _match_classes(tensors, source, variables, model.class_names, reinitialise)
    loaded = tuple(name for name in variables if name in tensors)
    _check_tensors(tensors, source, variables, loaded)
    for name in loaded:
        variables[name].assign(tensors[name].astype(np.float32))
    missing = tuple(name for name in variables if name not in tensors)
    unexpected = source.unexpected + tuple(name for name in tensors if name not in variables)
    shared = tuple(name for name in model.class_names if name not in reinitialised) if reinitialised else ()
    return Report(source, loaded, missing, unexpected, reinitialised, shared)


def prepare(config):
    """Read the initial weights that a config asks for and settle what hangs on them, before the model is built.

    Args:
        config: `frcnn.Config`.

    Returns:
        (config, `Description` or None): `model.conventions` and `model.norm` are no longer "auto". Where ImageNet's
        weights cannot be downloaded a warning says so, and `model.weights` becomes "none".

    Raises:
        ValueError: a file cannot be read or downloaded, or is for another network.
    """
    settings, source = config.model, None
    if settings.weights == "imagenet":
        source = _download_imagenet(settings.depth)
    elif settings.weights in PUBLISHED:
        source = describe(fetch(settings.weights))
    elif settings.weights != "none":
        source = describe(settings.weights)
    conventions = source.conventions if source and settings.conventions == "auto" else settings.conventions
    if conventions is None:
        raise ValueError(f"{source}: keep its config.pickle beside it, or set model.conventions")
    norm = source.norm if source else "batch"
    changes = {
        "weights": settings.weights if source else "none",
        "conventions": conventions_name(conventions),
        "norm": norm if settings.norm == "auto" else settings.norm,
    }
    config = config.model_copy(update={"model": settings.model_copy(update=changes)})
    if source:
        _check_network(source, config.model)
    return config, source


def convert(source, output, class_names=None, overrides=()):
    """Make a run folder of a detector of torchvision's: `load_detector` and `model.weights` take it at once.

    Its config is what torchvision runs the detector with: FPN, 800 pixels, preprocessing, frozen normalisation with the
    epsilon of the weights.

    Args:
        source: as in `describe`, or "coco" or "coco-v2", which are downloaded.
        output: the folder; it must not exist, or be empty.
        class_names: K strings in the order of its labels, without background; None: COCO's where they are.
        overrides: "section.field=value" strings on its config.

    Returns:
        `Report`.

    Raises:
        ValueError: it cannot be read or downloaded, is no such detector, or its classes are unknown; nothing is made.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: name another folder, or delete it")
    source = describe(fetch(source) if isinstance(source, str) and source in PUBLISHED else source)
    if source.kind != "torchvision" or source.architecture is None:
        raise ValueError(f"{source} is no detector of torchvision's: train from it with model.weights instead")
    names = tuple(class_names or source.class_names or ())
    if len(names) != source.num_classes:
        raise ValueError(
            f"{source}: name its {source.num_classes} classes in the order of its labels, not {len(names)}"
        )
    own = {
        "architecture": source.architecture,
        "depth": source.depth,
        "conventions": source.conventions,
        "norm": "frozen",
    }
    settings = [f"model.{name}={value}" for name, value in own.items()]
    config = load_config(None, [*settings, "data.im_size=800", "data.max_size=1333", *overrides])
    model = build_detector(config, names)
    report = load_weights(model, source)
    if report.missing:
        raise ValueError(f"{source} lacks {listed(report.missing)}: it is not whole")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as draft:
        save_config(config, Path(draft, output.name), names)
        model.save_weights(Path(draft, output.name, "best.weights.h5"))
        os.replace(Path(draft, output.name), output)
    return report


def flat_layers(model):
    """Yield the layers of a model, those of the models in it instead of these."""
    for layer in model.layers:
        yield from flat_layers(layer) if isinstance(layer, keras.Model) else [layer]


def named_variables(model):
    """{"layer/weight": variable} of a model and the models in it."""
    return {f"{layer.name}/{weight.name}": weight for layer in flat_layers(model) for weight in layer.weights}


def require_finite(tensors, source):
    """Raise ValueError where a value of {name: array} is NaN or infinite."""
    for name, values in tensors.items():
        with np.errstate(over="ignore"):  # float64 beyond float32 is meant
            count = np.count_nonzero(~np.isfinite(values.astype(np.float32)))
        if count:
            raise ValueError(
                f"{source}: {count} of the {values.size} values of {name} are not finite: take weights of an earlier "
                "epoch, or train again"
            )


def _download_imagenet(depth):
    """keras.applications's own download, described; None, with a warning, where there is no network."""
    make = getattr(keras.applications, f"ResNet{depth}", None)
    if make is None:
        raise ValueError(
            f"model.weights=imagenet: keras.applications has no ResNet-{depth}; download torchvision's resnet{depth} "
            "and set model.weights to the file"
        )
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # Keras sets none: a silent network would hold the run for minutes
    try:
        network = make(weights="imagenet", include_top=False)
    except Exception as error:  # a bare Exception is what Keras raises for whatever goes wrong with a download
        warnings.warn(
            f"model.weights=imagenet: the download failed ({str(error).splitlines()[0]}): training starts from random "
            "weights with batch normalisation; set model.weights to a local file to start from that",
            stacklevel=3,
        )
        return None
    finally:
        socket.setdefaulttimeout(timeout)
    weights = {f"{layer.name}/{weight.name}": weight for layer in network.layers for weight in layer.weights}
    return describe({name: keras.ops.convert_to_numpy(weight) for name, weight in weights.items()})


# ------------------------------------------------------------------------------------------------------- checks


def _check_network(source, network):
    """That the source fits a detector's `ModelConfig` or a classifier's `ResNetSpec`."""
    architecture = getattr(network, "architecture", None)
    if None not in (architecture, source.architecture) and source.architecture != architecture:
        raise ValueError(
            f"{source} does not fit a {architecture} detector: set model.architecture={source.architecture}, or take "
            "other weights"
        )
    if source.depth != network.depth:
        name = f"ResNet-{network.depth}" if network.depth else "ResNet of blocks of its own"
        raise ValueError(f"{source} does not fit a {name}: set model.depth={source.depth}, or take other weights")
    built = network.conventions
    if not isinstance(built, Conventions):
        if source.conventions == "keras_v2":
            raise ValueError(f"{source}: no config describes a ResNet of style v2: take weights of another style")
        built = CONVENTIONS[conventions_name(built)]
    needed, built = vars(CONVENTIONS.get(source.conventions, built)), vars(built)
    # The blocks of ResNet-18 and -34 have but one place for the stride: both styles are the same network.
    differing = [
        f"{key} {needed[key]} (not {built[key]})"
        for key in needed
        if needed[key] != built[key] and (key != "style" or source.depth >= BOTTLENECK_DEPTH)
    ]
    if differing:
        raise ValueError(f"{source} needs {', '.join(differing)}: set model.conventions={source.conventions}")


def _check_tensors(tensors, source, variables, loaded):
    if not loaded:
        raise ValueError(f"{source} holds nothing for this model, whose tensors are {listed(variables)}")
    for name in loaded:
        found, expected = tensors[name].shape, tuple(variables[name].shape)
        if found != expected:
            raise ValueError(
                f"{source}: {name} has shape {found}, the model expects {expected}: give model.* the source's settings"
            )
    require_finite({name: tensors[name] for name in loaded}, source)
    for layer in sorted({name.partition("/")[0] for name in loaded}):
        held, asked = ({name for name in names if name.startswith(f"{layer}/")} for names in (tensors, variables))
        if held != asked:
            raise ValueError(
                f"{source}: {', '.join(sorted(held ^ asked))} is not in both the file and the model: check model.norm "
                "and model.conventions"
            )


def _reorder_anchors(tensors, source, settings, ratios):
    """From "for each size, each ratio", in their order of ratios, to "for each ratio, each size", in ours."""
    own, theirs, sizes = np.array(settings.anchor_ratios), np.array(ratios), len(settings.anchor_sizes)
    if own.shape != theirs.shape or not np.allclose(np.sort(own), np.sort(theirs), rtol=1e-3):
        raise ValueError(f"{source} has anchors of height / width {tuple(ratios)}: set model.anchor_ratios to them")
    order = np.abs(own[:, None] - theirs).argmin(axis=1)
    for layer, width in (("rpn_out_class", 1), ("rpn_out_regress", 4)):
        for name in {f"{layer}/kernel", f"{layer}/bias"} & set(tensors):
            if tensors[name].shape[-1] == sizes * len(own) * width:  # else its shape is reported
                cells = tensors[name].reshape(*tensors[name].shape[:-1], sizes, len(own), width)
                tensors[name] = cells[..., order, :].swapaxes(-3, -2).reshape(tensors[name].shape)


def _match_classes(tensors, source, variables, class_names, reinitialise):
    """Put the predictor rows into the order of the model's classes; return the classes that have none."""
    known = source.class_names or (class_names if source.num_classes == len(class_names) else ())
    unknown = tuple(name for name in class_names if name not in known)
    if not reinitialise and (unknown or source.num_classes != len(class_names)):
        raise ValueError(f"{source}: its classes ({listed(known)}) are not those of the model ({listed(class_names)})")
    pairs = [(row, known.index(name)) for row, name in enumerate(class_names) if name in known]
    for layer, width in (("class_logits", 1), ("box_predictor", 4)):
        background = [(len(class_names), source.num_classes)] if layer == "class_logits" else []
        rows, their_rows = np.array(pairs + background, int).reshape(-1, 2).T
        for name in {f"{layer}/kernel", f"{layer}/bias"} & set(tensors):
            own, theirs = keras.ops.convert_to_numpy(variables[name]).copy(), tensors[name]
            if own.shape[:-1] == theirs.shape[:-1]:  # else its shape is reported
                wide = (*own.shape[:-1], -1, width)
                own.reshape(wide)[..., rows, :] = theirs.reshape(wide)[..., their_rows, :]
                tensors[name] = own
    return unknown
