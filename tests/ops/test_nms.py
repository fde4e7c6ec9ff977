import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from frcnn import backend
from frcnn.ops.nms import non_max_suppression, portable_nms
from tests.oracles import golden
from tests.oracles.nms import greedy_nms
from tests.oracles.tensors import array, bound, compiled, tensor

FORMS = {"backend's": non_max_suppression} | ({"portable": portable_nms} if backend.is_tensorflow() else {})
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def keep(form, boxes, scores, threshold, max_outputs=None):
    """NMS of one picture: the kept indices as a list; the result's contract is asserted on the way."""
    scores = np.asarray(scores, np.float32)
    max_outputs = max(len(scores), 1) if max_outputs is None else max_outputs
    nms = bound(form, iou_threshold=threshold, max_outputs=max_outputs)
    result = array(nms(tensor(np.reshape(boxes, (1, -1, 4))), tensor(scores[None])))
    assert (result.shape, result.dtype) == ((1, max_outputs), np.int32)
    kept = result[0][result[0] >= 0].tolist()
    assert result[0].tolist() == kept + [-1] * (max_outputs - len(kept)), "empty slots are -1 and come last"
    return kept


def crowd(seed, count, grid=None):
    """Boxes that overlap a lot. On a grid of whole pixels, with scores of one decimal, overlaps and scores tie."""
    rng = np.random.default_rng(seed)
    corners, sizes, scores = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2)), rng.uniform(0, 1, count)
    if grid:
        corners, sizes, scores = (np.round(x / grid) * grid for x in (corners, sizes + grid, scores * 10 * grid))
        scores = scores / (10 * grid)
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32), scores.astype(np.float32)


