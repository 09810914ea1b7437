"""kNN against scikit-learn and a vote written out slowly."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from tailfin.judging import knn
from tailfin.judging.knn import knn_accuracy, nearest


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_vote(train: Tensor, labels: Tensor, query: Tensor, k: int, temperature: float) -> int:
    cosines = [
        float(row.double() @ query.double() / row.double().norm() / query.double().norm()) for row in train
    ]
    votes: dict[int, float] = {}
    for i in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
        votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosines[i] / temperature)
    return max(votes, key=lambda label: votes[label])


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 30),
    d=st.integers(2, 6),
    k=st.integers(1, 40),
    temperature=st.floats(0.05, 1),
    seed=st.integers(0, 10_000),
)
def test_the_vote_is_the_formula(n: int, d: int, k: int, temperature: float, seed: int) -> None:
    train, test = draw(seed, n, d), draw(seed + 1, 9, d)
    labels = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed)) * 10
    want = torch.tensor([slow_vote(train, labels, query, k, temperature) for query in test])
    # Where the labels are those of the slow vote, the fast one must be right everywhere.
    assert knn_accuracy(train, labels, test, want, k=k, temperature=temperature) == 100


def test_accuracy_is_in_percent() -> None:
    train = torch.eye(4)
    labels = torch.arange(4)
    assert knn_accuracy(train, labels, train, torch.tensor([0, 1, 2, 9]), k=1) == 75


def test_neighbours_are_those_of_scikit_learn_in_any_number_of_chunks() -> None:
    train, query = draw(0, 300, 16), draw(1, 100, 16)
    distance, index = (
        NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(train).kneighbors(query)
    )
    for most in (1, 300 * 7, knn._MOST_SIMILARITIES):
        with mock.patch.object(knn, "_MOST_SIMILARITIES", most):
            similarity, found = nearest(train, query, 7)
        assert torch.equal(found, torch.from_numpy(index))
        torch.testing.assert_close(
            similarity.double(), 1 - torch.from_numpy(distance).double(), atol=1e-6, rtol=0
        )


def test_tiny_temperature_does_not_overflow() -> None:
    train, labels = draw(0, 50, 8), torch.arange(50) % 5
    cold = knn_accuracy(train, labels, draw(1, 40, 8), labels[:40], k=20, temperature=1e-4)
    assert cold == knn_accuracy(train, labels, draw(1, 40, 8), labels[:40], k=1)


def test_half_precision_and_zero_features_are_judged() -> None:
    train, labels = torch.cat((draw(0, 20, 8), torch.zeros(5, 8))).bfloat16(), torch.arange(25) % 2
    assert 0 <= knn_accuracy(train, labels, torch.zeros(3, 8).bfloat16(), labels[:3]) <= 100


@pytest.mark.parametrize(
    ("train", "query", "k", "words"),
    [((3, 2), (1, 2), 0, "k = 0"), ((0, 2), (1, 2), 1, "at least one"), ((3, 2), (1, 4), 1, "same D")],
)
def test_impossible_input_is_refused(
    train: tuple[int, int], query: tuple[int, int], k: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        nearest(torch.ones(*train), torch.ones(*query), k)
