"""How much memory a training takes, estimated before it starts, and how much there is."""

import contextlib
import os
from math import prod
from pathlib import Path

import keras

from frcnn import backend
from frcnn.data.batches import padded_size
from frcnn.data.images import resized_size

FIELDS = ("train.batch_size", "data.im_size", "data.max_size", "roi.samples", "rpn.train_pre_nms", "detect.batch_size")
_KEPT = ("ReLU", "MaxPooling2D", "ZeroPadding2D", "Conv2D", "Dense", "AddUpsampled")  # outputs that gradients need
_SLOTS = {"sgd": 1, "adam": 2}  # values that the optimizer keeps of each weight
# Measured with TensorFlow on Linux: the process before there is a model, and what compiling a layer's graph takes.
_BASE, _PER_LAYER = 0.80e9, 8e6


def estimate(model, records, validation=()):
    """The most memory that training and the validation after each epoch take, in bytes, the process's own included.

    What a step keeps for its gradients, the largest that it holds for a moment, weights, gradients and the optimizer's
    values; or what a detection holds, whichever is more. The README compares it with measurements.

    Args:
        model: a detector or a classifier as `build_model` returns it.
        records, validation: lists of the records to train on and to validate on.
    """
    config = model.config
    trainable = 4 * sum(prod(weight.shape) for weight in model.trainable_weights)
    kept = layers = 0
    for part, shape in _parts(model, records):
        kept += _kept_bytes(part, shape)
        layers += len(part.layers)
    fixed = _BASE + _PER_LAYER * layers + 4 * model.count_params() + _SLOTS[config.train.optimizer] * trainable
    return fixed + kept


def _parts(model, records):
    """Yield (model inside, shape of its input) of everything that a training step runs."""
    config, batch = model.config, model.config.train.batch_size
    if model.name == "classifier":
        yield model.get_layer("resnet"), (batch, config.data.im_size, config.data.im_size, 3)
        return
    shape = (batch, *_largest_size(records, config.data, 1 + config.data.scale_jitter), 3)
    backbone, rpn, head = (model.get_layer(name) for name in ("backbone", "rpn", "roi_head"))
    yield backbone, shape
    yield from ((rpn, one_map) for one_map in _maps(backbone, shape))
    yield head, (batch * config.roi.samples, *head.input_shape[1:])


def _maps(backbone, shape):
    shapes = backbone.compute_output_shape(shape)
    return shapes if isinstance(shapes, list) else [shapes]


def _largest_size(records, data, factor):
    """(height, width) of the largest padded picture that a batch of these records may hold, in pixels."""
    limits = round(data.im_size * factor), round(data.max_size * factor)
    sizes = {record.size for record in records}
    for_portrait = ([size for size in sizes if (size[0] > size[1]) is portrait] for portrait in (False, True))
    padded = ([padded_size(resized_size(*size, *limits)) for size in group] for group in for_portrait if group)
    return max((tuple(map(max, zip(*group))) for group in padded), key=prod)  # the two never share a batch


def _kept_bytes(part, shape):
    """What the layers of a functional model keep for their gradients, for an input of this shape."""
    shapes = keras.Model(part.input, [layer.output for layer in part.layers]).compute_output_shape(shape)
    total, is_trained = 0, False
    for layer, output in zip(part.layers, shapes):
        is_trained = is_trained or bool(layer.trainable_weights)  # no gradient goes further back
        if is_trained and (type(layer).__name__ in _KEPT or getattr(layer, "norm", None) in ("batch", "group")):
            total += prod(output) * (2 if layer.compute_dtype.endswith("16") else 4)
    return total


@contextlib.contextmanager
def told_in_a_sentence(model, records, validation):
    """Raise MemoryError with what to lower, where memory runs out in the block; arguments as in `estimate`."""
    try:
        yield
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        need = describe(estimate(model, records, validation))
        raise MemoryError(f"memory ran out: this training takes about {need}; lower {_fields(model.config)}") from error


def describe_need(model, records, validation):
    """What `estimate` says, of what is free, and what to lower where that is less; arguments as there."""
    need, free = estimate(model, records, validation), free_memory()
    if free is None:
        return f"memory: about {describe(need)}"
    line = f"memory: about {describe(need)} of {describe(free)} free"
    return line if need <= free else f"{line}\nnote: it may not be enough; lower {_fields(model.config)}"


def _fields(config):
    values = (f"{field} ({config.model_dump()[field.split('.')[0]][field.split('.')[1]]})" for field in FIELDS)
    *others, last = values
    return f"{', '.join(others)} or {last}"


def describe(count):
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB"


def free_memory():
    """Bytes that this process may come to hold where Keras computes, its own among them; None where nothing tells."""
    if not backend.device_name().endswith("CPU"):
        return backend.free_gpu_memory()
    try:
        free = _kilobytes("/proc/meminfo", "MemAvailable") + _kilobytes("/proc/self/status", "VmRSS")
        return min([free, *_group_limits()])
    except OSError:  # not Linux
        return None


def _kilobytes(file, entry):
    line = next(line for line in Path(file).read_text().splitlines() if line.startswith(entry))
    return 1024 * int(line.split()[1])


def _group_limits():
    """The limits, in bytes, of the control groups that hold this process, of version 2 and 1: those of containers."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        is_version_2 = not kinds
        if not is_version_2 and "memory" not in kinds.split(","):
            continue
        root, name = ("", "memory.max") if is_version_2 else ("memory", "memory.limit_in_bytes")
        for folder in (Path(path), *Path(path).parents):
            file = Path("/sys/fs/cgroup", root, str(folder).lstrip("/"), name)
            if file.exists() and (limit := file.read_text().strip()) != "max":
                yield int(limit)


def total():
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