@both_forms
def test_nms_by_hand(form):
    """Overlaps with box 0: box 1 covers half of it, 50 / 100; box 2 touches it; box 3 lies apart."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [10, 0, 20, 10], [50, 50, 60, 60]]
    assert keep(form, boxes, [0.9, 0.8, 0.7, 0.95], 0.4) == [3, 0, 2]
    assert keep(form, boxes, [0.9, 0.8, 0.7, 0.95], 0.5) == [3, 0, 1, 2], "kept at IoU equal to the threshold"
    assert keep(form, boxes, [0.1, 0.8, 0.7, -5.0], 0.4) == [1, 2, 3], "box 1 now suppresses box 0"
    assert keep(form, boxes, [0.9, 0.8, 0.7, 0.95], 0.4, max_outputs=2) == [3, 0]
    assert keep(form, boxes, [0.9, 0.8, 0.7, 0.95], 0.4, max_outputs=9) == [3, 0, 2]


@both_forms
def test_a_suppressed_box_suppresses_nothing(form):
    """Each of a row of boxes overlaps its neighbours by 6 / 14 only: every second one survives."""
    row = [[4 * i, 0, 4 * i + 10, 10] for i in range(7)]
    assert keep(form, row, np.linspace(1, 0.1, 7), 0.4) == [0, 2, 4, 6]


@both_forms
def test_equal_scores_go_by_index(form):
    same = np.tile([[0, 0, 10, 10]], (40, 1))
    apart = same + np.arange(40)[:, None] * 20
    assert keep(form, same, np.ones(40), 0.5) == [0]
    assert keep(form, apart, np.ones(40), 0.5) == list(range(40))
    assert keep(form, apart, np.ones(40), 0.5, max_outputs=5) == list(range(5))


@both_forms
def test_empty_slots_are_never_kept_and_suppress_nothing(form):
    boxes, scores = np.tile([[0, 0, 10, 10]], (4, 1)), [-np.inf, 0.5, -np.inf, -1e30]
    assert keep(form, boxes, scores, 0.5) == [1]
    assert keep(form, boxes, [-np.inf] * 4, 0.5) == []
    assert keep(form, np.zeros((4, 4)), scores, 0.5) == [1, 3], "boxes without area overlap nothing"


@both_forms
@pytest.mark.parametrize("threshold", golden.torchvision("nms")["keep"])
def test_nms_equals_torchvision(form, threshold):
    case = golden.torchvision("nms")
    assert keep(form, case["boxes"], case["scores"], float(threshold)) == case["keep"][threshold]


# Left out: chainercv at threshold 0, which there drops even boxes that only share a threshold of 0 (IoU >= t).
@both_forms
@pytest.mark.parametrize(
    "case",
    [case for case in golden.literal("nms", "") if case["threshold"] > 0],
    ids=lambda case: f"{case['source'].split('/')[0]} {case['threshold']}",
)
def test_nms_of_other_programs(form, case):
    scores = case["scores"] or np.linspace(1, 0.5, len(case["boxes"]))
    kept = keep(form, case["boxes"], scores, case["threshold"])
    if "expected" in case:
        assert kept == case["expected"]
    else:
        assert len(kept) == case["expected_count"]


@both_forms
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("grid", [None, 4], ids=["distinct", "ties"])
def test_nms_equals_nested_loops(form, threshold, grid):
    boxes, scores = crowd(1, 120, grid)
    scores[::7] = -np.inf
    assert keep(form, boxes, scores, threshold) == greedy_nms(boxes, scores, threshold)


@pytest.mark.tensorflow
@pytest.mark.skipif(not backend.is_tensorflow(), reason="the portable form is the only one on this backend")
@pytest.mark.parametrize("max_outputs", [300, 5000])
@pytest.mark.parametrize("grid", [None, 2], ids=["distinct", "ties"])
def test_kernel_and_portable_form_agree_across_blocks(grid, max_outputs):
    """4500 boxes: three blocks of at most 2000, where later ones are suppressed by survivors of earlier ones."""
    pictures = [crowd(seed, 4500, grid) for seed in (2, 3)]
    boxes, scores = (np.stack(x) for x in zip(*pictures, strict=True))
    boxes *= 10
    scores[1, 3000:] = -np.inf
    arguments = tensor(boxes), tensor(scores), 0.5, max_outputs
    kernel, portable = array(non_max_suppression(*arguments)), array(portable_nms(*arguments))
    assert (kernel == portable).all()
    assert (kernel[0] >= 0).sum() > 200


def test_blocks_equal_nested_loops():
    boxes, scores = crowd(4, 2300)
    assert keep(portable_nms, boxes, scores, 0.1) == greedy_nms(boxes, scores, 0.1)


@both_forms
def test_pictures_of_a_batch_are_apart(form):
    pictures = [crowd(seed, 50) for seed in (5, 6, 7)]
    boxes, scores = (np.stack(x) for x in zip(*pictures, strict=True))
    scores[1] = -np.inf
    together = array(bound(form, iou_threshold=0.5, max_outputs=50)(tensor(boxes), tensor(scores)))
    for row, picture in enumerate(zip(boxes, scores, strict=True)):
        assert together[row][together[row] >= 0].tolist() == keep(form, *picture, 0.5)


def test_compiled_nms_is_the_same():
    boxes, scores = (x[None] for x in crowd(8, 60))
    arguments = tensor(boxes), tensor(scores)
    expected = array(bound(non_max_suppression, iou_threshold=0.5, max_outputs=40)(*arguments))
    assert (compiled(lambda *inputs: non_max_suppression(*inputs, 0.5, 40), *arguments) == expected).all()
    portable = compiled(lambda *inputs: portable_nms(*inputs, 0.5, 40), *arguments, free=0)
    assert (portable == expected).all()


@both_forms
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.1, 0.5, 0.8]))
def test_nms_is_idempotent_and_free_of_order(form, seed, threshold):
    boxes, scores = crowd(seed, 40)
    kept = keep(form, boxes, scores, threshold)
    survivors = np.where(np.isin(np.arange(40), kept), scores, -np.inf)
    assert keep(form, boxes, survivors, threshold) == kept
    order = np.random.default_rng(seed).permutation(40)
    assert order[keep(form, boxes[order], scores[order], threshold)].tolist() == kept


def test_indices_gather():
    """What comes out can index on every backend."""
    boxes, scores = crowd(9, 10)
    nms = bound(non_max_suppression, iou_threshold=1.0, max_outputs=10)
    kept = nms(tensor(boxes[None]), tensor(scores[None]))
    sorted_scores = array(ops.take_along_axis(tensor(scores[None]), kept, axis=1))
    assert (sorted_scores[0] == np.sort(scores)[::-1]).all()
