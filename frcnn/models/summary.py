"""What a network is made of: its layers with parameters and multiply-adds, and graphs of it that people can read."""

import re
from itertools import groupby
from math import prod
from typing import NamedTuple

import keras
from keras import tree

_BLOCK = re.compile(r"res\d[a-z]+(?=_)")  # of a layer's name: res2a of res2a_branch2a
_AGAIN = "_call"  # in the name of a model that is called a second time


class LayerCost(NamedTuple):
    """What one layer costs.

    Attributes:
        name: of the layer.
        shape: of its output, without the batch.
        parameters: weights, stored statistics of normalisation included, as Keras counts them.
        multiply_adds: for one picture or RoI; those of convolutions and dense layers alone, as He et al. 2015 count.
    """

    name: str
    shape: tuple
    parameters: int
    multiply_adds: int


def at_size(model, height, width):
    """Copy a model for pictures of one size, so that every shape in it is known.

    Args:
        model: functional keras.Model; of its inputs those of shape (B, H, W, C) get the size. Models inside have one.
        height, width: pixels.

    Returns:
        keras.Model with random weights; list of the models inside it, copied for the sizes that reach them, in the
        order of their calls. A model that is called again is there again, as `name_call2`. `SampledRPN` is not: it has
        its size, and the layers of another.
    """
    inner = []

    def call(layer, *tensors, **keywords):
        if isinstance(layer, keras.Model) and layer.name != "sampled_rpn":
            calls = sum(part.name.partition(_AGAIN)[0] == layer.name for part in inner)
            sized = keras.models.clone_model(layer, _input_like(layer.input, tensors[0].shape))
            name = f"{layer.name}{_AGAIN}{calls + 1}" if calls else layer.name
            layer = keras.Model(sized.input, sized.output, name=name)
            inner.append(layer)
        return layer(*tensors, **keywords)

    def copy(layer):  # the models inside are copied when their sizes are known
        return layer if isinstance(layer, keras.Model) else type(layer).from_config(layer.get_config())

    def set_size(tensor):
        is_image = len(tensor.shape) == 4
        return _input_like(tensor, (tensor.shape[0], height, width, tensor.shape[3]) if is_image else None)

    inputs = tree.map_structure(set_size, model.input)
    return keras.models.clone_model(model, inputs, clone_function=copy, call_function=call), inner


def layer_costs(model):
    """The costs of the layers that have weights or change the shape, in the order of the layers.

    Args:
        model: functional keras.Model without models inside, every shape known (see `at_size`).

    Returns:
        list of `LayerCost`; the parameters of a model that is called again are not counted again.
    """
    costs = []
    for layer in model.layers:
        shape, kernel = layer.output.shape[1:], getattr(layer, "kernel", None)
        # A kernel is multiplied in full at every place of the output.
        multiply_adds = 0 if kernel is None else prod(kernel.shape) * prod(shape[:-1])
        if layer.weights or (costs and shape != costs[-1].shape):
            parameters = 0 if _AGAIN in model.name else layer.count_params()
            costs.append(LayerCost(layer.name, shape, parameters, multiply_adds))
    return costs


def cost_table(parts):
    """The costs as a text: a line for each stage with its sums, the lines of its layers below, the total last.

    Args:
        parts: {name: list of `LayerCost`}, in the order to print.
    """
    lines = [f"{'layer':<20}  {'output':<12}{'parameters':>13}{'multiply-adds':>18}"]
    for part, costs in parts.items():
        for stage, layers in groupby(costs, key=lambda cost: _stage(part, cost.name)):
            layers = list(layers)
            rows = [
                LayerCost(stage, (), *sum_costs(layers)),
                *(cost._replace(name=f"  {cost.name}") for cost in layers),
            ]
            lines += [f"{n:<20}  {'x'.join(map(str, shape)):<12}{p:>13,}{m:>18,}" for n, shape, p, m in rows]
    total, _ = sum_costs([cost for costs in parts.values() for cost in costs])
    return "\n".join([*lines, f"{'total':<34}{total:>13,}"])


def _stage(part, name):
    """Of the ResNet, or the part itself."""
    stage = re.match(r"res(\d)|(?:conv|pool)1", name)
    return f"{part}: stage {stage[1] or 1}" if stage else part


def sum_costs(costs):
    """Parameters and multiply-adds of a list of `LayerCost` together."""
    return sum(cost.parameters for cost in costs), sum(cost.multiply_adds for cost in costs)


def bottleneck_arithmetic(width):
    """Spell out the parameters of a basic block, of a bottleneck as wide inside, and of a basic block as wide outside.

    Args:
        width: filters inside the bottleneck; outside there are four times as many.

    Returns:
        a text of three lines.
    """
    outside = 4 * width
    blocks = {
        f"two 3x3 of {width}": [(3, 3, width, width)] * 2,
        f"bottleneck of {outside}": [(1, 1, outside, width), (3, 3, width, width), (1, 1, width, outside)],
        f"two 3x3 of {outside}": [(3, 3, outside, outside)] * 2,
    }
    lines = []
    for name, kernels in blocks.items():
        product = " + ".join("x".join(map(str, kernel)) for kernel in kernels)
        lines.append(f"{name}: {product} = {' + '.join(f'{prod(kernel):,}' for kernel in kernels)}")
        lines[-1] += f" = {sum(map(prod, kernels)):,}"
    return "\n".join(lines)


def collapse_blocks(model):
    """A model for drawing, in which each block of a ResNet is one model inside: 20 boxes instead of 200.

    Args:
        model: functional keras.Model of single layers, each called once.

    Returns:
        keras.Model that shares its layers.
    """
    groups = []
    for name, layers in groupby(model.layers, key=lambda layer: (_BLOCK.match(layer.name) or [None])[0]):
        layers = list(layers)
        ends = [(layers[0].input, layers[-1].output)] if name else [(layer.input, layer.output) for layer in layers]
        groups += [(name, layer, *end) for layer, end in zip(layers, ends)]
    drawn = {id(tensor): tensor for tensor in tree.flatten(model.input)}
    for name, layer, taken, given in groups:
        if id(given) not in drawn:
            inputs = tree.map_structure(lambda tensor: drawn[id(tensor)], taken)
            drawn[id(given)] = (_as_model(name, taken, given) if name else layer)(inputs)
    outputs = tree.map_structure(lambda tensor: drawn[id(tensor)], model.output)
    return keras.Model(model.input, outputs, name=model.name)


def draw_graph(model, format="png"):
    """Draw the graph of a model, models inside as one box, through Keras, pydot and Graphviz.

    Args:
        model: keras.Model.
        format: "png" or "svg".

    Returns:
        bytes of the picture.

    Raises:
        ValueError: pydot or Graphviz is not installed.
    """
    try:
        graph = keras.utils.model_to_dot(model, show_shapes=True, show_layer_names=True, dpi=80)
        return graph.create(format=format)
    except (ImportError, OSError) as error:
        missing = "pydot: pip install pydot" if isinstance(error, ImportError) else "Graphviz: apt install graphviz"
        raise ValueError(f"the graphs are not drawn, they need {missing}") from error


def _as_model(name, taken, given):
    """What lies between two tensors of a model, as one of its own whose input has a name for people."""
    part = keras.Model(taken, given, name=name)
    return keras.models.clone_model(part, _input_like(taken, name=f"{name}_input"), clone_function=lambda layer: layer)


def _input_like(tensor, shape=None, name=None):
    return keras.Input(batch_shape=shape or tensor.shape, dtype=tensor.dtype, name=name or tensor.name)
