"""Files of weights: read without executing anything, recognised by their names, put into ours.

Each source has one table here, from its names to `layer/variable` as in `res2a_branch2a/kernel`.
"""

import io
import json
import math
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from frcnn import backend
from frcnn.arrays import open_hdf5, read_npz, require_size
from frcnn.config import load_pickle
from frcnn.files import open_regular, reading
from frcnn.models.detector import conventions_name
from frcnn.models.resnet import BLOCKS, BOTTLENECK_DEPTH, block_letter
from frcnn.published import COCO_NAMES, is_file_of

MOST_NAMES = 6  # of a list in a message


@dataclass(frozen=True)
class Description:
    """What a source of weights is.

    Attributes:
        source: its path, or "mapping".
        kind: "frcnn", "torchvision" (a ResNet, or an FPN detector on one), "keras" (keras.applications today),
            "keras_v2" (its ResNetV2), "keras2016", "keras_frcnn" or "tutorial".
        depth: of its ResNet.
        conventions: a key of `frcnn.models.resnet.CONVENTIONS`; None: weights of ours without their config.pickle.
        norm: "frozen" where it has stored statistics, else "group".
        num_classes: K of a detector; None: a backbone only, or a classifier.
        class_names: K strings, or None where unknown.
        tensors: {our name: array as stored, convolutions (height, width, in, out)}.
        unexpected: its names that have none of ours.
    """

    source: str
    kind: str
    depth: int
    conventions: str | None
    norm: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    tensors: dict[str, np.ndarray] = field(repr=False)
    unexpected: tuple[str, ...] = field(repr=False)

    @property
    def architecture(self):
        """ "c4", "fpn" or "fpn_v2", as `ModelConfig` has it; None of a backbone."""
        if "fpn_inner2/kernel" in self.tensors:
            return "fpn_v2" if "fpn_inner2/gamma" in self.tensors else "fpn"
        return None if self.num_classes is None else "c4"

    def __str__(self):
        names = "" if self.class_names else ", names unknown"
        what = "backbone" if self.num_classes is None else f"detector of {self.num_classes} classes{names}"
        if self.num_classes is None and self.class_names:
            what = f"classifier of {len(self.class_names)} classes"
        if self.architecture in ("fpn", "fpn_v2"):
            what = f"{self.architecture} {what}"
        return f"{self.source} ({self.kind}, ResNet-{self.depth} {what})"


def describe(source) -> Description:
    """Read a source of weights and say what it is, from its content alone.

    Args:
        source: a path: HDF5 (Keras's layouts, keras-frcnn's, ours), .keras, .npz, .safetensors, .pth (needs PyTorch),
            or a run folder, of which best.weights.h5 is taken; or a {name: array} mapping.

    Raises:
        ValueError: it cannot be read, or its names are of none of the known kinds.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    with reading(path or "mapping", "weights"):
        if path is None:
            return _recognise(source, None)
        path = path / "best.weights.h5" if path.is_dir() else path
        with reading(path, "weights"):  # of a folder the file is named
            return _recognise(_read_file(path), path)


def require_plain(path):
    """Raise a ValueError unless a file of Keras's, .h5 or .keras, holds all its arrays itself, and not too much."""
    with reading(path, "weights"), open_regular(path) as file:
        if file.read(4).startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                require_size(sum(entry.file_size for entry in archive.infolist()))
                names = [name for name in archive.namelist() if name.endswith(".h5")]
                for name in names:
                    with open_hdf5(io.BytesIO(archive.read(name))):
                        pass
            return
    with reading(path, "weights"), open_hdf5(path):
        pass


def listed(names):
    """The first few names of a list, and how many more there are, for a message."""
    names = tuple(names)
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


# -------------------------------------------------------------------------------------------------- name tables

