"""Intervals, p-values and corrections against scipy, closed forms and simulation."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tailfin.study.results.statistics import estimate, holm, paired, slope

values = st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), min_size=2, max_size=12)


@given(values)
def test_the_interval_is_scipys(found: list[float]) -> None:
    ours = estimate(found)
    spread = stats.sem(found)
    assert ours.mean == pytest.approx(np.mean(found))
    if spread > 0:
        low, high = stats.t.interval(0.95, len(found) - 1, loc=np.mean(found), scale=spread)
        assert (ours.low, ours.high) == pytest.approx((low, high))


def test_two_values_have_the_closed_form() -> None:
    # t(0.975, 1) is tan(0.475 pi); the standard error of a and b is |a - b| / 2.
    ours = estimate([1.0, 3.0])
    half = math.tan(0.475 * math.pi)
    assert (ours.low, ours.high) == pytest.approx((2 - half, 2 + half))


@given(values, st.integers(0, 10**6))
def test_the_paired_test_is_scipys(found: list[float], seed: int) -> None:
    other = np.random.default_rng(seed).normal(0, 30, len(found))
    ours = paired(dict(enumerate(found)), dict(enumerate(other)))
    theirs = stats.ttest_rel(found, other)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.left_out == 0


def test_pairs_are_made_by_seed_and_the_others_are_counted() -> None:
    ours = paired({0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}, {1: 1.0, 2: 2.0, 9: -100.0})
    assert (ours.mean, ours.n, ours.left_out) == (5.5, 2, 3)


@pytest.mark.parametrize(
    ("arm", "control", "words", "sign"),
    [
        ({0: 1.0, 1: 1.1, 2: 0.9}, {0: 0.0, 1: 0.0, 2: 0.0}, "higher", 1),
        ({0: -1.0, 1: -1.1, 2: -0.9}, {0: 0.0, 1: 0.0, 2: 0.0}, "lower", -1),
        ({0: 1.0, 1: -1.0, 2: 0.5}, {0: 0.0, 1: 0.0, 2: 0.0}, "no difference found", 0),
        ({0: 1.0}, {0: 0.0, 1: 0.0}, "one seed: no interval", None),
        ({0: 1.0}, {1: 0.0}, "no common seed", None),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "no difference found", 0),
    ],
)
def test_a_difference_in_words(
    arm: dict[int, float], control: dict[int, float], words: str, sign: int | None
) -> None:
    found = paired(arm, control)
    assert (found.words, found.sign) == (words, sign)
    if found.n < 2:
        assert (found.low, found.high, found.p) == (None, None, None)


def test_identical_values_are_no_difference_and_a_constant_one_is() -> None:
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).p == 0.0


@pytest.mark.parametrize("n", [2, 3, 5])
def test_95_of_100_intervals_hold_the_truth(n: int) -> None:
    draws, truth = 4000, 0.7
    sample = np.random.default_rng(n).normal(truth, 2.0, (draws, n))
    held = 0
    for row in sample:
        ours = estimate(row.tolist())
        assert ours.low is not None
        assert ours.high is not None
        held += ours.low <= truth <= ours.high
    # A binomial share: five standard errors either way.
    assert abs(held / draws - 0.95) < 5 * math.sqrt(0.95 * 0.05 / draws)


def slow_holm(p: list[float]) -> list[float]:
    """Straight from the definition: the largest correction of all p-values up to and including its own."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [
        max(min(1.0, (len(p) - rank) * p[i]) for rank, i in enumerate(order[: order.index(place) + 1]))
        for place in range(len(p))
    ]


@given(st.lists(st.floats(0, 1), max_size=12, unique=True))
def test_holm_by_its_definition(p: list[float]) -> None:
    assert holm(p) == pytest.approx(slow_holm(p))


def test_holm_leaves_out_what_has_no_p_value() -> None:
    assert holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])


def test_holm_keeps_the_chance_of_any_false_alarm() -> None:
    rng, alarms, draws = np.random.default_rng(0), 0, 2000
    for _ in range(draws):
        z = rng.normal(size=8)
        p = [2 * (1 - NormalDist().cdf(abs(each))) for each in z]
        alarms += any(each is not None and each < 0.05 for each in holm(p))
    assert alarms / draws < 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_the_slope_is_least_squares() -> None:
    x, y = [0.0, 1.0, 2.0, 5.0], [1.0, 3.5, 4.0, 12.0]
    assert slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope([1.0, 1.0], [0.0, 2.0]) is None
