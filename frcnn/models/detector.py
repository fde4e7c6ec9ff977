"""Faster R-CNN (Ren et al. 2015) as one functional, multi-output Keras model, and its detection twin.

    images -> backbone -> rpn -> select_proposals -> sample_rois -> roi_align -> roi_head -> four Lambda losses
                                                  \\-> roi_align -> roi_head -> select_detections
    anchors -> sample_anchors -> rpn_patches -> sampled_rpn, the RPN's layers at the sampled cells -> two of the losses

The ground truth is an input and the losses are outputs, one number a picture: any `fit` trains it, with Keras's own
training step (`frcnn.models.guarded` undoes one that is not finite). The backbone runs once a step.
"""

import keras

from frcnn import backend
from frcnn.models.fpn import fpn_parts
from frcnn.models.guarded import GuardedModel, nan_gradients_unless_finite
from frcnn.models.heads import build_rpn_head, build_sampled_rpn, build_stage5_head, stage5_step
from frcnn.models.layers import (
    AnchorGrid,
    ImageNormalization,
    PerPicture,
    PickAnchors,
    RoIAlign,
    SampleAnchors,
    SampleRoIs,
    SelectDetections,
    SelectProposals,
    TakePatches,
)
from frcnn.models.resnet import CONVENTIONS, ResNetSpec, resnet_stage, resnet_stem
from frcnn.ops import losses
from frcnn.records import require_class_names

LOSSES = ("rpn_class_loss", "rpn_box_loss", "roi_class_loss", "roi_box_loss")


@keras.saving.register_keras_serializable("frcnn")
class FasterRCNN(GuardedModel):
    """The training model: a functional model whose outputs are its losses.

    Inputs (a dict): images (B, H, W, 3), image_sizes (B, 2) int32, gt_boxes (B, G, 4), gt_labels (B, G) int32,
    sampling_seeds (B,) int32. Outputs (a dict): the four `LOSSES`, (B,) float32 each. `compile` takes an optimizer and
    no loss; `fit` takes batches `(inputs,)`, and its history holds every loss by name.

    Attributes:
        config: the `frcnn.Config` that it was built from.
        class_names: tuple of K strings.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loss_means = [keras.metrics.Mean(name=name) for name in LOSSES]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The sum of the four losses, averaged over the batch; each is tracked as a metric."""
        for mean in self._loss_means:
            mean.update_state(y_pred[mean.name])
        return nan_gradients_unless_finite(sum(keras.ops.mean(y_pred[name]) for name in LOSSES))


def build_detector(config, class_names):
    """Build the training model: C4 or FPN, as `config.model.architecture` says.

    Args:
        config: `frcnn.Config`.
        class_names: K strings, distinct; their order is the order of the labels.

    Returns:
        `FasterRCNN`, not compiled, with random weights drawn from `config.train.seed`; `frcnn.load_weights` loads
        others. Here `model.conventions` "auto" means frcnn, and `model.norm` "auto" means batch.

    Raises:
        ValueError: no class, or one named twice.
    """
    class_names = require_class_names(class_names)
    inputs = _image_inputs() | {
        "gt_boxes": keras.Input((None, 4), dtype="float32", name="gt_boxes"),
        "gt_labels": keras.Input((None,), dtype="int32", name="gt_labels"),
        "sampling_seeds": keras.Input((), dtype="int32", name="sampling_seeds"),
    }
    parts = _build_parts(config, len(class_names))
    model = FasterRCNN(inputs, _training_outputs(config, parts, inputs), name="faster_rcnn")
    model.config, model.class_names = config, class_names
    return model


