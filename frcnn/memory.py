"""How much memory a training takes, estimated before it starts, and how much there is."""

import os
from math import prod
from pathlib import Path

import keras
from keras import layers

from frcnn import backend
from frcnn.data.batches import padded_size, slot_count
from frcnn.data.images import resized_size
from frcnn.models.fpn import AddUpsampled
from frcnn.ops import winograd

FIELDS = ("train.batch_size", "data.im_size", "data.max_size", "roi.samples", "rpn.train_pre_nms", "detect.batch_size")
# Layers whose outputs are kept for the gradients; a normalisation by the batch keeps the convolution's, too.
_KEPT = (layers.ReLU, layers.MaxPooling2D, layers.ZeroPadding2D, layers.Conv2D, layers.Dense, AddUpsampled)
_SLOTS = {"sgd": 1, "adam": 2}  # values that the optimizer keeps of each weight
# Measured with TensorFlow on Linux: the process without a model, the graph of a layer, how much more than the
# sum of its tensors the allocator holds.
_BASE, _PER_LAYER, _WASTE = 1.04e9, 2.2e6, 1.12
_OVERLAPS = 6  # matrices of anchors and boxes that their IoU is made from
_MAPPED = 300_000_000  # address space that a training comes to map and not to hold, in bytes
_TILES = 3  # of a map's tiles: their cells, their values at the points and the products of these


def estimate(model, records, validation=()):
    """The most memory that training and the validation after each epoch take, in bytes, the process's own included.

    What a step keeps for its gradients and the most that it holds for a moment, weights, gradients and the optimizer's
    values; or what a detection holds, whichever is more. The README compares it with measurements.

    Args:
        model: a detector or a classifier as `build_model` returns it.
        records, validation: lists of the records to train on and to validate on.
    """
    config, trainable = model.config, 4 * sum(prod(weight.shape) for weight in model.trainable_weights)
    fixed = _BASE + 4 * model.count_params() + _SLOTS[config.train.optimizer] * trainable
    if model.name == "classifier":
        shape = (config.train.batch_size, config.data.im_size, config.data.im_size, 3)
        outputs = _outputs(model.get_layer("resnet"), shape)
        return fixed + _PER_LAYER * len(outputs) + trainable + _WASTE * (_kept(outputs) + _columns(outputs))
    size = _largest_size(records, config.data, 1 + config.data.scale_jitter)
    maps, trunk, rpn = _trunk(model, (config.train.batch_size, *size, 3))
    rois = config.train.batch_size * config.roi.samples
    head = _head(model, rois)
    fixed += _PER_LAYER * len(trunk + rpn + head)
    pooling = _pooling_bytes(model, rois, maps)
    anchors = sum(prod(shape) for layer, shape in rpn if layer.name == "rpn_logits")
    slots = slot_count(max(len(record.boxes) for record in records))
    # The head's share and kernels; the pooling, when these are gone; the RPN, which keeps nothing; overlaps.
    moment = max(_kept(head) + _columns(trunk), pooling, _tiles(rpn), _OVERLAPS * 4 * anchors * slots)
    training = fixed + trainable + _WASTE * (_kept(trunk) + moment)
    if not validation:
        return training
    batch = min(config.detect.batch_size, len(validation))
    maps, trunk, rpn = _trunk(model, (batch, *_largest_size(validation, config.data, 1), 3))
    rois = batch * config.rpn.test_post_nms
    moment = max(_pooling_bytes(model, rois, maps), _tiles(trunk + rpn)) + _tiles(_head(model, rois))
    return max(training, fixed + _WASTE * (moment + sum(4 * prod(shape) for shape in maps)))


def _trunk(model, shape):
    """Feature maps' shapes of images of a shape (B, H, W, 3); (layer, shape) of the backbone's outputs, the RPN's."""
    backbone, rpn = model.get_layer("backbone"), model.get_layer("rpn")
    maps = backbone.compute_output_shape(shape)
    maps = maps if isinstance(maps, list) else [maps]
    return maps, _outputs(backbone, shape), [pair for one_map in maps for pair in _outputs(rpn, one_map)]


def _head(model, rois):
    """(layer, shape) of all outputs of the RoI head for so many RoIs."""
    head = model.get_layer("roi_head")
    return _outputs(head, (rois, *head.input_shape[1:]))


def _outputs(part, shape):
    """(layer, shape of its output) of all layers of a functional model, for an input of this shape."""
    shapes = keras.Model(part.input, [layer.output for layer in part.layers]).compute_output_shape(shape)
    return list(zip(part.layers, shapes))


def _largest_size(records, data, factor):
    """(height, width) of the largest padded picture that a batch of these records may hold, in pixels."""
    limits = round(data.im_size * factor), round(data.max_size * factor)
    sizes = {record.size for record in records}
    for_portrait = ([size for size in sizes if (size[0] > size[1]) is portrait] for portrait in (False, True))
    padded = ([padded_size(resized_size(*size, *limits)) for size in group] for group in for_portrait if group)
    return max((tuple(map(max, zip(*group))) for group in padded), key=prod)  # the two never share a batch


