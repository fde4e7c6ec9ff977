import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frcnn.evaluation import evaluate_classification

NAMES = ("a", "b", "c")
# True a: a, a, b; true b: b, c; nothing of class c.
LABELS = [0, 0, 0, 1, 1]
PROBABILITIES = [[0.8, 0.1, 0.1], [0.5, 0.2, 0.3], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.5, 0.0, 0.5]]


def test_a_table_by_hand():
    """Picture 4 is equally a and c: a counts. Right: 0, 1, 3, so 3/5; among the best two also 2, so 4/5."""
    result = evaluate_classification(LABELS, PROBABILITIES, NAMES, top_k=2)
    assert (result.accuracy, result.top_k, result.top_k_accuracy) == (0.6, 2, 0.8)
    assert result.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    # a: 2 of 3 predicted, 2 of 3 true; b: 1 of 2, 1 of 2; c: neither predicted nor true.
    expected = [[2 / 3, 2 / 3, 2 / 3], [0.5, 0.5, 0.5], [np.nan] * 3]
    np.testing.assert_allclose(result.per_class(), expected)
    assert result.to_table().splitlines() == [
        "accuracy 0.6000, top-2 accuracy 0.8000",
        "class        pictures  precision  recall      F1",
        "------------------------------------------------",
        "a                   3     0.6667  0.6667  0.6667",
        "b                   2     0.5000  0.5000  0.5000",
        "c                   0          -       -       -",
        "------------------------------------------------",
        "total, mean         5     0.5833  0.5833  0.5833",
    ]
    plain = result.to_dict()
    assert (plain["pictures"], plain["accuracy"], plain["top_2_accuracy"]) == (5, 0.6, 0.8)
    assert plain["classes"][2] == {"name": "c", "precision": None, "recall": None, "f1": None, "pictures": 0}


def slow_scores(labels, probabilities, k):
    """Accuracy and top-k by sorting (-probability, class) of each picture."""
    first = among = 0
    for label, row in zip(labels, probabilities):
        order = [name for _, name in sorted((-value, name) for name, value in enumerate(row))]
        first += order[0] == label
        among += label in order[:k]
    return first / len(labels), among / len(labels)


@given(
    st.integers(2, 5).flatmap(
        lambda k: st.lists(
            st.tuples(st.integers(0, k - 1), st.lists(st.integers(0, 3), min_size=k, max_size=k)),
            min_size=1,
            max_size=12,
        )
    ),
    st.integers(1, 6),
)
def test_scores_are_those_of_nested_loops(rows, top_k):
    labels, values = zip(*rows)
    count = len(values[0])
    result = evaluate_classification(labels, np.array(values, float), [str(name) for name in range(count)], top_k)
    expected = slow_scores(labels, values, top_k)
    assert (result.accuracy, result.top_k_accuracy) == pytest.approx(expected)
    assert result.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=count).tolist()
    assert result.confusion.trace() / len(labels) == pytest.approx(result.accuracy)
    assert result.accuracy <= result.top_k_accuracy <= 1


@pytest.mark.parametrize(
    ("labels", "columns", "top_k", "message"),
    [
        ([], 3, 1, r"0 labels"),
        ([0], 2, 1, r"probabilities \(1, 2\)"),
        ([3], 3, 1, "must be 0 to 2"),
        ([-1], 3, 1, "labels -1"),
        ([0], 3, 0, r"top_k \(0\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(labels, columns, top_k, message):
    with pytest.raises(ValueError, match=message):
        evaluate_classification(labels, np.zeros((len(labels), columns)), NAMES, top_k)