_LEAF = re.compile(r"(?:^|[/_])(kernel|W|bias|b|gamma|beta|(?:moving|running)_(?:mean|variance|std))(?:_\d+)?(?::0)?$")
# Keras 1 wrote W and b; it and keras-frcnn call the variance running_std.
_OLD_LEAVES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_KERAS_BLOCK = re.compile(r"conv([2-5])_block(\d+)_(preact|[0-3])_(?:conv|bn)")
_KERAS_LAYERS = {"conv1_conv": "conv1", "conv1_bn": "conv1", "post_bn": "post_norm", "predictions": "fc"}
_TORCH = re.compile(r"(?:layer([1-4])\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.(weight|bias|running_mean|running_var)")
_TORCH_TOP = {
    "fc": "fc",
    "rpn.head.cls_logits": "rpn_out_class",
    "rpn.head.bbox_pred": "rpn_out_regress",
    "roi_heads.box_head.fc6": "box_dense1",
    "roi_heads.box_head.fc7": "box_dense2",
    "roi_heads.box_head.5": "box_dense1",
    "roi_heads.box_predictor.cls_score": "class_logits",
    "roi_heads.box_predictor.bbox_pred": "box_predictor",
}
# A detector's convolutions, numbered from 0; ".0" is the convolution and ".1" its norm. Files from before torchvision
# 0.13, its COCO weights among them, have no ".0" where there is no norm.
_TORCH_PARTS = {
    "backbone.fpn.inner_blocks": ("fpn_inner", 2),
    "backbone.fpn.layer_blocks": ("fpn_output", 2),
    "rpn.head.conv": ("rpn_conv", 1),
    "roi_heads.box_head": ("box_conv", 1),
}
_TORCH_PART = re.compile(rf"({'|'.join(map(re.escape, _TORCH_PARTS))})(?:\.(\d))?(?:\.([01]))?\.(\w+)")
_TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_OLD_LAYERS = {"bn_conv": "conv1", "fc": "fc", "dense_class": "class_logits", "dense_regress": "box_predictor"}


def _keras_layer(layer):
    """conv1_bn -> conv1, conv2_block1_0_conv -> res2a_branch1, conv2_block3_1_bn -> res2c_branch2a."""
    match = _KERAS_BLOCK.fullmatch(layer)
    if not match:
        return _KERAS_LAYERS.get(layer)
    stage, block, part = match.groups()
    if part == "preact":
        return f"res{stage}{block_letter(int(block) - 1)}_preact"
    return _convolution(int(stage), int(block) - 1, int(part))


def _old_layer(layer):
    """bn_conv1 -> conv1, bn2a_branch2a -> res2a_branch2a, dense_class_4 -> class_logits, fc6 -> fc; others stay."""
    return _OLD_LAYERS.get(re.sub(r"_?\d+$", "", layer)) or re.sub(r"^bn(\d)", r"res\1", layer)


def _torchvision_name(name):
    """layer1.0.conv2.weight -> res2a_branch2b/kernel, layer2.0.downsample.1.bias -> res3a_branch1/beta.

    Of a detector: backbone.body.layer1.0..., backbone.fpn.inner_blocks.0.1.bias -> fpn_inner2/beta.
    """
    match = _TORCH.fullmatch(name.removeprefix("backbone.body."))
    if not match:
        return _torchvision_part_name(name)
    stage, block, part, number, leaf = match.groups()
    is_shortcut = part == "downsample."
    layer = "conv1" if stage is None else _convolution(int(stage) + 1, int(block), 0 if is_shortcut else int(number))
    is_kernel = part == "conv" or (is_shortcut and number == "0")
    return f"{layer}/{'kernel' if is_kernel else _TORCH_NORM[leaf]}"


def _torchvision_part_name(name):
    """What is not of the ResNet's stages, or None."""
    layer, _, leaf = name.rpartition(".")
    plain = {"weight": "kernel", "bias": "bias"}
    if layer in _TORCH_TOP and leaf in plain:
        return f"{_TORCH_TOP[layer]}/{plain[leaf]}"
    match = _TORCH_PART.fullmatch(name)
    leaves = _TORCH_NORM if match and match[3] == "1" else plain
    if not match or match[4] not in leaves:
        return None
    layer, first = _TORCH_PARTS[match[1]]
    return f"{layer}{int(match[2] or 0) + first}/{leaves[match[4]]}"


def _convolution(stage, block, number):
    """Our name of a block's convolution; number 0 is the shortcut's, 1 to 3 the others."""
    return f"res{stage}{block_letter(block)}_branch{('1', '2a', '2b', '2c')[number]}"


