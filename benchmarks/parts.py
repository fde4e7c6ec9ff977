"""What a training step or a detection of a detector is made of, as models that `benchmarks.speed` can time.

`stages` are the network up to each of its steps, so that the difference of two is what one step takes; `floor` has the
layers with weights alone; `optimizer` has the update alone. Each is a Keras model of the same variables, whose loss is
the mean of what it computes, so that it runs on every backend.
"""

import keras
from keras import ops

from frcnn.models.summary import at_size, layer_costs, sum_costs


class MeanLoss(keras.Model):
    """A functional model of one output, which is its loss."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The output."""
        return y_pred


def stages(model, task):
    """Yield (name of a step, model of all up to it), without the last one: for that there is the whole.

    Args:
        model: `FasterRCNN`.
        task: "train" or "detect".
    """
    inputs, layer = model.input, model.get_layer
    images, sizes = inputs["images"], inputs["image_sizes"]
    truth = inputs["gt_boxes"], inputs["gt_labels"]
    if task == "detect":
        inputs = {"images": images, "image_sizes": sizes}
    features = layer("backbone")(layer("normalize")(images, sizes))
    done = [features]
    yield "backbone", mean_of(inputs, done)
    maps = features if isinstance(features, list) else [features]
    logits, deltas = map(list, zip(*(layer("rpn")(one_map) for one_map in maps)))
    done += [logits, deltas]
    yield "RPN", mean_of(inputs, done)
    anchors = layer("anchors")(maps, images)
    select = layer("train_proposals") if task == "train" else proposals_of_detection(model)
    rois, scores = select(logits, deltas, anchors, sizes)
    done += [rois, scores]
    yield "proposals", mean_of(inputs, done)
    if task == "train":
        seeds = inputs["sampling_seeds"]
        sampled = layer("sample_anchors")(logits, deltas, anchors, *truth, seeds)
        rois, *targets = layer("sample_rois")(rois, scores, *truth, seeds)
        done += [sampled, rois, targets]
        yield "sampling", mean_of(inputs, done)
    pooled = layer("roi_align")(features, rois)
    yield "RoIAlign", mean_of(inputs, [*done, pooled])
    yield "head", mean_of(inputs, [*done, layer("roi_head")(pooled)])


def proposals_of_detection(model):
    """The layer of `detection_model` that selects proposals."""
    from frcnn.models.detector import detection_model

    return detection_model(model).get_layer("test_proposals")


def floor(model, task):
    """The backbone, the RPN and the head on pooled RoIs that are given: input "pooled", (1, R, size, size, C)."""
    images, sizes, head = model.input["images"], model.input["image_sizes"], model.get_layer("roi_head")
    features = model.get_layer("backbone")(model.get_layer("normalize")(images, sizes))
    maps = features if isinstance(features, list) else [features]
    shape = head.input.shape[1:]
    pooled = keras.Input((rois_of(model, task), *shape), name="pooled")
    outputs = [[model.get_layer("rpn")(one_map) for one_map in maps], head(ops.reshape(pooled, (-1, *shape)))]
    return mean_of({"images": images, "image_sizes": sizes, "pooled": pooled}, outputs)


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
