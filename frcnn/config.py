"""The typed configuration tree: every default stands here once, with its meaning and its source.

A config is read from YAML, changed by `key=value` overrides, and saved with a run as YAML (for people) and as a pickle
of plain values (for those who come from keras-frcnn). It travels only as far as the `build_*` functions: below them,
everything takes keyword arguments.
"""

import difflib
import pickle
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from frcnn.files import replacing
from frcnn.legacy import OldConfig, read_pickle, translate

Positive = Annotated[float, Field(gt=0)]
MOST_ERRORS = 5  # of a wrong config are printed; one mistake often causes several


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _field(default, meaning, **limits):
    return Field(default, description=meaning, **limits)


class DataConfig(_Section):
    """How pictures become batches."""

    im_size: int = _field(600, "shorter side of the resized picture, pixels (Ren et al. 2015)", ge=32)
    max_size: int = _field(1000, "limit of the longer side, pixels (Ren et al. 2015)", ge=32)
    val_fraction: float = _field(0.1, "share of the pictures held out when no validation file is given", ge=0, lt=1)
    horizontal_flip: bool = _field(True, "mirror left-right with probability 0.5")
    vertical_flip: bool = _field(False, "mirror top-bottom with probability 0.5")
    rotate_90: bool = _field(False, "turn by a random multiple of 90 degrees")
    scale_jitter: float = _field(0.0, "resize by a random factor in [1 - j, 1 + j]", ge=0, lt=1)
    colour_jitter: float = _field(0.0, "random brightness, contrast and saturation in [1 - j, 1 + j]", ge=0, lt=1)
    workers: int = _field(2, "threads that decode and augment", ge=1)

    @model_validator(mode="after")
    def _sides_in_order(self):
        if self.max_size < self.im_size:
            raise ValueError(f"data.max_size ({self.max_size}) must be at least data.im_size ({self.im_size})")
        return self


class ModelConfig(_Section):
    """The network. Anchors: Ren et al. 2015, section 3.1.1."""

    architecture: Literal["c4", "fpn", "fpn_v2"] = _field(
        "c4", "c4 (Ren et al. 2015), fpn (Lin et al. 2017) or fpn_v2 (Li et al. 2021), as torchvision builds them"
    )
    depth: Literal[18, 34, 50, 101, 152] = _field(50, "ResNet depth (He et al. 2015, table 1)")
    weights: str = _field("none", "initial weights: none, imagenet, coco, coco-v2, or a file (Keras, torchvision, ...)")
    conventions: Literal["auto", "frcnn", "torchvision", "torchvision_coco", "keras", "keras2016", "keras_frcnn"] = (
        _field(
            "auto",
            "style, epsilon, bias, pooling and preprocessing of the network; auto: what the weights need, or frcnn",
        )
    )
    trainable_stages: int = _field(3, "with initial weights, train this many last stages (torchvision)", ge=1, le=5)
    norm: Literal["auto", "frozen", "batch", "group"] = _field(
        "auto", "normalisation; auto: frozen with initial weights, else batch: random frozen statistics cannot learn"
    )
    anchor_sizes: tuple[Positive, ...] = _field(
        (128, 256, 512), "square roots of the anchors' areas, pixels; fpn: one for each of P2 to P6", min_length=1
    )
    anchor_ratios: tuple[Positive, ...] = _field((0.5, 1.0, 2.0), "height / width of the anchors", min_length=1)
    rpn_channels: int = _field(512, "channels of the RPN's 3x3 convolution", ge=1)
    roi_pool_size: int = _field(14, "cells along a side of a pooled RoI; c4: stage 5 halves them", ge=2)

    @model_validator(mode="after")
    def _one_size_a_level(self):
        if self.architecture != "c4" and len(self.anchor_sizes) != 5:
            raise ValueError(
                f"model.anchor_sizes {list(self.anchor_sizes)} must be five with model.architecture="
                f"{self.architecture}, one for each of P2 to P6"
            )
        return self


