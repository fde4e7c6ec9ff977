import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frcnn.ops.matching import BELOW_LOW, BETWEEN, match_boxes
from tests.oracles import golden
from tests.oracles.boxes import iou_table
from tests.oracles.matching import match
from tests.oracles.tensors import array, compiled, tensor

RPN, ROI = (0.7, 0.3, True), (0.5, 0.5, False)
TORCHVISION = golden.torchvision("matcher")["out"]


def matches(iou, *setting):
    result = array(match_boxes(tensor(iou), *setting))
    assert result.dtype == np.int32
    return result.tolist()


@pytest.mark.parametrize(("high", "low", "keep_best"), [RPN, (0.7, 0.3, False), ROI])
def test_matches_equal_torchvision(high, low, keep_best):
    expected = TORCHVISION[f"hi={high},lo={low},low_quality={keep_best}"]
    assert matches(golden.torchvision("matcher")["quality_gt_by_anchor"], high, low, keep_best) == expected


def test_thresholds_by_hand():
    """0.7 is positive, 0.3 is not yet background, what lies between is neither."""
    row = [0.69, 0.7, 0.71, 0.29, 0.3, 0.31, 0.0]
    assert matches([row], 0.7, 0.3) == [-2, 0, 0, -1, -2, -2, -1]
    assert matches([row], 0.5, 0.5) == [0, 0, 0, -1, -1, -1, -1]
    assert (BELOW_LOW, BETWEEN) == (-1, -2)


def test_every_box_claims_its_best_anchors():
    iou = [
        [0.9, 0.2, 0.0, 0.1, 0.0],
        [0.1, 0.4, 0.4, 0.0, 0.0],  # two anchors tie: both become positive
        [0.0, 0.5, 0.0, 0.2, 0.1],  # claims anchor 1 too
    ]
    # anchor 1 is claimed by boxes 1 and 2 and stands for the one that it overlaps most
    assert matches(iou, *RPN) == [0, 2, 1, -1, -1]
    assert matches(iou, 0.7, 0.3, False) == [0, -2, -2, -1, -1]


def test_a_tie_holds_within_rounding():
    assert matches([[0.4, 0.4 - 5e-6, 0.4 - 5e-5]], *RPN) == [0, 0, -2]


def test_a_box_that_no_anchor_touches_claims_none():
    """Elsewhere every anchor ties with it at IoU 0 and becomes positive."""
    assert matches([[0.8, 0.1, 0.0], [0.0, 0.0, 0.0]], *RPN) == [0, -1, -1]
    assert matches(np.zeros((3, 4)), *RPN) == [-1] * 4


def test_a_claim_at_a_tiny_overlap_takes_only_anchors_that_touch():
    assert matches([[5e-6, 0.0, 0.0]], *RPN) == [0, -1, -1]


@settings(max_examples=60, deadline=None)
@given(iou=arrays(np.float32, (3, 12), elements=st.sampled_from([0, 0.1, 0.29, 0.3, 0.4, 0.5, 0.69, 0.7, 0.9, 1])))
@pytest.mark.parametrize("setting", [RPN, (0.7, 0.3, False), ROI], ids=["rpn", "rpn, plain", "roi"])
def test_matches_equal_the_words_of_the_paper(setting, iou):
    expected = match(iou.tolist(), *(float(np.float32(value)) for value in setting[:2]), setting[2])
    assert matches(iou, *setting) == expected


def test_pictures_of_a_batch_are_apart_and_padding_rows_change_nothing():
    iou = np.random.default_rng(0).uniform(0, 1, (2, 3, 10)).astype(np.float32)
    padded = np.concatenate([iou, np.zeros((2, 5, 10), np.float32)], axis=1)
    alone = [matches(picture, *RPN) for picture in iou]
    assert matches(padded, *RPN) == alone
    assert compiled(lambda x: match_boxes(x, *RPN), tensor(padded)).tolist() == alone


# Left out of literal_cases.json: KerasCV and TF models with "force": there a box wins its best anchor from another box
# that overlaps this anchor more, and TF models does so even at a similarity of 0.
def test_matches_of_detectron2():
    (case,) = golden.literal("matcher", "facebookresearch")
    low, high = case["thresholds"]
    label = {-1: -2, 0: -1}  # theirs: -1 ignored, 0 background, 1 object
    expected = [
        label.get(kind, box) for kind, box in zip(case["expected_labels"], case["expected_matches"], strict=True)
    ]
    assert matches(case["quality_gt_by_anchor"], high, low, True) == expected


def test_matches_of_mmdetection():
    (case,) = golden.literal("matcher", "open-mmlab")
    found = matches(iou_table(case["gt"], case["priors"]), case["pos"], case["neg"], True)
    assert [box + 1 for box in found] == case["expected_gt_inds_1based_0neg"]


def test_matches_of_tf_models():
    case = golden.literal("matcher", "tensorflow")[0]
    found = matches(case["similarity_gt_by_anchor"], case["matched_threshold"], case["unmatched_threshold"])
    assert [found[column] for column in case["matched_cols"]] == case["matched_rows"]
    assert [found[column] for column in case["unmatched_cols"] + case["ignored_cols"]] == [BELOW_LOW, BETWEEN]
