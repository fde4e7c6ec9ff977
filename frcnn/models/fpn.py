"""The parts of the FPN detector (Lin et al. 2017), as torchvision builds `fasterrcnn_resnet50_fpn` and its `_v2`.

The second version (Li et al. 2021) has normalisation after the pyramid's convolutions, two convolutions in the RPN, and
four with one dense layer, for two dense layers, in the RoI head.
"""

import dataclasses

import keras
from keras import KerasTensor, ops

from frcnn.models.heads import build_box_head, build_rpn_head, conv_or_conv_norm
from frcnn.models.layers import AnchorGrid, PyramidRoIAlign
from frcnn.models.resnet import resnet_stage, resnet_stem

CHANNELS = 256  # of every level


def fpn_parts(model, spec, num_classes, seed):
    """The layers of the FPN detector; arguments and result as `frcnn.models.detector.c4_parts`."""
    is_v2 = model.architecture == "fpn_v2"
    # New layers have no statistics to freeze: theirs learn even where the ResNet's are frozen, as in torchvision.
    own = dataclasses.replace(spec, norm="batch" if spec.norm == "frozen" else spec.norm)
    (*strides, _), sizes = zip(*model.anchor_levels)  # RoIs are pooled from P2 to P5
    sizes, ratios = list(map(list, sizes)), list(model.anchor_ratios)
    head = {"convolutions": 4, "dense": 1} if is_v2 else {"convolutions": 0, "dense": 2}
    rpn_convolutions = 2 if is_v2 else 1
    return {
        "backbone": build_fpn_backbone(spec, own if is_v2 else None),
        "rpn": build_rpn_head(CHANNELS, model.rpn_channels, len(ratios), spec.dtype, seed, rpn_convolutions),
        "anchors": AnchorGrid(name="anchors", stride=None, sizes=sizes, ratios=ratios),
        "roi_align": PyramidRoIAlign(name="roi_align", output_size=model.roi_pool_size, strides=strides),
        "roi_head": build_box_head(CHANNELS, model.roi_pool_size, num_classes, own, **head),
    }


def build_fpn_backbone(spec, norm_spec=None):
    """A ResNet and the pyramid on its stages 2 to 5 (Lin et al. 2017, section 3).

    Args:
        spec: `ResNetSpec`.
        norm_spec: `ResNetSpec` whose normalisation follows the pyramid's convolutions; None: they have biases instead.

    Returns:
        keras.Model, (B, H, W, 3) normalised images -> P2 to P6, each (B, H / stride, W / stride, 256), strides 4, 8,
        16, 32, 64. P6 is every second cell of P5 and serves the RPN only.
    """
    images = keras.Input((None, None, 3), name="normalised_images")
    x, stages = resnet_stem(images, spec), []
    for stage in (2, 3, 4, 5):
        x = resnet_stage(x, stage, spec)
        stages.append(x)
    merged, pyramid = None, []
    for level, features in zip((5, 4, 3, 2), reversed(stages)):
        inner = conv_or_conv_norm(features, f"fpn_inner{level}", CHANNELS, 1, spec, norm_spec)
        merge = AddUpsampled(name=f"fpn_merge{level}", dtype=spec.dtype)
        merged = inner if merged is None else merge(merged, inner)
        pyramid.insert(0, conv_or_conv_norm(merged, f"fpn_output{level}", CHANNELS, 3, spec, norm_spec))
    pyramid.append(keras.layers.MaxPooling2D(1, 2, name="fpn_output6", dtype=spec.dtype)(pyramid[-1]))
    return keras.Model(images, pyramid, name="backbone")


@keras.saving.register_keras_serializable("frcnn")
class AddUpsampled(keras.layers.Layer):
    """coarse (B, h', w', C), fine (B, h, w, C) -> fine plus each cell of coarse on the 2x2 cells that it covers."""

    def call(self, coarse, fine):
        height, width = ops.shape(fine)[1:3]
        return fine + ops.repeat(ops.repeat(coarse, 2, axis=1), 2, axis=2)[:, :height, :width]

    def compute_output_spec(self, coarse, fine):
        return KerasTensor(fine.shape, self.compute_dtype)
