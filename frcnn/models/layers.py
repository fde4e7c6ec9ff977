"""The parameter-free steps between the heads, each a pure function of `frcnn.ops` as a float32 layer.

Under a mixed policy a layer receives its inputs cast to bfloat16, in which a coordinate near 600 has steps of 4 pixels:
hence float32 here, and explicit output shapes and dtypes (Keras would else declare an int label a float).
"""

import keras
from keras import KerasTensor, ops

from frcnn import backend
from frcnn.ops.anchors import grid_anchors
from frcnn.ops.detections import select_detections
from frcnn.ops.patches import take_patches
from frcnn.ops.proposals import select_level_proposals
from frcnn.ops.roi_align import pyramid_roi_align, roi_align
from frcnn.ops.targets import rpn_targets, sample_rois


class OpLayer(keras.layers.Layer):
    """Base of the steps: keyword `settings` are passed to the function and are the layer's config."""

    def __init__(self, name=None, **settings):
        super().__init__(name=name, dtype="float32", trainable=False)
        self.settings = settings
        # TensorFlow's NMS and sparse products have no XLA kernel; stock `compile()` then leaves XLA off on a GPU.
        self.supports_jit = not backend.is_tensorflow()

    def get_config(self):
        return {"name": self.name, **self.settings}


@keras.saving.register_keras_serializable("frcnn")
class ImageNormalization(OpLayer):
    """RGB images (B, H, W, 3), image_sizes (B, 2) -> (images - mean) / deviation, padding 0; without sizes, none.

    Settings: channel_order ("RGB" or "BGR") of the result, mean and deviation in that order; see `Conventions`.
    """

    def call(self, images, image_sizes=None):
        mean, deviation = (ops.convert_to_tensor(self.settings[name], "float32") for name in ("mean", "deviation"))
        images = ops.flip(images, axis=-1) if self.settings["channel_order"] == "BGR" else images
        images = (ops.cast(images, "float32") - mean) / deviation
        if image_sizes is None:
            return images
        rows, columns = (ops.arange(side)[None, :] for side in ops.shape(images)[1:3])
        inside = (rows < image_sizes[:, :1])[:, :, None] & (columns < image_sizes[:, 1:])[:, None, :]
        return images * ops.cast(inside, "float32")[..., None]

    def compute_output_spec(self, images, image_sizes=None):
        return KerasTensor(images.shape, "float32")


