import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frcnn.ops.sampling import random_uniform, sample_indices
from tests.oracles.sampling import uniform
from tests.oracles.tensors import array, bound, compiled, tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def draw(kinds, seeds, count, fraction):
    """Sample from (B, N) kinds; the result's contract is asserted on the way."""
    kinds = np.atleast_2d(kinds)
    sample = bound(sample_indices, count=count, positive_fraction=fraction)
    candidates = tensor(kinds == POSITIVE, "bool"), tensor(kinds == NEGATIVE, "bool")
    indices, valid = array(sample(*candidates, tensor(seeds, "int32")))
    assert (indices.shape, indices.dtype, valid.shape, valid.dtype) == (
        valid.shape,
        np.int32,
        (len(kinds), count),
        bool,
    )
    assert (indices[~valid] == 0).all()
    assert (valid[:, :-1] >= valid[:, 1:]).all(), "filled slots come first"
    return indices, valid


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 - 1, -(2**31), 123456789])
def test_numbers_equal_the_hash_in_unbounded_integers(seed):
    numbers = array(random_uniform(tensor([seed], "int32"), 50))
    assert numbers.dtype == np.float32
    assert numbers[0].tolist() == uniform(seed, 50)


def test_numbers_are_uniform_and_seeds_independent():
    numbers = array(random_uniform(tensor(np.arange(100), "int32"), 1000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    deciles = np.histogram(numbers, 10, (0, 1))[0]
    assert abs(deciles - 10_000).max() < 5 * np.sqrt(10_000 * 0.9)
    assert abs(np.corrcoef(numbers)[np.triu_indices(100, 1)]).max() < 0.17  # 5 deviations of 1 / sqrt(1000)
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02


@settings(max_examples=100, deadline=None)
@given(
    kinds=arrays(np.int8, (2, 20), elements=st.sampled_from([POSITIVE, NEGATIVE, IGNORED])),
    seed=st.integers(-(2**31), 2**31 - 2),
    count=st.sampled_from([4, 10, 32]),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_count_and_fraction_are_kept_and_nothing_else_is_drawn(kinds, seed, count, fraction):
    indices, valid = draw(kinds, [seed, seed + 1], count, fraction)
    for picture, chosen, filled in zip(kinds, indices, valid, strict=True):
        drawn = picture[chosen[filled]].tolist()
        positives = min((picture == POSITIVE).sum(), int(count * fraction))
        negatives = min((picture == NEGATIVE).sum(), count - positives)
        assert drawn == [POSITIVE] * positives + [NEGATIVE] * negatives
        assert len(set(chosen[filled])) == filled.sum(), "nothing is drawn twice"


def test_missing_positives_are_replaced_by_negatives_never_the_other_way():
    few_positives = [POSITIVE] * 2 + [NEGATIVE] * 98
    few_negatives = [POSITIVE] * 98 + [NEGATIVE] * 2
    assert draw(few_positives, [7], 32, 0.5)[1].sum() == 32
    assert draw(few_negatives, [7], 32, 0.5)[1].sum() == 18


@pytest.mark.parametrize("kind", [IGNORED, None], ids=["all ignored", "no candidate at all"])
def test_nothing_to_draw_gives_empty_slots(kind):
    indices, valid = draw(np.full((2, 0 if kind is None else 9), IGNORED), [1, 2], 8, 0.5)
    assert not valid.any()
    assert not indices.any()


def test_the_same_seed_draws_the_same_and_each_seed_its_own():
    kinds = np.tile([POSITIVE] * 50 + [NEGATIVE] * 200, (3, 1))
    indices, _ = draw(kinds, [5, 6, 5], 32, 0.5)
    again, _ = draw(kinds, [6, 5, 99], 32, 0.5)
    assert (indices[0] == indices[2]).all()
    assert (indices[:2] == again[1::-1]).all()
    assert len(set(indices[0]) & set(indices[1])) < 20


def test_every_candidate_is_drawn_about_as_often():
    """2000 seeds draw 4 of 16 positives, 12 of 48 negatives: each 500 times, deviation sqrt(2000 * 1/4 * 3/4) = 19."""
    kinds = np.tile([POSITIVE] * 16 + [NEGATIVE] * 48, (2000, 1))
    indices, valid = draw(kinds, np.arange(2000), 16, 0.25)
    assert valid.all()
    assert abs(np.bincount(indices.ravel(), minlength=64) - 500).max() < 5 * 19


def test_those_with_the_highest_numbers_are_drawn_on_every_backend():
    kinds = np.random.default_rng(1).integers(-1, 2, 100)
    by_number = np.argsort(-np.asarray(uniform(42, 100)))
    positives, negatives = ([i for i in by_number if kinds[i] == kind] for kind in (POSITIVE, NEGATIVE))
    assert draw(kinds, [42], 16, 0.25)[0][0].tolist() == positives[:4] + negatives[:12]


def test_compiled_with_free_sizes_draws_the_same():
    kinds = np.random.default_rng(0).integers(-1, 2, (2, 300))
    arguments = tensor(kinds == 1, "bool"), tensor(kinds == 0, "bool"), tensor([1, 2], "int32")
    indices, valid = compiled(lambda *inputs: sample_indices(*inputs, 64, 0.5), *arguments)
    expected = draw(kinds, [1, 2], 64, 0.5)
    assert (indices == expected[0]).all()
    assert (valid == expected[1]).all()
