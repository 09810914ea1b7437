"""Splits and subsets are partitions, stratified, and the same for the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailfin.data import validation_split
from tailfin.data.split import random_subset

labellings = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(torch.tensor)


@given(labellings, st.floats(0.01, 0.99), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_validation_split_is_a_stratified_partition(labels, fraction, seed):
    fit, held = validation_split(labels, fraction, seed)
    assert torch.equal(torch.cat([fit, held]).sort().values, torch.arange(len(labels)))
    for label in labels.unique():
        size, taken = int((labels == label).sum()), int((labels[held] == label).sum())
        assert taken == min(max(1, round(fraction * size)), size - 1)
    assert all(
        torch.equal(a, b) for a, b in zip((fit, held), validation_split(labels, fraction, seed), strict=True)
    )


def test_another_seed_gives_another_split():
    labels = torch.zeros(100, dtype=torch.int64)
    assert not torch.equal(validation_split(labels, 0.2, 0)[1], validation_split(labels, 0.2, 1)[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_outside_the_open_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        validation_split(torch.zeros(4, dtype=torch.int64), fraction, 0)


@given(labellings, st.integers(1, 90), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_random_subset_keeps_the_class_shares_within_one(labels, limit, seed):
    index = random_subset(len(labels), limit, seed, labels)
    assert len(index) == min(limit, len(labels))
    assert (index.diff() > 0).all()
    for label in labels.unique():
        share = int((labels == label).sum()) * len(index) / len(labels)
        assert abs(int((labels[index] == label).sum()) - share) < 1 + len(labels.unique()) / 2


def test_random_subset_of_equal_classes_is_exact():
    labels = torch.arange(1000) % 10
    assert labels[random_subset(1000, 200, 3, labels)].bincount().tolist() == [20] * 10


def test_random_subset_without_labels_is_random_and_reproducible():
    first, second = random_subset(1000, 100, 0), random_subset(1000, 100, 1)
    assert torch.equal(first, random_subset(1000, 100, 0))
    assert len(set(first.tolist()) & set(second.tolist())) < 30