def _kept(outputs):
    """Bytes that layers keep for their gradients."""
    total, is_trained = 0, False
    for layer, shape in outputs:
        is_trained = is_trained or bool(layer.trainable_weights)  # no gradient goes further back
        if is_trained and (isinstance(layer, _KEPT) or getattr(layer, "norm", None) in ("batch", "group")):
            total += prod(shape) * (2 if layer.compute_dtype.endswith("16") else 4)
        total += is_trained * _at_points(layer, shape)
    return total


def _columns(outputs):
    """Bytes of the largest matrix of a picture's patches, from which the gradient of a kernel is made, or of tiles."""
    return max(
        _tiles([(layer, shape)]) or 4 * prod(layer.kernel.shape[:3]) * prod(shape[1:3])
        for layer, shape in outputs
        if len(shape) == 4 and hasattr(layer, "kernel") and layer.kernel.shape[0] > 1
    )


def _tiles(outputs):
    return _TILES * max(_at_points(layer, shape) for layer, shape in outputs)


def _at_points(layer, shape):
    """Bytes of a map's values at Winograd's points, where `frcnn.ops.winograd` convolves it for the layer, else 0."""
    if getattr(layer, "strides", 0) not in (1, (1, 1)) or not hasattr(layer, "kernel"):
        return 0
    is_so = backend.convolves_by_tiles(shape, layer.kernel.shape, layer.compute_dtype)
    return is_so * 4 * 36 * winograd.tile_count(shape) * layer.kernel.shape[2]


def _pooling_bytes(model, rois, maps):
    """What RoIAlign holds: the RoIs' cells, a matrix of about as many weights; the maps as one, and their gradients."""
    return 4 * (2 * rois * prod(model.get_layer("roi_head").input_shape[1:]) + 2 * sum(map(prod, maps)))


def told_in_a_sentence(model, records, validation):
    """Context that raises MemoryError with what to lower, where memory runs out in it; arguments as in `estimate`."""

    def explain():
        need = describe(estimate(model, records, validation))
        return f": this training takes about {need}; lower {_fields(model)}"

    return backend.explaining_out_of_memory(explain)


def describe_need(model, records, validation):
    """What `estimate` says, of what is free, and what to lower where that is less; arguments as there.

    Raises:
        MemoryError: `ulimit -v` leaves less: there TensorFlow crashes without a word.
    """
    need, free = estimate(model, records, validation), free_memory()
    if free is None:
        return f"memory: about {describe(need)}"
    if need > min(_address_space(), default=need):
        raise MemoryError(
            f"this training takes about {describe(need)}, and the shell's limit (ulimit -v) leaves {describe(free)}: "
            f"raise that limit, or lower {_fields(model)}"
        )
    line = f"memory: about {describe(need)} of {describe(free)} free"
    return line if need <= free else f"{line}\nnote: it may not be enough; lower {_fields(model)}"


def _fields(model):
    names = (name.split(".") for name in (FIELDS[:2] if model.name == "classifier" else FIELDS))
    values = model.config.model_dump()
    *others, last = (f"{section}.{field} ({values[section][field]})" for section, field in names)
    return f"{', '.join(others)} or {last}"


def describe(count):
    """Bytes for people; None is unknown."""
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def free_memory(root="/"):
    """Bytes that this process may come to hold where Keras computes, its own among them; None where nothing tells.

    Args:
        root: where /proc and /sys lie.
    """
    if not backend.device_name().endswith("CPU"):
        return backend.free_gpu_memory()
    try:
        free = _kilobytes(root, "proc/meminfo", "MemAvailable") + _kilobytes(root, "proc/self/status", "VmRSS")
        return min([free, *_group_limits(root), *_address_space(root)])
    except (OSError, StopIteration):  # not Linux, or not all of it
        return None


def _kilobytes(root, file, entry):
    line = next(line for line in Path(root, file).read_text().splitlines() if line.startswith(entry))
    return 1024 * int(line.split()[1])


def _address_space(root="/"):
    """What `ulimit -v` leaves this process, in bytes, with what it holds already; none without such a limit."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    size, held = (_kilobytes(root, "proc/self/status", entry) for entry in ("VmSize", "VmRSS"))
    return [max(limit - size - _MAPPED, 0) + held]


def _group_limits(root):
    """The limits, in bytes, of the control groups that hold this process, of version 2 and 1: those of containers."""
    for line in Path(root, "proc/self/cgroup").read_text().splitlines():
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        place, name = ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
        for folder in (Path(group), *Path(group).parents):  # a group has the limits of those around it, too
            file = Path(root, "sys/fs/cgroup", place, *folder.parts[1:], name)
            if file.exists() and (limit := file.read_text().strip()) != "max":
                yield int(limit)


def total():
    """Bytes of memory that the machine has; None where nothing tells."""
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