class RPNConfig(_Section):
    """Region proposals (Ren et al. 2015, section 3.1; counts as in Detectron2's C4 recipes)."""

    positive_iou: float = _field(0.7, "an anchor with at least this IoU is an object", ge=0, le=1)
    negative_iou: float = _field(0.3, "an anchor below this IoU with every box is background", ge=0, le=1)
    samples: int = _field(256, "anchors in the loss, per picture", ge=2)
    positive_fraction: float = _field(0.5, "at most this share of them are objects", gt=0, le=1)
    nms_iou: float = _field(0.7, "proposals that overlap a better one by more are dropped", ge=0, le=1)
    train_pre_nms: int = _field(12000, "best anchors that enter NMS in training", ge=1)
    train_post_nms: int = _field(2000, "proposals that leave NMS in training", ge=1)
    test_pre_nms: int = _field(6000, "best anchors that enter NMS in detection", ge=1)
    test_post_nms: int = _field(300, "proposals that leave NMS in detection", ge=1)
    delta_weights: tuple[Positive, Positive, Positive, Positive] = _field(
        (1.0, 1.0, 1.0, 1.0), "factors on (dx, dy, dw, dh) of the RPN's targets (keras-frcnn: 4)"
    )

    @model_validator(mode="after")
    def _thresholds_in_order(self):
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"rpn.negative_iou ({self.negative_iou}) must be at most rpn.positive_iou ({self.positive_iou})"
            )
        return self


class RoIConfig(_Section):
    """Regions given to the head in training (Girshick 2015, section 2.3)."""

    samples: int = _field(128, "RoIs in the loss, per picture", ge=1)
    positive_fraction: float = _field(0.25, "at most this share of them are objects", gt=0, le=1)
    positive_iou: float = _field(0.5, "a RoI with at least this IoU is an object, below it background", ge=0, le=1)
    delta_weights: tuple[Positive, Positive, Positive, Positive] = _field(
        (10.0, 10.0, 5.0, 5.0), "factors on (dx, dy, dw, dh) of the head's targets (py-faster-rcnn)"
    )
    box_loss: Literal["smooth_l1", "giou"] = _field(
        "smooth_l1", "of the head's boxes: smooth_l1 (Girshick 2015) or giou (Rezatofighi et al. 2019)"
    )


class DetectConfig(_Section):
    """What leaves the detector."""

    score_threshold: float = _field(0.05, "lowest score of a detection", ge=0, le=1)
    nms_iou: float = _field(0.5, "detections of a class that overlap a better one by more are dropped", ge=0, le=1)
    max_detections: int = _field(100, "most detections in a picture", ge=1)
    batch_size: int = _field(4, "pictures in a pass", ge=1)


class TrainConfig(_Section):
    """Optimisation: momentum SGD with warm-up, coupled weight decay and global clipping."""

    epochs: int = _field(20, "passes over the training pictures", ge=1)
    batch_size: int = _field(2, "pictures in a step", ge=1)
    learning_rate: float = _field(0.005, "peak learning rate", gt=0)
    momentum: float = _field(0.9, "SGD momentum", ge=0, lt=1)
    weight_decay: float = _field(1e-4, "added to a kernel's gradient as decay x kernel", ge=0)
    clip_norm: float = _field(10.0, "gradients are scaled to at most this global norm", gt=0)
    warmup_steps: int = _field(200, "steps over which the learning rate rises from 0", ge=0)
    schedule: Literal["cosine", "step"] = _field(
        "cosine", "cosine: down to 0; step: a tenth after 2/3 and again after 8/9 of the steps"
    )
    precision: Literal["auto", "float32", "bfloat16"] = _field(
        "auto", "auto: bfloat16 where the processor multiplies it natively, else float32"
    )
    patience: int = _field(0, "stop after this many epochs without a better validation mAP; 0: never", ge=0)
    seed: int = _field(0, "of the split, the batches, the augmentation, the sampling and the initial weights", ge=0)


# What torchvision's FPN detectors have in place of the defaults above, which are C4's.
_FPN_DEFAULTS = {
    "model": {"anchor_sizes": (32, 64, 128, 256, 512), "rpn_channels": 256, "roi_pool_size": 7},
    "rpn": {"train_pre_nms": 2000, "test_pre_nms": 1000, "test_post_nms": 1000},  # each level's, before NMS
    "roi": {"samples": 512},
}


