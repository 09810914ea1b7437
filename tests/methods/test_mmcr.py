"""MMCR's loss against its formula and the authors' code, and what it says of runs that diverged."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods.mmcr import MMCR, mmcr_loss, nuclear_norm

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def units(views: Tensor) -> list[list[list[float]]]:
    return [[[x / math.hypot(*row) for x in row] for row in view] for view in views.double().tolist()]


def slow_norm(rows: list[list[float]]) -> float:
    """Singular values as square roots of the eigenvalues of the products of rows."""
    products = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    values = torch.linalg.eigvalsh(torch.tensor(products, dtype=torch.float64))
    return float(sum(math.sqrt(max(0.0, value)) for value in values.tolist()))


def slow(online: Tensor, target: Tensor, local: float) -> float:
    first, second = units(online), units(target)
    n, p = online.shape[1:]
    both = [*first, *second]
    centres = [[sum(view[k][c] for view in both) / len(both) for c in range(p)] for k in range(n)]
    return -slow_norm(centres) + local * sum(slow_norm([view[k] for view in first]) for k in range(n)) / n


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 9), st.sampled_from([0.0, 0.3]), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, local: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    got = MMCR(out=p, local=local).loss(branch(online), branch(target))
    assert float(got) == pytest.approx(slow(online, target, local), rel=1e-4, abs=1e-4)


def test_values_of_the_authors_code() -> None:
    # ThomasYerxa/mmcr: MMCR_Loss(0, 2), MMCR_Loss(.1, 2) and MMCR_Momentum_Loss(.1, 2) on the same waves, run once.
    online, target = branch(wave(1.3, 2, 7, 4)), branch(wave(0.7, 2, 7, 4))
    assert float(MMCR(out=4).loss(online, online)) == pytest.approx(-3.5225973, rel=1e-5)
    assert float(MMCR(out=4, local=0.1).loss(online, online)) == pytest.approx(-3.3298650, rel=1e-5)
    assert float(MMCR(out=4, local=0.1).loss(online, target)) == pytest.approx(-1.9947298, rel=1e-5)


def test_orders_lengths_and_rotations_do_not_matter() -> None:
    online, target = draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    turn, samples = torch.linalg.qr(draw(2, 4, 4)).Q, torch.arange(6).roll(2)
    moved, others = (3 * (views @ turn).flip(0)[:, samples] for views in (online, target))
    want = float(mmcr_loss(online, target, 0.2))
    assert float(mmcr_loss(moved, others, 0.2)) == pytest.approx(want, rel=1e-4)
    equal = online[:1].expand(2, -1, -1)
    wrong = torch.stack((online[0], online[0, samples]))  # the same vectors, given to other images
    assert float(mmcr_loss(wrong, wrong, 0.0)) > 0.9 * float(mmcr_loss(equal, equal, 0.0))


@pytest.mark.parametrize(("n", "p"), [(8, 4), (4, 8), (4, 4)])
def test_the_minimum_is_equal_views_spread_evenly_and_collapse_is_far_from_it(n: int, p: int) -> None:
    """N unit rows in P directions have a nuclear norm of sqrt(N min(N, P)) at most, sqrt(N) where all agree."""
    spread = torch.eye(max(n, p))[:n, :p] if n <= p else torch.eye(p).repeat(n // p, 1)
    best = float(mmcr_loss(spread.expand(2, -1, -1), spread.expand(2, -1, -1), 0.0))
    assert best == pytest.approx(-math.sqrt(n * min(n, p)), rel=1e-5)
    same = torch.ones(2, n, p)
    assert float(mmcr_loss(same, same, 0.0)) == pytest.approx(-math.sqrt(n), rel=1e-5)
    for seed in range(20):
        views = draw(seed, 2, n, p)
        assert float(mmcr_loss(views, views, 0.0)) > best


def test_the_gradient_is_the_orthogonal_factor() -> None:
    matrix = draw(0, 6, 4).requires_grad_()
    nuclear_norm(matrix).backward()
    left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    assert matrix.grad is not None
    assert torch.allclose(matrix.grad, left @ right, atol=1e-5)
    for singular in (torch.zeros(6, 4), torch.ones(6, 4), torch.eye(4)):
        rows = singular.clone().requires_grad_()
        nuclear_norm(rows).backward()
        assert rows.grad is not None
        assert float(torch.linalg.matrix_norm(rows.grad, ord=2)) <= 1 + 1e-4


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_run_that_diverged_has_a_loss_that_is_not_a_number(broken: float) -> None:
    views = draw(0, 2, 6, 4)
    views[0, 0, 0] = broken
    assert math.isnan(float(MMCR(out=4, local=0.1).loss(branch(views), branch(views))))


def test_the_gradient_reaches_both_branches_and_no_state_is_kept() -> None:
    method = MMCR(out=4)
    online, target = draw(0, 2, 6, 4).requires_grad_(), draw(1, 2, 6, 4).requires_grad_()
    method.loss(branch(online), branch(target)).backward()
    for views in (online, target):
        assert views.grad is not None
        assert float(views.grad.abs().min()) > 0
    assert not method.state_dict()


def test_projector_has_as_many_layers_as_were_published_at_the_size() -> None:
    for recipe, blocks in ((MMCR.recipe_at(32), 1), (MMCR.recipe_at(224), 2)):
        projector = MMCR(16, 8, **recipe.options).projector(12)
        assert [type(layer) for layer in projector] == [
            *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * blocks,
            nn.Linear,
        ]
        assert projector[-1].bias is None  # rows are not centred: a bias would count


def test_without_momentum_every_view_counts_once_in_multi_crop() -> None:
    views = draw(0, 4, 6, 4)
    online = branch(views)
    got = MMCR(out=4, local=0.1).loss(online, online.first(2))
    assert float(got) == pytest.approx(slow(views, views[:0], 0.1), rel=1e-4)


@pytest.mark.parametrize("options", [{"local": -1.0}, {"layers": 1}, {"layers": 4}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MMCR(**options)
