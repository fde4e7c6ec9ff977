import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.data.readers import read_records
from frcnn.data.splits import group_pictures, split_by_class
from frcnn.records import ImageRecord


def record(*labels):
    return ImageRecord("a.png", (10, 10), [[0, 0, 5, 5]] * len(labels), labels)


def class_shares(records, first, class_count):
    """(K,) the share of each class's boxes in the first part, by a plain loop."""
    total, chosen = Counter(), Counter()
    for each, is_first in zip(records, first):
        total.update(each.labels.tolist())
        chosen.update(each.labels.tolist() if is_first else [])
    return np.array([chosen[label] / total[label] for label in range(class_count)])


def test_a_rare_class_is_split_where_a_plain_draw_would_miss_it():
    """Two of a hundred pictures show class 1: half of them in each part, whatever the seed."""
    records = [record(1, 0), record(1)] + [record(0)] * 96 + [record()] * 2
    for seed in range(10):
        first = split_by_class(records, 2, 0.5, seed)
        assert class_shares(records, first, 2)[1] == 0.5
        assert first[-2:].sum() == 1  # background is a class of its own
        assert abs(int(first.sum()) - 50) <= 1


@settings(max_examples=200, deadline=None)
@given(
    pictures=st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 9)), min_size=2, max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_no_group_is_torn_both_parts_have_pictures_and_a_seed_repeats(pictures, share, seed):
    records, groups = [record(*labels) for labels, _ in pictures], np.array([group for _, group in pictures])
    if len(set(groups)) == 1:
        with pytest.raises(ValueError, match=r"in 1 group\(s\) cannot be split"):
            split_by_class(records, 4, share, seed, groups)
        return
    first = split_by_class(records, 4, share, seed, groups)
    assert first.shape == (len(records),) and first.dtype == bool
    assert not set(groups[first]) & set(groups[~first])
    assert first.any() and not first.all()
    np.testing.assert_array_equal(first, split_by_class(records, 4, share, seed, groups))


def test_another_seed_draws_another_split():
    records = [record(index % 3) for index in range(60)]
    draws = {tuple(split_by_class(records, 3, 0.8, seed)) for seed in range(5)}
    assert len(draws) == 5
    assert {sum(draw) for draw in draws} == {48}


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_an_error(share):
    with pytest.raises(ValueError, match="must be greater than 0 and less than 1"):
        split_by_class([record(0)] * 3, 1, share, 0)


@pytest.mark.parametrize("records", [[], [record(0)]])
def test_too_few_pictures_are_an_error(records):
    with pytest.raises(ValueError, match="cannot be split"):
        split_by_class(records, 1, 0.5, 0)


def partition(groups):
    return {tuple(np.flatnonzero(groups == group).tolist()) for group in set(groups)}


def test_pictures_whose_names_match_equally_belong_together():
    paths = ["x/car1_a.png", "y/car1_b.png", "car2_a.png", "other.png", "more.png"]
    assert partition(group_pictures(paths, r"car\d")) == {(0, 1), (2,), (3,), (4,)}
    assert partition(group_pictures(paths, r"\d_(.)\.png")) == {(0, 2), (1,), (3,), (4,)}
    assert partition(group_pictures(paths)) == {(0,), (1,), (2,), (3,), (4,)}


def test_groups_that_share_a_picture_are_one():
    paths = ["a1.png", "b1.png", "a2.png", "c2.png", "d.png"]
    assert partition(group_pictures(paths, r"\d", [(1, 4), (4, 3)])) == {(0, 1, 2, 3, 4)}
    assert partition(group_pictures(paths, related=[(1, 4), (3, 4)])) == {(0,), (1, 3, 4), (2,)}


def test_a_pattern_that_is_wrong_or_matches_nothing_is_an_error():
    for pattern, message in (("(", "is no regular expression"), ("z", "no file name matches 'z'; the first is a.png")):
        with pytest.raises(ValueError, match=message):
            group_pictures(["x/a.png"], pattern)


@pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="needs the picture sets of FRCNN_DATA")
@pytest.mark.parametrize(("name", "tolerance"), [("bccd", 0.015), ("cards", 0.03)])
def test_every_class_of_the_real_sets_is_split_by_the_share(name, tolerance):
    records, class_names = read_records(Path(os.environ["FRCNN_DATA"], name, "trainval.txt"))
    for seed in range(5):
        first = split_by_class(records, len(class_names), 0.8, seed)
        np.testing.assert_allclose(class_shares(records, first, len(class_names)), 0.8, atol=tolerance)
        assert abs(first.mean() - 0.8) < 0.015