class Config(_Section):
    """The whole tree; `frcnn inspect config` prints it with each field's meaning."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()
    detect: DetectConfig = DetectConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_architecture(cls, values):
        sections = values if isinstance(values, dict) else {}
        model = sections.get("model")
        if not isinstance(model, dict) or model.get("architecture") not in ("fpn", "fpn_v2"):
            return values
        given = {name: sections.get(name, {}) for name in _FPN_DEFAULTS}  # what is no mapping is reported below
        return sections | {
            name: _FPN_DEFAULTS[name] | fields for name, fields in given.items() if isinstance(fields, dict)
        }


def load_config(path=None, overrides=()) -> Config:
    """Read a YAML file, apply overrides and check every value.

    Args:
        path: a YAML file with the sections of `Config`; what it leaves out keeps its default. None: all defaults.
        overrides: strings "section.field=value", applied in order after the file; the value is read as YAML.

    Raises:
        ValueError: the file cannot be read, or a field is unknown or wrong; names the file or the override.
    """
    return _load({} if path is None else _read_yaml(path), overrides, "config" if path is None else str(path))


def _load(values, overrides, source):
    origins = {}
    for override in [overrides] if isinstance(overrides, str) else overrides:
        section, name, value = _parse_override(override)
        if isinstance(values.setdefault(section, {}), dict):  # a section that is no mapping is reported below
            values[section][name] = value
            origins[section, name] = f"override '{override}'"
    return _validate(values, source, origins)


def with_overrides(config, overrides) -> Config:
    """A config with some fields changed, checked again; `overrides` and errors as in `load_config`."""
    return _load(config.model_dump(mode="json"), overrides, "config")


def save_config(config, folder, class_names):
    """Write config.yaml (for people, each field with its meaning) and config.pickle into `folder`, each atomically.

    Args:
        config: a Config.
        folder: where to write; made when missing.
        class_names: K strings, in the order of the labels.
    """
    with replacing(Path(folder, "config.yaml")) as file:
        file.write(_to_yaml(config))
    save_pickle(config, Path(folder, "config.pickle"), class_names)


def save_pickle(config, path, class_names, weights=None):
    """Write a config as a pickle (protocol 2) of {"config": {...}, "class_names": [...], "weights": "path" or None}.

    Args:
        config, class_names: as in `save_config`.
        path: the file.
        weights: the weights that go with it, named by their place beside the pickle or else absolutely; None: those of
            the run folder that the pickle lies in.
    """
    if weights is not None:
        weights = Path(weights).absolute()
        weights = weights.name if weights.parent == Path(path).absolute().parent else str(weights)
    names = [str(name) for name in class_names]
    with replacing(path, binary=True) as file:
        pickle.dump({"config": config.model_dump(mode="json"), "class_names": names, "weights": weights}, file, 2)


def load_run_config(path) -> tuple[Config, tuple[str, ...]]:
    """The config and the class names of a run; argument and errors as in `load_pickle`."""
    return load_pickle(path)[:2]


def load_pickle(path) -> tuple[Config, tuple[str, ...], Path | None]:
    """Read a config.pickle, ours or keras-frcnn's, without executing anything that stands in it.

    Args:
        path: the pickle, or the run folder that holds config.pickle.

    Returns:
        (Config, class names in the order of the labels, the weights file that the pickle names or None). Relative
        names count from the pickle's folder; keras-frcnn's are also looked for in the working directory.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but the plain values of a config.
    """
    path = Path(path)
    path = path / "config.pickle" if path.is_dir() else path
    plain = read_pickle(path)
    places = (path.parent,)
    if isinstance(plain, OldConfig):
        plain, places = translate(plain, path), (path.parent, Path())
    if not isinstance(plain, dict) or not isinstance(plain.get("config"), dict):
        raise ValueError(f'{path}: expected {{"config": {{...}}, "class_names": [...]}}, as save_config writes it')
    class_names, weights = plain.get("class_names"), plain.get("weights")
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        raise ValueError(f"{path}: class_names ({class_names!r:.80}) must be a list of strings")
    if not isinstance(weights, str | None):
        raise ValueError(f"{path}: weights ({weights!r:.80}) must be the path of a file")
    if weights is not None:
        weights = next((place / weights for place in places if (place / weights).is_file()), path.parent / weights)
    return _validate(plain["config"], str(path)), tuple(class_names), weights


def describe_config(config) -> str:
    """The effective config as a table, one line per field: dotted name, value, meaning."""
    rows = [(f"{section}.{name}", value, meaning) for section, name, value, meaning in _walk(config)]
    wide_name, wide_value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{wide_name}}  {value:<{wide_value}}  {meaning}" for name, value, meaning in rows)


def _sections():
    return {name: field.annotation for name, field in Config.model_fields.items()}


def _walk(config):
    """Yield (section, field, value as YAML on one line, meaning) of every field, in order."""
    for section, values in config.model_dump(mode="json").items():
        fields = _sections()[section].model_fields
        for name, value in values.items():
            text = yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
            yield section, name, text, fields[name].description


def _to_yaml(config):
    lines = ["# The config of a run: edit a copy and train with --config. Detection reads config.pickle beside it."]
    for section, name, value, meaning in _walk(config):
        if name == next(iter(_sections()[section].model_fields)):
            lines += ["", f"# {_sections()[section].__doc__}", f"{section}:"]
        lines.append(f"  {name}: {value}  # {meaning}")
    return "\n".join(lines) + "\n"


def _read_yaml(path):
    try:
        values = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a config ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise ValueError(f"{path}{_yaml_problem(error)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected sections ({', '.join(_sections())}), got {values!r:.80}")
    # "train:" with all its lines commented out is an empty section, not a wrong one.
    return {section: {} if fields is None else fields for section, fields in values.items()}


def _yaml_problem(error):
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = f" line {mark.line + 1}" if mark else ""
    return f"{line}: not valid YAML ({problem or str(error).splitlines()[0]})"


def _parse_override(override):
    """("train", "epochs", 5) from "train.epochs=5"."""
    label = f"override '{override}'"
    name, equals, text = str(override).partition("=")
    section, _, field = (name := name.strip()).partition(".")
    if not equals:
        raise ValueError(f"{label}: expected section.field=value, as in train.epochs=5")
    if name in _sections():
        example = next(iter(_sections()[name].model_fields))
        raise ValueError(f"{label}: {name} is a section; set one of its fields, as in {name}.{example}=...")
    if section not in _sections() or field not in _sections()[section].model_fields:
        raise ValueError(_unknown(name, label))
    try:
        return section, field, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{label}{_yaml_problem(error)}") from error


def _validate(values, source, origins=None):
    """A Config from nested plain values; `origins` maps (section, field) to the override that set it."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, source, origins or {}) for problem in error.errors()]
    if len(problems) > MOST_ERRORS:
        problems[MOST_ERRORS:] = [f"... and {len(problems) - MOST_ERRORS} more"]
    raise ValueError("\n".join(problems))