@keras.saving.register_keras_serializable("frcnn")
class AnchorGrid(OpLayer):
    """maps [(B, h, w, C), ...], images (B, H, W, 3) -> anchors [(A, 4), ...] of each map (`ops.anchors.grid_anchors`).

    Settings: sizes, a list for each map; ratios; stride of all maps, or None: torchvision's rule, pixels of `images` by
    cells, rounded down. A P6 of 13 cells over 800 pixels has stride 61.
    """

    def call(self, maps, images):
        return [self._anchors_of(one_map, images, sizes) for one_map, sizes in zip(maps, self.settings["sizes"])]

    def _anchors_of(self, one_map, images, sizes):
        cells, stride = ops.shape(one_map)[1:3], self.settings["stride"]
        strides = [pixels // count for pixels, count in zip(ops.shape(images)[1:3], cells)]
        return grid_anchors(*cells, stride or strides, sizes, self.settings["ratios"])

    def compute_output_spec(self, maps, images):
        return [KerasTensor((None, 4), "float32") for _ in maps]


@keras.saving.register_keras_serializable("frcnn")
class SelectProposals(OpLayer):
    """`ops.proposals.select_level_proposals`; no gradient leaves it (Ren et al. 2015: approximate joint training)."""

    def call(self, rpn_logits, rpn_deltas, anchors, image_sizes):
        logits, deltas = (list(map(ops.stop_gradient, levels)) for levels in (rpn_logits, rpn_deltas))
        return select_level_proposals(logits, deltas, anchors, image_sizes, **self.settings)

    def compute_output_spec(self, rpn_logits, rpn_deltas, anchors, image_sizes):
        batch, count = rpn_logits[0].shape[0], self.settings["post_nms"]
        return KerasTensor((batch, count, 4), "float32"), KerasTensor((batch, count), "float32")


@keras.saving.register_keras_serializable("frcnn")
class SampleAnchors(OpLayer):
    """`ops.targets.rpn_targets` over the anchors of all levels: indices (B, S), labels (B, S), delta_targets."""

    def call(self, anchors, gt_boxes, gt_labels, seeds):
        sampled = rpn_targets(ops.concatenate(anchors, axis=0), gt_boxes, gt_labels, seeds, **self.settings)
        return tuple(ops.stop_gradient(tensor) for tensor in sampled)

    def compute_output_spec(self, anchors, gt_boxes, *_):
        shape = (gt_boxes.shape[0], self.settings["samples"])
        return KerasTensor(shape, "int32"), KerasTensor(shape, "int32"), KerasTensor((*shape, 4), "float32")


@keras.saving.register_keras_serializable("frcnn")
class TakePatches(OpLayer):
    """`ops.patches.take_patches` around the cells of anchors: maps, indices (B, S) -> patches, inside, as the maps are.

    Settings: side, of a patch; anchors, how many a cell has.
    """

    def __init__(self, name=None, **settings):
        super().__init__(name, **settings)
        self.autocast = False  # nothing is computed

    def call(self, maps, indices):
        return take_patches(maps, indices // self.settings["anchors"], self.settings["side"])

    def compute_output_spec(self, maps, indices):
        side, dtype = self.settings["side"], maps[0].dtype
        return tuple(KerasTensor((None, side, side, channels), dtype) for channels in (maps[0].shape[-1], 1))


@keras.saving.register_keras_serializable("frcnn")
class PickAnchors(OpLayer):
    """Of the a anchors of a cell the sampled one: logits (N, a), deltas (N, a, 4), indices (B, S) -> (B, S), (B, S, 4).

    N = B * S.
    """

    def call(self, logits, deltas, indices):
        anchors, shape = logits.shape[-1], ops.shape(indices)
        own = ops.reshape(indices % anchors, (-1, 1))
        logits, deltas = ops.take_along_axis(logits, own, axis=1), ops.take_along_axis(deltas, own[..., None], axis=1)
        return ops.reshape(logits, shape), ops.reshape(deltas, (*shape, 4))

    def compute_output_spec(self, logits, deltas, indices):
        return KerasTensor(indices.shape, "float32"), KerasTensor((*indices.shape, 4), "float32")


@keras.saving.register_keras_serializable("frcnn")
class SampleRoIs(OpLayer):
    """`ops.targets.sample_rois`: proposals and ground truth -> rois (B, S, 4), roi_labels (B, S), roi_delta_targets."""

    def call(self, proposals, proposal_scores, gt_boxes, gt_labels, seeds):
        sampled = sample_rois(proposals, proposal_scores, gt_boxes, gt_labels, seeds, **self.settings)
        return tuple(ops.stop_gradient(tensor) for tensor in sampled)

    def compute_output_spec(self, proposals, *_):
        shape = (proposals.shape[0], self.settings["samples"])
        boxes = KerasTensor((*shape, 4), "float32")
        return boxes, KerasTensor(shape, "int32"), KerasTensor((*shape, 4), "float32")


@keras.saving.register_keras_serializable("frcnn")
class RoIAlign(OpLayer):
    """`ops.roi_align.roi_align` with the RoIs of all pictures in one row: -> (B * S, size / step, size / step, C)."""

    def call(self, features, rois):
        pooled = roi_align(features, rois, **self.settings)
        return ops.reshape(pooled, (-1, *pooled.shape[2:]))

    def compute_output_spec(self, features, rois):
        size = -(-self.settings["output_size"] // self.settings["step"])
        return KerasTensor((None, size, size, features.shape[-1]), "float32")


@keras.saving.register_keras_serializable("frcnn")
class PyramidRoIAlign(OpLayer):
    """`ops.roi_align.pyramid_roi_align` of the first maps, one for each of `strides`: -> (B * S, size, size, C)."""

    def call(self, maps, rois):
        pooled = pyramid_roi_align(maps[: len(self.settings["strides"])], rois, **self.settings)
        return ops.reshape(pooled, (-1, *pooled.shape[2:]))

    def compute_output_spec(self, maps, rois):
        size = self.settings["output_size"]
        return KerasTensor((None, size, size, maps[0].shape[-1]), "float32")


@keras.saving.register_keras_serializable("frcnn")
class PerPicture(OpLayer):
    """(B * R, ...) -> (B, R, ...); setting: count, the R rows of each picture."""

    def call(self, x):
        return ops.reshape(x, (-1, self.settings["count"], *x.shape[1:]))

    def compute_output_spec(self, x):
        return KerasTensor((None, self.settings["count"], *x.shape[1:]), x.dtype)


@keras.saving.register_keras_serializable("frcnn")
class SelectDetections(OpLayer):
    """`ops.detections.select_detections`: -> boxes (B, D, 4), scores (B, D), labels (B, D) int32."""

    def call(self, proposals, proposal_scores, class_logits, box_deltas, image_sizes):
        return select_detections(proposals, proposal_scores, class_logits, box_deltas, image_sizes, **self.settings)

    def compute_output_spec(self, proposals, *_):
        shape = (proposals.shape[0], self.settings["max_detections"])
        return KerasTensor((*shape, 4), "float32"), KerasTensor(shape, "float32"), KerasTensor(shape, "int32")