def _our_name(name, kind):
    if kind == "torchvision":
        return _torchvision_name(name)
    layer, _, rest = name.partition("/")
    leaf, layer = _LEAF.search(rest), (_keras_layer if kind in ("keras", "keras_v2") else _old_layer)(layer)
    return f"{layer}/{_OLD_LEAVES.get(leaf[1], leaf[1])}" if leaf and layer else None


def _kind_of(names):
    layers = {name.partition("/")[0] for name in names}
    if "conv2_block1_preact_bn" in layers:
        return "keras_v2"
    if {"layer1.0.conv1.weight", "backbone.body.layer1.0.conv1.weight"} & set(names):
        return "torchvision"
    if "conv2_block1_1_conv" in layers:
        return "keras"
    if "res2a_branch2a/gamma" in names:
        return "frcnn"
    if "res2a_branch2a" in layers:
        # ImageNet's networks end in fc1000; the tutorials divide by 255 and number their last layer by their classes.
        is_tutorial = any(re.fullmatch(r"fc\d+", layer) and layer != "fc1000" for layer in layers)
        return "keras_frcnn" if "rpn_out_class" in layers else "tutorial" if is_tutorial else "keras2016"
    some = f" ({listed(names)})" if names else ""
    raise ValueError(
        f"none of its {len(names)} names{some} is of a ResNet of keras.applications, torchvision, keras-frcnn or ours"
    )


def _recognise(arrays, path):
    """The `Description` of {name: array} as it was found."""
    kind, tensors = _kind_of(arrays), {}
    own_names = {name: _our_name(name, kind) for name in arrays if not name.endswith("num_batches_tracked")}
    for name in filter(own_names.get, own_names):
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds no numbers, but {array.dtype}")
        is_torch = kind == "torchvision" and array.ndim in (2, 4)
        tensors[own_names[name]] = array.transpose(*range(2, array.ndim), 1, 0) if is_torch else array
    if kind == "torchvision" and "backbone.body.conv1.weight" in arrays:
        _check_torchvision_detector(arrays, own_names)
        _put_into_our_order(tensors)
    num_classes = len(tensors["class_logits/bias"]) - 1 if "class_logits/bias" in tensors else None
    conventions, class_names = _config_beside(path) if kind in ("frcnn", "keras_frcnn") else (None, None)
    if class_names and num_classes not in (None, len(class_names)):
        raise ValueError(f"has {num_classes} classes, the config.pickle beside it {len(class_names)}")
    if kind == "torchvision" and num_classes is not None:
        class_names = COCO_NAMES if num_classes == len(COCO_NAMES) else None
        conventions = "torchvision_coco" if path and is_file_of(path, "coco") else None
    return Description(
        source=str(path or "mapping"),
        kind=kind,
        depth=_depth_of(tensors),
        conventions=conventions if kind == "frcnn" else conventions or kind,
        norm="frozen" if any(name.endswith("/moving_mean") for name in tensors) else "group",
        num_classes=num_classes,
        class_names=class_names,
        tensors=tensors,
        unexpected=tuple(name for name, own in own_names.items() if not own),
    )


def _check_torchvision_detector(arrays, own_names):
    """That it is a Faster R-CNN: its other detectors (RetinaNet, FCOS, SSD) share the ResNet and the pyramid."""
    heads = (
        "rpn.head.cls_logits.bias",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.bbox_pred.bias",
    )
    lacking = [name for name in heads if name not in arrays]
    if lacking:
        strange = next((f", and found {name}" for name, own in own_names.items() if not own), "")
        raise ValueError(f"no Faster R-CNN of torchvision: expected {lacking[0]}{strange}")
    classes, boxes = arrays[heads[1]].shape, arrays[heads[2]].shape
    if boxes != (4 * classes[0],):
        raise ValueError(
            f"{heads[2]} has shape {boxes}, expected {(4 * classes[0],)}: four for each class and background"
        )


