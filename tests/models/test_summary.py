import json
from math import prod
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from frcnn.models.classifier import build_resnet
from frcnn.models.detector import LOSSES, build_detector
from frcnn.models.resnet import CONVENTIONS, ResNetSpec
from frcnn.models.summary import (
    LayerCost,
    at_size,
    bottleneck_arithmetic,
    collapse_blocks,
    cost_table,
    draw_graph,
    layer_costs,
    sum_costs,
)
from tests.oracles.tiny import CLASS_NAMES, tiny_config

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "resnet_published.json").read_text())


def small(**settings):
    return build_resnet(ResNetSpec(**{"blocks": (2, 1), "width": 4, **settings}), (32, 32, 3), classes=2)


def test_a_small_network_by_hand():
    """32 -> 16 -> 8 pixels; a kernel is multiplied at every place; gamma, beta, mean, variance: four a filter."""
    assert layer_costs(small(blocks=(1,))) == [
        LayerCost("conv1", (16, 16, 4), 7 * 7 * 3 * 4 + 16, 7 * 7 * 3 * 4 * 16 * 16),
        LayerCost("pool1_pad", (18, 18, 4), 0, 0),
        LayerCost("pool1", (8, 8, 4), 0, 0),
        LayerCost("res2a_branch2a", (8, 8, 4), 3 * 3 * 4 * 4 + 16, 3 * 3 * 4 * 4 * 8 * 8),
        LayerCost("res2a_branch2b", (8, 8, 4), 3 * 3 * 4 * 4 + 16, 3 * 3 * 4 * 4 * 8 * 8),
        LayerCost("avg_pool", (4,), 0, 0),
        LayerCost("fc", (2,), 4 * 2 + 2, 4 * 2),
    ]


@pytest.mark.parametrize("depth", [18, 50])
def test_published_multiply_adds_and_parameters(depth):
    """torchvision's count is exact to its three digits; the paper's, of style v1 and in two digits, is rounded down."""
    published = PUBLISHED["torchvision"]["models"][f"resnet{depth}"]["IMAGENET1K_V1"]
    model = build_resnet(ResNetSpec(depth, conventions=CONVENTIONS["torchvision"]), classes=1000)
    costs = layer_costs(model)
    parameters, multiply_adds = sum_costs(costs)
    assert round(multiply_adds / 1e9, 3) == published["GFLOPS"]
    statistics = sum(2 * cost.shape[-1] for cost in costs if cost.name.startswith(("conv", "res")))
    assert parameters == model.count_params() == published["num_params"] + statistics
    if depth == 50:
        kernels = [prod(model.get_layer(f"res2b_branch2{letter}").kernel.shape) for letter in "abc"]
        assert f"= {' + '.join(f'{size:,}' for size in kernels)} = {sum(kernels):,}" in bottleneck_arithmetic(64)
        first = layer_costs(build_resnet(ResNetSpec(50), classes=1000))
        assert sum_costs(first)[1] == pytest.approx(PUBLISHED["paper_he2015_table1_flops"]["ResNet-50"], rel=0.02)


def test_the_bottleneck_is_spelled_out():
    lines = bottleneck_arithmetic(64).splitlines()
    assert lines[0].endswith("3x3x64x64 + 3x3x64x64 = 36,864 + 36,864 = 73,728")
    assert lines[1].endswith("1x1x256x64 + 3x3x64x64 + 1x1x64x256 = 16,384 + 36,864 + 16,384 = 69,632")
    assert lines[2].endswith("3x3x256x256 + 3x3x256x256 = 589,824 + 589,824 = 1,179,648")


