"""Collapse metrics against their formulas written out, and their values at the extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tailfin.stability.collapse import alignment, effective_rank, normalised_std, uniformity

few = settings(max_examples=25, deadline=None)
sizes = st.integers(2, 12)
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


@few
@given(sizes, sizes, seeds)
def test_effective_rank_is_rankme(n: int, d: int, seed: int) -> None:
    features = draw(seed, n, d)
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    entropy = 0.0
    for value in singular:
        p = value / singular.sum() + 1e-7
        entropy -= p * math.log(p)
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_effective_rank_at_the_extremes() -> None:
    assert effective_rank(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert effective_rank(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(50, 16)) == 1
    assert math.isnan(effective_rank(torch.full((4, 4), torch.nan)))


def test_effective_rank_counts_orthogonal_directions() -> None:
    basis, _ = torch.linalg.qr(draw(0, 40, 12))
    assert effective_rank(basis[:, :5] @ draw(1, 12, 12).T[:5]) <= 5.01
    assert effective_rank(basis[:, :5] @ torch.eye(12)[:5]) == pytest.approx(5, rel=1e-4)


@few
@given(sizes, sizes, seeds)
def test_normalised_std_is_the_formula(n: int, d: int, seed: int) -> None:
    features = draw(seed, n, d)
    rows = np.stack([unit(row) for row in features.double().numpy()])
    want = np.mean([math.sqrt(np.mean((rows[:, j] - rows[:, j].mean()) ** 2)) for j in range(d)]) * math.sqrt(
        d
    )
    assert normalised_std(features) == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_normalised_std_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert normalised_std(draw(0, 4000, 64)) == pytest.approx(1, abs=0.01)
    assert normalised_std(torch.ones(100, 64)) == pytest.approx(0, abs=1e-5)


@few
@given(sizes, sizes, st.floats(0.5, 3), seeds)
def test_alignment_and_uniformity_are_the_formulas(n: int, d: int, power: float, seed: int) -> None:
    first, second = draw(seed, n, d), draw(seed + 1, n, d)
    rows, others = (np.stack([unit(row) for row in z.double().numpy()]) for z in (first, second))
    want = np.mean([np.linalg.norm(a - b) ** power for a, b in zip(rows, others, strict=True)])
    assert alignment(first, second, alpha=power) == pytest.approx(want, rel=1e-4, abs=1e-6)
    pairs = [math.exp(-power * np.sum((rows[i] - rows[j]) ** 2)) for i in range(n) for j in range(i)]
    assert uniformity(first, t=power) == pytest.approx(math.log(np.mean(pairs)), rel=1e-4, abs=1e-6)


def test_uniformity_in_blocks_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    features = draw(0, 50, 6)
    want = math.log(
        float(
            torch.pdist(torch.nn.functional.normalize(features.double(), dim=1)).pow(2).mul(-2).exp().mean()
        )
    )
    assert uniformity(features) == pytest.approx(want, rel=1e-5)
    monkeypatch.setattr("tailfin.stability.collapse._MOST_SIMILARITIES", 350)
    assert uniformity(features) == pytest.approx(want, rel=1e-5)


def test_identical_embeddings_are_aligned_and_not_uniform() -> None:
    same = torch.ones(20, 4)
    assert alignment(same, same) == 0
    assert uniformity(same) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="1 samples"):
        uniformity(same[:1])