def _put_into_our_order(tensors):
    """From torchvision's order to ours: background first to last, without boxes; pooled RoIs channels first to last."""
    for leaf in ("kernel", "bias"):
        tensors[f"class_logits/{leaf}"] = np.roll(tensors[f"class_logits/{leaf}"], -1, axis=-1)
        tensors[f"box_predictor/{leaf}"] = tensors[f"box_predictor/{leaf}"][..., 4:]
    dense = tensors.get("box_dense1/kernel", np.zeros((0, 0)))
    channels = tensors["fpn_output2/kernel"].shape[-1]
    side = math.isqrt(dense.shape[0] // channels)
    if dense.shape[0] == channels * side * side:  # else its shape is reported
        cells = dense.reshape(channels, side, side, -1).transpose(1, 2, 0, 3)
        tensors["box_dense1/kernel"] = cells.reshape(dense.shape)


def _depth_of(tensors):
    found = [re.match(r"res(\d)[a-z]+_branch2a/kernel", name) for name in tensors]
    blocks = tuple([match[1] for match in found if match].count(stage) for stage in "234")
    for depth, known in BLOCKS.items():
        if known[:3] == blocks and ("res2a_branch2c/kernel" in tensors) == (depth >= BOTTLENECK_DEPTH):
            return depth
    raise ValueError(
        f"its stages 2 to 4 have {blocks} blocks, which no ResNet of {', '.join(map(str, BLOCKS))} layers has"
    )


def _config_beside(path):
    """(conventions, class names) by the config.pickle beside a file, if it is the file's own; else (None, None)."""
    pickle = path and path.parent / "config.pickle"
    if not pickle or not pickle.exists():
        return None, None
    config, class_names, weights = load_pickle(pickle)
    is_own = weights.exists() and weights.samefile(path) if weights else path.name.endswith(".weights.h5")
    return (conventions_name(config.model.conventions), class_names) if is_own else (None, None)


# ------------------------------------------------------------------------------------------------------ reading

_STORED = ("gamma", "beta", "moving_mean", "moving_variance")
# Keras 3 numbers a layer's variables: (has it a kernel, how many) -> what they are.
_NUMBERED = {
    (False, 2): _STORED[:2],
    (False, 4): _STORED,
    (True, 1): ("kernel",),
    (True, 2): ("kernel", "bias"),
    (True, 3): ("kernel", *_STORED[:2]),
    (True, 4): ("kernel", "bias", *_STORED[:2]),
    (True, 5): ("kernel", *_STORED),
    (True, 6): ("kernel", "bias", *_STORED),
}
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


def _read_file(path):
    with open_regular(path) as file:
        require_size(os.fstat(file.fileno()).st_size)
        start = file.read(9)
        if start[8:] == b"{":
            return _read_safetensors(start + file.read())
    if start.startswith(b"\x89HDF"):
        return _read_hdf5(path)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            require_size(sum(entry.file_size for entry in archive.infolist()))
            names = archive.namelist()
            if "model.weights.h5" in names:
                return _read_hdf5(io.BytesIO(archive.read("model.weights.h5")))
        if all(name.endswith(".npy") for name in names):
            return read_npz(path)
    if start.startswith((b"PK", b"\x80")):  # a pickle, alone before PyTorch 1.6
        return backend.read_torch_weights(path)
    raise ValueError("not a file of weights: HDF5, .keras, .npz, .safetensors and .pth are")


def _read_safetensors(data):
    """8 bytes of length, a JSON header of that length, raw arrays: the format's own documentation."""
    start, arrays = 8 + int.from_bytes(data[:8], "little"), {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        (first, last), shape, dtype = entry["data_offsets"], entry["shape"], np.dtype(_SAFETENSORS[entry["dtype"]])
        count = math.prod(shape)
        if min([first, *shape]) < 0 or start + last > len(data) or last - first != count * dtype.itemsize:
            raise ValueError(f"{name} declares {shape} of {entry['dtype']}, which is not what the file holds")
        arrays[name] = np.frombuffer(data, dtype, count, start + first).reshape(shape)
    return arrays


def _read_hdf5(file):
    arrays = {}

    def visit(path, item):
        if is_legacy and isinstance(item, h5py.Dataset):
            arrays[path] = item[()]
        elif not is_legacy and path.endswith("/vars") and not path.startswith("optimizer/"):  # as large as the rest
            values = [item[key][()] for key in sorted(item, key=int)]
            names = _NUMBERED.get((values[0].ndim > 1, len(values)), ()) if values else ()
            arrays.update({f"{item.attrs.get('name')}/{name}": value for name, value in zip(names, values)})

    with open_hdf5(file) as root:
        root = root.get("model_weights", root)
        is_legacy = "layer_names" in root.attrs
        root.visititems(visit)
    return arrays