def test_a_detector_of_one_size_has_its_layers_shapes_and_losses():
    """96x128: stride 16 gives 6x8 cells; 6 anchors a cell; RoIs of 2x2 cells, halved by stage 5."""
    detector = build_detector(tiny_config(), CLASS_NAMES)
    sized, parts = at_size(detector, 96, 128)
    assert [part.name for part in parts] == ["backbone", "rpn", "roi_head"]
    assert sized.get_layer("normalize").output.shape[1:] == (96, 128, 3)
    costs = {part.name: {cost.name: cost for cost in layer_costs(part)} for part in parts}
    assert costs["backbone"]["res4b_branch2b"].shape == (6, 8, 256)
    assert costs["rpn"]["rpn_conv1"] == ("rpn_conv1", (6, 8, 16), 9 * 256 * 16 + 16, 9 * 256 * 16 * 6 * 8)
    assert costs["rpn"]["rpn_deltas"].shape == (6 * 8 * 6, 4)
    assert costs["roi_head"]["res5b_branch2b"].shape == (1, 1, 512)
    every = [cost for part in costs.values() for cost in part.values()]
    assert sum_costs(every)[0] == detector.count_params()
    assert {layer.name for layer in sized.layers} >= set(LOSSES)


def test_an_inner_model_that_is_called_for_two_sizes_counts_for_both_and_its_parameters_once():
    inputs = keras.Input((None, None, 2))
    pixels = keras.Input((None, None, 2))
    head = keras.Model(pixels, layers.Conv2D(3, 1, use_bias=False)(pixels), name="head")
    model = keras.Model(inputs, [head(inputs), head(layers.MaxPooling2D(2)(inputs))])
    _, parts = at_size(model, 8, 12)
    assert [part.name for part in parts] == ["head", "head_call2"]
    costs = {part.name: layer_costs(part) for part in parts}
    assert sorted(sum_costs(cost)[1] for cost in costs.values()) == [2 * 3 * 4 * 6, 2 * 3 * 8 * 12]
    assert cost_table(costs).splitlines()[-1].split() == ["total", "6"]


def test_the_table_has_a_line_for_each_stage_with_its_sums():
    model = small()
    lines = [line.split() for line in cost_table({"resnet": layer_costs(model)}).splitlines()]
    stages = [line for line in lines if line[0] == "resnet:"]
    assert [line[1:3] for line in stages] == [["stage", "1"], ["stage", "2"], ["stage", "3"]]
    assert stages[1][3:] == [f"{4 * 160:,}", f"{4 * 144 * 64:,}"]
    assert lines[-1] == ["total", f"{model.count_params():,}"]
    assert ["conv1", "16x16x4", "604", f"{588 * 256:,}"] in lines


@pytest.mark.parametrize(
    "settings",
    [{}, {"residual": False}, {"bottleneck": True}, {"conventions": CONVENTIONS["keras_v2"]}],
    ids=["basic", "plain", "bottleneck", "v2"],
)
def test_collapsed_blocks_compute_the_same(settings):
    model = small(**settings)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = model.predict_on_batch(images)
    collapsed = collapse_blocks(model)
    blocks = [layer.name for layer in collapsed.layers if isinstance(layer, keras.Model)]
    assert blocks == ["res2a", "res2b", "res3a"]
    assert not [layer.name for layer in collapsed.layers if "branch" in layer.name]
    np.testing.assert_allclose(collapsed.predict_on_batch(images), expected, rtol=1e-5)


def test_a_graph_is_drawn_with_blocks_as_boxes():
    pytest.importorskip("pydot")
    model = collapse_blocks(small())
    try:
        svg = draw_graph(model, "svg").decode()
    except ValueError as error:
        pytest.skip(str(error))
    assert all(f">{name}<" in svg for name in ("conv1", "res2a", "res3a", "fc")) and "branch" not in svg
    assert "(None, 16, 16, 4)" in svg
    assert draw_graph(model)[:4] == b"\x89PNG"


def test_without_pydot_or_graphviz_one_sentence_says_what_is_missing(monkeypatch):
    def no_pydot(*_, **__):
        raise ImportError("You must install pydot")

    pytest.importorskip("pydot")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="not drawn, they need Graphviz: apt install graphviz"):
        draw_graph(small())
    monkeypatch.setattr(keras.utils, "model_to_dot", no_pydot)
    with pytest.raises(ValueError, match=r"need pydot: pip install pydot"):
        draw_graph(small())