def _explain(problem, source, origins):
    """One pydantic error as one sentence: where, which field, its value, what is allowed."""
    location, kind = problem["loc"], problem["type"]
    source = origins.get(location[:2], source)
    name = ".".join(str(part) for part in location[:2])
    element = "".join(f"[{part}]" for part in location[2:])
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(name, source)
    if kind == "value_error":  # a rule between two fields, which names both
        changed = [text for (section, _), text in origins.items() if section == name]
        return f"{', '.join([source, *changed])}: {problem['ctx']['error']}"
    if kind == "model_type":
        fields = _sections()[name].model_fields if name in _sections() else _sections()
        return (
            f"{source}: {name} ({problem['input']!r:.80}) must be a section with fields of its own: {', '.join(fields)}"
        )
    if kind == "missing":
        return f"{source}: {name} ({problem['input']!r:.80}) has too few items: {element} is missing"
    allowed = problem["msg"].partition(", unable to parse")[0].replace(" after validation", "")
    allowed = allowed.replace("valid tuple", "list").replace("Input should", "must").replace("Tuple should", "must")
    return f"{source}: {name}{element} ({problem['input']!r:.80}) {allowed}"


def _unknown(name, source):
    """Say that a dotted name is unknown, and which known one was probably meant: of its own section first."""
    section, _, field = name.rpartition(".")
    tree = {part: {field: f"{part}.{field}" for field in fields.model_fields} for part, fields in _sections().items()}
    siblings = tree.get(section) or {part: part for part in tree}
    everywhere = {field: dotted for fields in reversed(tree.values()) for field, dotted in fields.items()}
    for known in (siblings, everywhere):
        for match in difflib.get_close_matches(field, known, n=1):
            return f"{source}: unknown field {name}; did you mean {known[match]}?"
    return f"{source}: unknown field {name}; known here: {', '.join(siblings)}"
