"""What a training step or a detection of a detector is made of, as models that `benchmarks.speed` can time.

`stages` are the network up to each of its steps, so that the difference of two is what one step takes; those behind the
backbone begin with given maps, or they would differ by less than the time of a backbone varies. `floor` has the layers
with weights alone, `optimizer` the update alone. Each is a Keras model of the same variables, whose loss is the mean of
what it computes, so that it runs on every backend.
"""

import keras
from keras import ops

from frcnn.models.detector import detection_model
from frcnn.models.layers import PerPicture
from frcnn.models.summary import at_size, layer_costs, sum_costs


class MeanLoss(keras.Model):
    """A functional model of one output, which is its loss."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The output."""
        return y_pred


def stages(model, task):
    """Yield (name of a step, model of all up to it): "backbone" alone, then "given maps" and what follows on them.

    Args:
        model: `FasterRCNN`.
        task: "train" or "detect".
    """
    images = {name: model.input[name] for name in ("images", "image_sizes")}
    layer = (model if task == "train" else detection_model(model)).get_layer
    features = layer("backbone")(layer("normalize")(*images.values()))
    yield "backbone", mean_of(images, features)
    given = {name: keras.Input(shape, name=name) for name, shape in map_shapes(model).items()}
    inputs = (model.input if task == "train" else images) | given
    sizes, maps = images["image_sizes"], [Through()(one_map) for one_map in given.values()]
    done = [maps]
    yield "given maps", mean_of(inputs, done)
    logits, deltas = map(list, zip(*(layer("rpn")(one_map) for one_map in maps)))
    done.append(keras.tree.map_structure(ops.stop_gradient, [logits, deltas]))  # as in training
    yield "RPN", mean_of(inputs, done)
    anchors = layer("anchors")(maps, images["images"])
    rois, scores = layer("train_proposals" if task == "train" else "test_proposals")(logits, deltas, anchors, sizes)
    done += [rois, scores]
    yield "proposals", mean_of(inputs, done)
    if task == "train":
        truth = inputs["gt_boxes"], inputs["gt_labels"], inputs["sampling_seeds"]
        indices, labels, targets = layer("sample_anchors")(anchors, *truth)
        rois, roi_labels, roi_targets = layer("sample_rois")(rois, scores, *truth)
        done += [labels, targets, rois, roi_labels, roi_targets]
        yield "sampling", mean_of(inputs, done)
        logits, deltas = layer("pick_anchors")(*layer("sampled_rpn")(layer("rpn_patches")(maps, indices)), indices)
        done += [logits, deltas]
        yield "RPN at samples", mean_of(inputs, done)
    pooled = layer("roi_align")(maps if isinstance(features, list) else maps[0], rois)
    yield "RoIAlign", mean_of(inputs, [*done, pooled])
    answers = layer("roi_head")(pooled)
    yield "head", mean_of(inputs, [*done, answers])
    class_logits, box_deltas = (PerPicture(count=rois_of(model, task))(answer) for answer in answers)
    if task == "detect":
        found = layer("detections")(rois, scores, class_logits, box_deltas, sizes)
        yield "detections", mean_of(inputs, [*done, found])
    else:
        losses = {
            "rpn_class_loss": (logits, labels),
            "rpn_box_loss": (deltas, targets, labels),
            "roi_class_loss": (class_logits, roi_labels),
            "roi_box_loss": (box_deltas, roi_targets, roi_labels),
        }
        yield "losses", mean_of(inputs, [*done, [layer(name)(taken) for name, taken in losses.items()]])


class Through(keras.layers.Layer):
    """x times a weight that is 1, so that the backward pass goes as far as x."""

    def build(self, _):
        self.weight = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * ops.cast(self.weight, x.dtype)


def floor(model, task):
    """The layers with weights alone, where the head and, in training, the RPN's backward pass have inputs of their own.

    These are "pooled", (B, R, size, size, C), and "patches", (B, S, side, side, C). The gradients of the feature maps
    are constants.
    """
    inputs = {name: model.input[name] for name in ("images", "image_sizes")}
    maps = model.get_layer("backbone")(model.get_layer("normalize")(*inputs.values()))
    maps = maps if isinstance(maps, list) else [maps]
    outputs = [[model.get_layer("rpn")(one_map) for one_map in maps]]
    shapes = given_shapes(model, task)
    given = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    flat = {name: ops.reshape(x, (-1, *x.shape[2:])) for name, x in given.items()}
    outputs.append(model.get_layer("roi_head")(flat["pooled"]))
    if task == "train":
        sampled = model.get_layer("sampled_rpn")([flat["patches"], ops.ones_like(flat["patches"][..., :1])])
        outputs = [maps, keras.tree.map_structure(ops.stop_gradient, outputs[0]), outputs[1], sampled]
    return mean_of(inputs | given, outputs)


def given_shapes(model, task):
    """{name: shape of one picture's} of what `floor` takes besides images."""
    shapes = {"pooled": (rois_of(model, task), *model.get_layer("roi_head").input_shape[1:])}
    if task == "train":
        shapes["patches"] = (model.config.rpn.samples, *model.get_layer("sampled_rpn").input_shape[0][1:])
    return shapes


def map_shapes(model, height=None, width=None):
    """{name: shape of one picture's} of the maps that `stages` take; None where the size is free."""
    maps = model.get_layer("backbone").compute_output_spec(keras.KerasTensor((1, height, width, 3)))
    return {f"map{level}": one_map.shape[1:] for level, one_map in enumerate(keras.tree.flatten(maps))}


def optimizer(model):
    """A model whose loss is the mean of every variable of another: next to nothing but the update."""
    one = keras.Input((1,))
    return MeanLoss(one, MeanOfVariables(model)(one))


class MeanOfVariables(keras.layers.Layer):
    """Any input -> the sum of the means of a model's trainable variables."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return sum(ops.mean(ops.convert_to_tensor(variable)) for variable in self.model.trainable_variables)

    def compute_output_spec(self, x):
        return keras.KerasTensor((), "float32")


def mean_of(inputs, tensors):
    """A `MeanLoss` of the sum of the means of tensors."""
    means = [ops.mean(ops.cast(tensor, "float32")) for tensor in keras.tree.flatten(tensors)]
    return MeanLoss(inputs, sum(means[1:], means[0]))


def rois_of(model, task):
    """How many RoIs of a picture enter the head."""
    return model.config.roi.samples if task == "train" else model.config.rpn.test_post_nms


def multiply_adds(model, task, height, width):
    """Those of one picture in one forward pass, convolutions and dense layers alone."""
    _, parts = at_size(model, height, width)
    rois = rois_of(model, task)
    return sum(sum_costs(layer_costs(part))[1] * (rois if part.name == "roi_head" else 1) for part in parts)