def detection_model(model):
    """The model that detects, with the layers and weights of a training model.

    Args:
        model: `FasterRCNN`.

    Returns:
        keras.Model, {images (B, H, W, 3), image_sizes (B, 2) int32} -> {boxes (B, D, 4) float32 xyxy pixels of the
        input image, scores (B, D) float32, labels (B, D) int32; label -1 and score 0 in empty slots}.
    """
    config, inputs = model.config, _image_inputs()
    parts = {
        name: model.get_layer(name) for name in ("normalize", "backbone", "rpn", "anchors", "roi_align", "roi_head")
    }
    features, *rpn_outputs = _shared_trunk(parts, inputs)
    rpn = config.rpn
    decoding = rpn.model_dump(include={"nms_iou", "delta_weights"})
    select = SelectProposals(name="test_proposals", pre_nms=rpn.test_pre_nms, post_nms=rpn.test_post_nms, **decoding)
    proposals, scores = select(*rpn_outputs, inputs["image_sizes"])
    logits, deltas = _apply_head(parts, features, proposals, rpn.test_post_nms)
    settings = config.detect.model_dump(exclude={"batch_size"}) | {"delta_weights": config.roi.delta_weights}
    detections = SelectDetections(name="detections", **settings)(
        proposals, scores, logits, deltas, inputs["image_sizes"]
    )
    outputs = dict(zip(("boxes", "scores", "labels"), detections, strict=True))
    detector = keras.Model(inputs, outputs, name="detection")
    detector.config, detector.class_names = config, model.class_names
    return detector


def _image_inputs():
    return {
        "images": keras.Input((None, None, 3), dtype="uint8", name="images"),
        "image_sizes": keras.Input((2,), dtype="int32", name="image_sizes"),
    }


def _build_parts(config, num_classes):
    """The shared layers: everything with weights, and the steps that training and detection have in common."""
    model, seed = config.model, config.train.seed
    dtype = dtype_policy(config.train.precision)
    conventions = CONVENTIONS[conventions_name(model.conventions)]
    spec = ResNetSpec(model.depth, normalisation(model.norm), dtype, seed, conventions)
    pixels = {name: getattr(conventions, name) for name in ("channel_order", "mean", "deviation")}
    parts = (c4_parts if model.architecture == "c4" else fpn_parts)(model, spec, num_classes, seed)
    return {"normalize": ImageNormalization(name="normalize", **pixels), **parts}


