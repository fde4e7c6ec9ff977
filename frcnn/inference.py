"""Detection: from a run folder and pictures to `Detections` in the pictures' own pixels."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from frcnn import backend
from frcnn.config import load_pickle, with_overrides
from frcnn.data.batches import pad_images
from frcnn.data.images import read_image, resize_image, resized_size
from frcnn.data.threads import map_in_threads
from frcnn.models.detector import build_detector, detection_model
from frcnn.records import Detections
from frcnn.weight_files import require_plain
from frcnn.weights import describe, load_weights, named_variables, require_finite

_PICTURE = "a (H, W, 3) uint8 RGB array"


def load_detector(run, *, weights="best", overrides=()):
    """Build the detection model of a run and load its weights.

    Args:
        run: folder written by `train`, or a config.pickle that names its weights, ours or keras-frcnn's.
        weights: "best" (by validation mAP) or "last" of a run folder.
        overrides: "key=value" strings on the run's config, e.g. "detect.score_threshold=0.5".

    Returns:
        keras.Model with `config` and `class_names`; see `frcnn.models.detector.detection_model`. `weights_report` is a
        `frcnn.weights.Report` of weights that a config.pickle names, or None.

    Raises:
        ValueError: the folder holds no run of a detector, or weights that do not fit its config or are not finite.
    """
    model, named_weights = build_run(run, "detector", build_detector, weights, overrides)
    if named_weights:
        return _load_named(model, named_weights)
    detector = detection_model(model)
    detector.weights_report = None
    return detector


def build_run(run, kind, build, weights="best", overrides=()):
    """Build the model of a run and load its weights; arguments and errors as in `load_detector`.

    Args:
        kind: "detector" or "classifier".
        build: function of (config, class names) that builds it.

    Returns:
        (model, None), or (model without its weights, the file of weights that its config.pickle names).
    """
    run = Path(run)
    pickle = run if run.is_file() else run / "config.pickle"
    _require(pickle, run)
    config, class_names, named_weights = load_pickle(pickle, kind)
    file = named_weights or pickle.parent / f"{weights}.weights.h5"
    _require(file, run)
    model = build(with_overrides(config, overrides), class_names)
    if named_weights and kind == "detector":  # in any format; a classifier's are Keras's own
        return model, file
    try:
        require_plain(file)
        with warnings.catch_warnings(action="ignore"):  # Keras warns of what it skips before it raises
            model.load_weights(file)
    except Exception as error:  # damaged bytes make Keras and h5py raise anything
        if backend.is_out_of_memory(error):
            raise
        problem = f"{error}; it" if str(error).startswith(str(file)) else file
        classes = f"{len(class_names)} class{'es' * (len(class_names) > 1)}"
        raise ValueError(
            f"{problem} is damaged or does not fit the config.pickle beside it ({classes}, "
            f"ResNet-{config.model.depth}): take both files from one training run, without overrides of model.*, "
            "or train again"
        ) from error
    variables = named_variables(model).items()
    require_finite({name: keras.ops.convert_to_numpy(variable) for name, variable in variables}, file)
    return model, None


def _require(file, run):
    if not file.exists():
        raise ValueError(f"{run} is not a finished run: {file.name} is missing; train one, or name another folder")


def _load_named(model, file):
    """The detection twin of a model, with weights of any suffix, keras-frcnn's among them; all of it or an error."""
    # What the pickle says holds, whatever config.pickle lies beside the weights.
    source = dataclasses.replace(describe(file), class_names=model.class_names, conventions=None)
    report = load_weights(model, source, anchor_ratios=model.config.model.anchor_ratios)
    if report.missing:
        raise ValueError(
            f"{file} lacks {len(report.missing)} of the {len(report.missing + report.loaded)} tensors of the detector "
            f"that its config describes, {report.missing[0]} for one: take both files from one training run"
        )
    detector = detection_model(model)
    detector.weights_report = report
    return detector


def detect(detector, images, *, batch_size=None):
    """Detect objects in pictures.

    The pictures of a batch are padded to one size. Convolutions carry a little of what they see into that padding and
    back, so with mixed sizes a score may depend slightly on a picture's neighbours, as in torchvision; with
    `batch_size=1` it does not.

    Args:
        detector: from `load_detector` or `detection_model`.
        images: one picture or an iterable of them, each a path, an (H, W, 3) uint8 RGB array or a PIL image, taken as
            it stands; or a (B, H, W, 3) array.
        batch_size: pictures in a pass, from 1; None: the config's `detect.batch_size`.

    Returns:
        `Detections` of one picture, list of `Detections` of a list, in its order; boxes in the pixels of the originals.

    Raises:
        ValueError: a picture cannot be read, or something is no picture: another type, shape or dtype; it is named.
        MemoryError: memory ran out; the message says which fields to lower.
    """
    is_batch = isinstance(images, np.ndarray) and images.ndim == 4
    if isinstance(images, str | os.PathLike | np.ndarray | Image.Image) and not is_batch:
        return detect(detector, [images], batch_size=batch_size)[0]
    # A batch is always filled up, with copies: one of more pictures than there are would cost time for nothing.
    images = list(_require_pictures(images))
    batch_size = min(_batch_size(detector, batch_size), max(1, len(images)))
    found = []
    for result in detect_stream(detector, images, batch_size=batch_size):
        if isinstance(result, Exception):
            raise result
        found.append(result)
    return found


