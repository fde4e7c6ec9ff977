"""The typed configuration tree: every default stands here once, with its meaning and its source."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _field(default, meaning, **limits):
    return Field(default, description=meaning, **limits)


class DataConfig(_Section):
    """How pictures become batches."""

    im_size: int = _field(
        600, "shorter side of the resized picture, of a classifier's both, pixels (Ren et al. 2015)", ge=28
    )
    max_size: int = _field(1000, "limit of the longer side, pixels (Ren et al. 2015)", ge=28)
    bit_depth: int | None = _field(
        None, "bits in use of pictures of 16 bits a channel, such as 12 of some cameras; null: all 16", ge=9, le=16
    )
    val_fraction: float = _field(0.1, "share of the pictures held out when no validation file is given", ge=0, lt=1)
    horizontal_flip: bool = _field(True, "mirror left-right with probability 0.5")
    vertical_flip: bool = _field(False, "mirror top-bottom with probability 0.5")
    rotate_90: bool = _field(False, "turn by a random multiple of 90 degrees")
    scale_jitter: float = _field(0.0, "resize by a random factor in [1 - j, 1 + j]", ge=0, lt=1)
    colour_jitter: float = _field(0.0, "random brightness, contrast and saturation in [1 - j, 1 + j]", ge=0, lt=1)
    random_crop: float = _field(0.0, "cut a random share of each side off, up to this one, and enlarge", ge=0, lt=1)
    blur: float = _field(0.0, "Gaussian blur of a random deviation up to this one, pixels", ge=0, le=20)
    jpeg_noise: int = _field(0, "compress as JPEG at a random quality from 100 down to 100 - n", ge=0, le=95)
    repeat_threshold: float = _field(
        0.0,
        "repeat pictures of classes that fewer than this share of them show (Gupta et al. 2019); 0: none",
        ge=0,
        le=1,
    )
    workers: int = _field(0, "threads that decode and augment; 0: one for each core, at most 8", ge=0, le=256)

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
    conventions: Literal[
        "auto", "frcnn", "torchvision", "torchvision_coco", "keras", "keras2016", "keras_frcnn", "tutorial"
    ] = _field(
        "auto",
        "style, epsilon, bias, pooling and preprocessing of the network; auto: what the weights need, or frcnn",
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

    @property
    def anchor_levels(self):
        """((stride, sizes), ...) of each feature map with anchors, pixels: one map of c4, P2 to P6 of fpn."""
        if self.architecture == "c4":
            return ((16, self.anchor_sizes),)
        return tuple((4 << level, (size,)) for level, size in enumerate(self.anchor_sizes))

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
    """Optimisation: momentum SGD or Adam with warm-up, weight decay and global clipping."""

    epochs: int = _field(20, "passes over the training pictures", ge=1)
    batch_size: int = _field(2, "pictures in a step", ge=1)
    optimizer: Literal["sgd", "adam"] = _field("sgd", "momentum SGD, or Adam with decoupled weight decay (AdamW)")
    learning_rate: float = _field(0.005, "peak learning rate", gt=0)
    momentum: float = _field(0.9, "SGD momentum; Adam's beta 1", ge=0, lt=1)
    weight_decay: float = _field(1e-4, "of kernels; sgd: added to the gradient as decay x kernel", ge=0)
    clip_norm: float = _field(10.0, "gradients are scaled to at most this global norm", gt=0)
    warmup_steps: int = _field(200, "steps over which the learning rate rises from 0", ge=0)
    schedule: Literal["cosine", "step"] = _field(
        "cosine", "cosine: down to 0; step: a tenth after 2/3 and again after 8/9 of the steps"
    )
    precision: Literal["auto", "float32", "bfloat16"] = _field(
        "auto", "auto: bfloat16 where the processor multiplies it natively, else float32"
    )
    patience: int = _field(0, "stop after this many epochs without a better validation score; 0: never", ge=0)
    checkpoint_minutes: float = _field(1.0, "write a checkpoint after this many minutes, besides each epoch's", gt=0)
    seed: int = _field(0, "of the split, the batches, the augmentation, the sampling and the initial weights", ge=0)


class ClassifyConfig(_Section):
    """What only `frcnn classify` has; data, model and train hold for it too."""

    label_smoothing: float = _field(0.0, "share of a label that goes to all classes (Szegedy et al. 2016)", ge=0, lt=1)
    blocks: tuple[Annotated[int, Field(ge=1)], ...] | None = _field(
        None, "basic blocks of each stage from the second on, instead of model.depth", min_length=1, max_length=4
    )
    residual: bool = _field(True, "whether blocks have shortcuts; without: the plain network of He et al. 2015")


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
    classify: ClassifyConfig = ClassifyConfig()

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
