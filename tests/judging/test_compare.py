"""McNemar's test against its definition, and how often it calls two equal judges different."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailfin.judging.compare import mcnemar
from tailfin.stability.verdict import LEVEL


def answers(ours: int, theirs: int, both: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    mine = torch.tensor([True] * ours + [False] * theirs + [True] * both + [False] * 3)
    other = torch.tensor([False] * ours + [True] * theirs + [True] * both + [False] * 3)
    return mine, other


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_it_is_the_tail_of_a_fair_coin(ours: int, theirs: int, both: int) -> None:
    n = ours + theirs
    want = sum(math.comb(n, k) for k in range(ours, n + 1)) / 2**n
    assert mcnemar(*answers(ours, theirs, both)) == pytest.approx(want, rel=1e-9)


def test_answers_to_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="both must be"):
        mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("images", [60, 300, 1200])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_two_equal_encoders_are_hardly_ever_called_better(images: int, alike: float) -> None:
    # A rule of two standard errors of one score called 8 % of those better that answer independently.
    draws = np.random.default_rng(0)
    called = 0
    for _ in range(2000):
        hard, same = draws.random(images), draws.random(images) < alike
        ours, theirs = (torch.from_numpy(np.where(same, hard, draws.random(images)) < 0.4) for _ in range(2))
        called += mcnemar(ours, theirs) < LEVEL
    # The exact test errs in at most 2.5 %: three standard deviations of the count above that.
    assert called / 2000 < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 2000)


def test_an_encoder_that_is_better_is_found_so() -> None:
    draws = np.random.default_rng(0)
    hard = draws.random(1200)
    found = 0
    for _ in range(200):
        noise = draws.random((2, 1200))
        ours, theirs = (torch.from_numpy(0.7 * hard + 0.3 * noise[n] < (0.45, 0.40)[n]) for n in range(2))
        found += mcnemar(ours, theirs) < LEVEL
    assert found > 180
