"""W-MSE's whitening and loss against their formulas and the authors' code, and batches too small to whiten."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.wmse import WMSE, whiten

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def slow_whiten(rows: list[list[float]], shrinkage: float) -> list[list[float]]:
    """By Cholesky's factor and forward substitution, entry by entry."""
    n, p = len(rows), len(rows[0])
    means = [sum(row[j] for row in rows) / n for j in range(p)]
    rows = [[row[j] - means[j] for j in range(p)] for row in rows]
    size = math.sqrt(sum(x * x for row in rows for x in row) / ((n - 1) * p) + 1e-10)
    rows = [[x / size for x in row] for row in rows]
    factor = [[0.0] * p for _ in range(p)]
    for i in range(p):
        for j in range(i + 1):
            entry = (1 - shrinkage) * sum(row[i] * row[j] for row in rows) / (n - 1) + shrinkage * (i == j)
            entry -= sum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = math.sqrt(entry) if i == j else entry / factor[j][j]
    white = []
    for row in rows:
        solved: list[float] = []
        for i in range(p):
            solved.append((row[i] - sum(factor[i][k] * solved[k] for k in range(i))) / factor[i][i])
        white.append(solved)
    return white


def slow_parts(view: Tensor, sub_batch: int, shrinkage: float) -> list[list[float]]:
    rows, count = view.double().tolist(), max(1, len(view) // sub_batch)
    white, start = [], 0
    for part in range(count):
        size = len(rows) // count + (part < len(rows) % count)
        white += slow_whiten(rows[start : start + size], shrinkage)
        start += size
    return white


def cosine(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


@few
@given(st.integers(2, 4), st.integers(2, 13), st.integers(1, 5), st.integers(2, 7), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, sub_batch: int, seed: int) -> None:
    online, target = draw(seed, views, n, p), 3 * draw(seed + 1, 2, n, p) + 1
    whites = [[slow_parts(view, sub_batch, 0.05) for view in of] for of in (online, target)]
    terms = [
        2 - 2 * cosine(one, other)
        for i in range(views)
        for j in range(2)
        if i != j
        for one, other in zip(whites[0][i], whites[1][j], strict=True)
    ]
    got = WMSE(out=p, sub_batch=sub_batch, shrinkage=0.05).loss(branch(online), branch(target))
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-3, abs=1e-4)


def test_values_of_the_authors_code() -> None:
    # htdt/self-supervised: Whitening2d(4) and norm_mse_loss on the same waves, run once; it has no shrinkage.
    online, target = wave(1.3, 2, 7, 4), wave(0.7, 2, 7, 4)
    white = whiten(online[0], 1e-7)
    want = torch.tensor([0.7929575, -1.1367190, -0.5073546, -0.7796456])
    assert torch.allclose(white[0], want, atol=1e-4)
    method = WMSE(out=4, shrinkage=1e-7)
    assert float(method.loss(branch(online), branch(online))) == pytest.approx(1.8687475, rel=1e-4)
    assert float(method.loss(branch(online), branch(target))) == pytest.approx(2.1881274, rel=1e-4)


@few
@given(st.integers(1, 8), seeds)
def test_covariances_become_the_identity(p: int, seed: int) -> None:
    white = whiten(5 * draw(seed, 40, p) @ draw(seed + 1, p, p) + 3, 1e-6)
    covariance = white.T @ white / 39
    assert torch.allclose(white.mean(dim=0), torch.zeros(p), atol=1e-3)
    # A direction of nearly no variance is left to the shrinkage.
    assert float(torch.linalg.eigvalsh(covariance).max()) < 1.05
    assert float(torch.linalg.eigvalsh(whiten(draw(seed, 40, p), 1e-6).T.cov().reshape(p, p)).min()) > 0.99


def test_orders_shifts_and_lower_triangular_maps_do_not_matter() -> None:
    online, target = draw(0, 2, 12, 4), draw(1, 2, 12, 4)
    method = WMSE(out=4, shrinkage=1e-6)
    want = float(method.loss(branch(online), branch(target)))
    samples = torch.arange(12).roll(5)
    lower = torch.eye(4) * torch.tensor([1.0, 2, 3, 1]) + torch.tril(draw(2, 4, 4), diagonal=-1)
    moved = 7 * (online @ lower.T).flip(0)[:, samples] + 3
    others = target.flip(0)[:, samples]
    assert float(method.loss(branch(moved), branch(others))) == pytest.approx(want, rel=1e-3)
    assert float(method.loss(branch(online @ draw(3, 4, 4)), branch(target))) != pytest.approx(want, rel=1e-2)


def test_sub_batches_are_whitened_by_themselves() -> None:
    views = branch(draw(0, 2, 12, 3))
    halves = [branch(torch.stack(views.projections)[:, part]) for part in (slice(0, 6), slice(6, 12))]
    whole = WMSE(out=3, sub_batch=6).loss(views, views)
    parts = [WMSE(out=3).loss(half, half) for half in halves]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert float(WMSE(out=3).loss(views, views)) != pytest.approx(float(whole), rel=1e-3)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_no_more_samples_than_features_are_whitened_to_equal_distances(count: int) -> None:
    """What is left to learn there is only where the samples lie, as the method's docstring says."""
    samples = draw(0, count, 64).requires_grad_()
    white = whiten(samples, 1e-3)
    distances = torch.cdist(white, white)[~torch.eye(count, dtype=torch.bool)].detach()
    assert torch.allclose(distances, torch.full_like(distances, math.sqrt(2 * (count - 1))), rtol=0.02)
    white[0].sum().backward()
    assert torch.isfinite(samples.grad).all()


@pytest.mark.parametrize("width", [64, 512])
def test_covariances_of_rank_one_are_factored(width: int) -> None:
    for samples in (draw(0, 32, 1) @ draw(1, 1, width), 1e4 * draw(2, 32, 1).expand(-1, width) + 1e5):
        samples = samples.clone().requires_grad_()
        white = whiten(samples, 1e-6)
        F.normalize(white, dim=1)[:, 0].sum().backward()
        assert torch.isfinite(white).all()
        assert float(white.detach().norm()) > 1
        assert torch.isfinite(samples.grad).all()


def test_shrinking_directions_is_no_way_out_of_whitening() -> None:
    """The authors' loss, without shrinkage, does not change with the scale of directions; one of 1e-3 fell to 1.3."""
    views = draw(0, 2, 64, 32)
    views[:, :, 0] = draw(1, 64)
    want = float(WMSE(out=32).loss(branch(views), branch(views)))
    for scale in (0.1, 0.01):
        small = views.clone()
        small[:, :, 1:] *= scale
        assert float(WMSE(out=32).loss(branch(small), branch(small))) == pytest.approx(want, rel=0.01)
    small[:, :, 1:] *= 0.1
    large = WMSE(out=32, shrinkage=1e-3).loss(branch(small), branch(small))
    assert float(large) < 0.7 * want


@pytest.mark.parametrize("count", [2, 5, 64, 128])
def test_a_collapsed_embedding_is_no_minimum(count: int) -> None:
    """All rows one random row: rounded in float32, their mean leaves equal deviations, which look like agreement."""
    views = draw(0, 1, 1, 32).expand(2, count, 32).clone().requires_grad_()
    loss = WMSE(out=32).loss(branch(views), branch(views))
    assert float(loss.detach()) == pytest.approx(2)
    loss.backward()
    assert torch.isfinite(views.grad).all()


def test_the_gradient_reaches_both_branches_and_no_state_is_kept() -> None:
    method = WMSE(out=4)
    online, target = draw(0, 2, 9, 4).requires_grad_(), draw(1, 2, 9, 4).requires_grad_()
    method.loss(branch(online), branch(target)).backward()
    for views in (online, target):
        assert views.grad is not None
        assert float(views.grad.abs().min()) > 0
    assert not method.state_dict()


def test_descent_aligns_views_that_cannot_collapse() -> None:
    views = draw(0, 2, 16, 3).requires_grad_()
    method = WMSE(out=3)
    optimizer = torch.optim.Adam([views], lr=0.1)
    first = float(method.loss(branch(views), branch(views)).detach())
    for _ in range(80):
        optimizer.zero_grad()
        loss = method.loss(branch(views), branch(views))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * first
    assert float(torch.linalg.svdvals(views.detach()[0] - views.detach()[0].mean(dim=0)).min()) > 0.5


def test_sub_batches_hold_twice_the_features_at_either_size() -> None:
    for recipe in (WMSE.recipe_at(32), WMSE.recipe_at(224)):
        method = WMSE(recipe.hidden, recipe.out, **recipe.options)
        assert method.sub_batch == 2 * method.out
    assert WMSE.defaults(64, 1000)["out"] == 64


@pytest.mark.parametrize("options", [{"sub_batch": 1}, {"shrinkage": 0.0}, {"shrinkage": 1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WMSE(**options)