def detect_stream(detector, images, *, batch_size=None):
    """Yield, picture by picture and in order, its `Detections`, or the ValueError of a picture that cannot be read.

    Pictures are read and resized in threads, a few batches ahead, so that a folder of any length needs little memory.

    Args:
        detector, batch_size: see `detect`.
        images: iterable of pictures, as for `detect`.
    """
    data, batch_size = detector.config.data, _batch_size(detector, batch_size)
    images = _require_pictures(images)
    prepared = map_in_threads(lambda image: _prepare(image, data), images, data.workers, 2 * batch_size)
    yield from in_batches(prepared, batch_size, lambda batch: _detect_batch(detector, batch, batch_size))


def in_batches(items, batch_size, run):
    """Yield, in the order of the items, each exception among them as it is, and the result of each other.

    Args:
        items: iterable.
        batch_size: items that `run` gets at once; the last batch may be smaller.
        run: function of a list of items that yields as many results.
    """
    batch, waiting = [], []
    for item in items:
        waiting.append(item)
        if not isinstance(item, Exception):
            batch.append(item)
        if len(batch) == batch_size:
            yield from _between(waiting, run(batch))
            batch, waiting = [], []
    yield from _between(waiting, run(batch) if batch else ())


def fingerprint(detector):
    """A digest of all weights of a detector, as hexadecimal text: another training run has another."""
    digest = hashlib.sha256()
    for variable in detector.weights:
        digest.update(np.ascontiguousarray(variable.numpy()))
    return digest.hexdigest()


def _batch_size(detector, batch_size):
    batch_size = detector.config.detect.batch_size if batch_size is None else batch_size
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size ({batch_size!r}) must be a whole number of at least 1")
    return int(batch_size)


def _require_pictures(images):
    """The iterable, unless its items cannot be what is meant."""
    if isinstance(images, str | bytes | os.PathLike | dict) or not isinstance(images, Iterable):
        raise ValueError(f"images is a {type(images).__name__}: expected pictures, each a path or {_PICTURE}")
    return images


def _prepare(image, data):
    """(path, resized image, original size), or the error that says why not."""
    try:
        is_path = isinstance(image, str | os.PathLike)
        path = str(image) if is_path else ""
        pixels = read_image(path, data.bit_depth) if is_path else _checked_array(image)
    except ValueError as error:
        return error
    size = pixels.shape[:2]
    return path, resize_image(pixels, resized_size(*size, data.im_size, data.max_size)), size


def _checked_array(image):
    if isinstance(image, Image.Image) and image.mode.startswith(("I", "F")):
        raise ValueError(f"a PIL image of mode {image.mode} is not read: give its path, or 8 bits a channel")
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"a picture must be a path or {_PICTURE}, not a {type(image).__name__}")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape:
        return image
    cure = ""
    if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[2] not in (1, 3, 4):
        cure = "; bring its channels to the end: image.transpose(1, 2, 0)"
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        cure = "; repeat its grey: np.dstack([image] * 3)"
    elif image.ndim == 3 and image.shape[2] == 4:
        cure = "; drop its alpha: image[..., :3]"
    elif image.dtype.kind == "f" and image.size:
        cure = "; " + ("(image * 255)" if image.max() <= 1 else "image") + ".round().astype(np.uint8) makes it one"
    raise ValueError(f"a picture must be {_PICTURE}, not {image.shape} {image.dtype}{cure}")


def _between(waiting, results):
    """The results, and between them the errors of `waiting`, in order."""
    results = iter(results)
    for item in waiting:
        yield item if isinstance(item, Exception) else next(results)


def _detect_batch(detector, batch, batch_size):
    images = [resized for _, resized, _ in batch]
    images += images[:1] * (batch_size - len(images))  # a full batch always: JAX would compile for each other size
    sizes = np.array([image.shape[:2] for image in images], np.int32)

    def explain():
        data, (height, width) = detector.config.data, sizes.max(axis=0)
        return (
            f" in a pass of {batch_size} pictures of up to {height}x{width}: lower detect.batch_size ({batch_size}), "
            f"data.im_size ({data.im_size}) or data.max_size ({data.max_size})"
        )

    with backend.explaining_out_of_memory(explain):
        outputs = detector.predict_on_batch({"images": pad_images(images), "image_sizes": sizes})
    for index, (path, resized, size) in enumerate(batch):
        boxes, scores, labels = (outputs[name][index] for name in ("boxes", "scores", "labels"))
        found = labels >= 0
        scale = np.array([size[1] / resized.shape[1], size[0] / resized.shape[0]] * 2, np.float32)
        yield Detections(boxes[found] * scale, scores[found], labels[found], detector.class_names, path, size)