def c4_parts(model, spec, num_classes, seed):
    """The layers of the C4 detector, whose one feature map is stage 4.

    Args:
        model: `ModelConfig`.
        spec: `ResNetSpec` of `model`.
        num_classes: K.
        seed: of the heads' initial weights.

    Returns:
        {"backbone": images -> a feature map or a list of them, "rpn": one map -> logits and deltas, "anchors": maps and
        images -> anchors of each map, "roi_align": what the backbone gives and RoIs -> pooled RoIs, "roi_head"}.
    """
    backbone = build_backbone(spec)
    channels = backbone.output_shape[-1]
    ((stride, sizes),), ratios = model.anchor_levels, list(model.anchor_ratios)
    pool, step = model.roi_pool_size, stage5_step(spec)
    return {
        "backbone": backbone,
        "rpn": build_rpn_head(channels, model.rpn_channels, len(sizes) * len(ratios), spec.dtype, seed),
        "anchors": AnchorGrid(name="anchors", stride=stride, sizes=[list(sizes)], ratios=ratios),
        "roi_align": RoIAlign(name="roi_align", output_size=pool, stride=stride, step=step),
        "roi_head": build_stage5_head(channels, -(-pool // step), num_classes, spec),
    }


def build_backbone(spec):
    """Stages 1 to 4 of a ResNet.

    Args:
        spec: `ResNetSpec`.

    Returns:
        keras.Model, (B, H, W, 3) normalised images -> (B, H / 16, W / 16, 256 or 1024).
    """
    images = keras.Input((None, None, 3), name="normalised_images")
    x = resnet_stem(images, spec)
    for stage in (2, 3, 4):
        x = resnet_stage(x, stage, spec)
    return keras.Model(images, x, name="backbone")


def normalisation(norm):
    """The `ConvNorm` mode of a `ModelConfig.norm`: what "auto" stands for in training from scratch."""
    return "batch" if norm == "auto" else norm


def conventions_name(conventions):
    """The key of `CONVENTIONS` of a `ModelConfig.conventions`: what "auto" stands for without pretrained weights."""
    return "frcnn" if conventions == "auto" else conventions


def dtype_policy(precision):
    """The Keras dtype policy of a `TrainConfig.precision`: what "auto" stands for on this machine."""
    native = precision == "bfloat16" or (precision == "auto" and backend.bfloat16_is_native())
    return "mixed_bfloat16" if native else "float32"


def _shared_trunk(parts, inputs):
    """Features as the backbone gives them; lists over its maps: rpn_logits, rpn_deltas, anchors."""
    features = parts["backbone"](parts["normalize"](inputs["images"], inputs["image_sizes"]))
    maps = _as_list(features)
    logits, deltas = zip(*(parts["rpn"](one_map) for one_map in maps))
    return features, list(logits), list(deltas), parts["anchors"](maps, inputs["images"])


def _as_list(features):
    return features if isinstance(features, list) else [features]


def sampled_rpn_outputs(rpn, features, indices):
    """What the RPN answers at sampled anchors, looking at their cells once more.

    Its outputs on whole maps only serve the proposals, which no gradient leaves. So there is no backward pass through
    them: the losses see some hundred of some ten thousand cells, and the gradient of all others is 0.

    Args:
        rpn: as `build_rpn_head` returns it.
        features: what the backbone gives, a map or a list of them.
        indices: (B, S) int32, of anchors.

    Returns:
        logits (B, S), deltas (B, S, 4), as `rpn` gives them on the whole maps.
    """
    network = build_sampled_rpn(rpn)
    patches = TakePatches(name="rpn_patches", side=network.input_shape[0][1], anchors=network.output_shape[0][1])
    return PickAnchors(name="pick_anchors")(*network(patches(_as_list(features), indices)), indices)


def _apply_head(parts, features, rois, count):
    logits, deltas = parts["roi_head"](parts["roi_align"](features, rois))
    return PerPicture(count=count)(logits), PerPicture(count=count)(deltas)


def _training_outputs(config, parts, inputs):
    rpn, roi, seeds = config.rpn, config.roi, inputs["sampling_seeds"]
    truth = inputs["gt_boxes"], inputs["gt_labels"]
    features, *rpn_outputs = _shared_trunk(parts, inputs)
    sampling = rpn.model_dump(include={"positive_iou", "negative_iou", "samples", "positive_fraction", "delta_weights"})
    indices, labels, targets = SampleAnchors(name="sample_anchors", **sampling)(rpn_outputs[-1], *truth, seeds)
    logits, deltas = sampled_rpn_outputs(parts["rpn"], features, indices)
    decoding = rpn.model_dump(include={"nms_iou", "delta_weights"})
    select = SelectProposals(name="train_proposals", pre_nms=rpn.train_pre_nms, post_nms=rpn.train_post_nms, **decoding)
    proposals, scores = select(*rpn_outputs, inputs["image_sizes"])
    num_classes = parts["roi_head"].output_shape[1][1]
    sample = SampleRoIs(name="sample_rois", num_classes=num_classes, **roi.model_dump(exclude={"box_loss"}))
    rois, roi_labels, roi_targets = sample(proposals, scores, *truth, seeds)
    class_logits, box_deltas = _apply_head(parts, features, rois, roi.samples)
    giou = {"function": losses.roi_giou_loss, "arguments": {"delta_weights": roi.delta_weights}}
    return {
        "rpn_class_loss": _loss_layer("rpn_class_loss")((logits, labels)),
        "rpn_box_loss": _loss_layer("rpn_box_loss")((deltas, targets, labels)),
        "roi_class_loss": _loss_layer("roi_class_loss")((class_logits, roi_labels)),
        "roi_box_loss": _loss_layer("roi_box_loss", **(giou if roi.box_loss == "giou" else {}))(
            (box_deltas, roi_targets, roi_labels)
        ),
    }


def _loss_layer(name, function=None, arguments=None):
    function = function or getattr(losses, name)
    return keras.layers.Lambda(function, output_shape=(), arguments=arguments, name=name, dtype="float32")
