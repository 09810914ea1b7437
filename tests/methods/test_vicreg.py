"""VICReg's loss against its formula and others' code, and what leaves it as it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods.vicreg import VICReg, covariance_loss, spread_loss

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def covariances(view: Tensor) -> list[list[float]]:
    columns = view.double().T.tolist()
    centred = [[x - sum(column) / len(column) for x in column] for column in columns]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) / (len(a) - 1) for b in centred] for a in centred]


def slow(one: Tensor, other: Tensor, weights: tuple[float, float, float]) -> float:
    invariance, variance, covariance = weights
    p = one.shape[1]
    flat = zip(one.double().flatten().tolist(), other.double().flatten().tolist(), strict=True)
    total = invariance * sum((x - y) ** 2 for x, y in flat) / one.numel()
    for view in (one, other):
        matrix = covariances(view)
        total += variance * sum(max(0.0, 1 - math.sqrt(matrix[i][i] + 1e-4)) for i in range(p)) / p
        total += covariance * sum(matrix[i][j] ** 2 for i in range(p) for j in range(p) if i != j) / p
    return total


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 9), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, seed: int) -> None:
    online, target = draw(seed, views, n, p), 0.3 * draw(seed + 1, 2, n, p) + 1
    weights = 3.0, 5.0, 0.7
    terms = [slow(online[i], target[j], weights) for i in range(views) for j in range(2) if i != j]
    method = VICReg(out=p, invariance=weights[0], variance=weights[1], covariance=weights[2])
    got = method.loss(branch(online), branch(target))
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_values_of_others_code() -> None:
    # solo-learn's vicreg_loss_func(25, 25, 1) on the same waves, run once.
    online, target, wide = wave(1.3, 2, 7, 4), wave(0.7, 2, 7, 4), wave(1.3, 2, 4, 9)
    for one, other, want in ((online, target, 39.7804947), (wide, wide, 36.8567772)):
        got = VICReg(out=4).loss(branch(one), branch(other))
        assert float(got) == pytest.approx(want, rel=1e-5)


def test_orders_shifts_and_signs_do_not_matter_but_scales_do() -> None:
    online, target = draw(0, 2, 9, 4), draw(1, 2, 9, 4)
    method = VICReg(out=4)
    want = float(method.loss(branch(online), branch(target)))
    samples, features = torch.arange(9).roll(4), torch.tensor([2, 0, 3, 1])
    signs, shift = torch.tensor([1.0, -1, -1, 1]), torch.tensor([3.0, 0, -2, 1])
    moved, others = ((signs * x + shift).flip(0)[:, samples][:, :, features] for x in (online, target))
    assert float(method.loss(branch(moved), branch(others))) == pytest.approx(want, rel=1e-4)
    assert float(method.loss(branch(2 * online), branch(2 * target))) > 1.5 * want


def test_the_terms_where_they_are_known() -> None:
    signs = torch.tensor(
        [[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    )  # variances 4 / 3, no covariance
    assert float(spread_loss(signs)) == 0
    assert float(covariance_loss(signs)) == pytest.approx(0, abs=1e-12)
    same = torch.full((4, 3), 5.0)
    assert float(spread_loss(same)) == pytest.approx(0.99, abs=1e-6)
    assert float(covariance_loss(same)) == 0
    twins = signs[:, :1].expand(-1, 3)
    assert float(covariance_loss(twins)) == pytest.approx(2 * (4 / 3) ** 2, rel=1e-6)


def test_collapse_is_left_again() -> None:
    """From nearly constant projections plain descent on the loss spreads every feature."""
    views = (5 + 1e-3 * draw(0, 2, 16, 4)).requires_grad_()
    method = VICReg(out=4)
    optimizer = torch.optim.SGD([views], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        method.loss(branch(views), branch(views)).backward()
        optimizer.step()
    assert float(views.detach().std(dim=1).min()) > 0.9


def test_the_gradient_reaches_both_branches_and_no_state_is_kept() -> None:
    method = VICReg(out=4)
    online, target = draw(0, 2, 6, 4).requires_grad_(), draw(1, 2, 6, 4).requires_grad_()
    method.loss(branch(online), branch(target)).backward()
    for views in (online, target):
        assert views.grad is not None
        assert float(views.grad.abs().min()) > 0
    assert not method.state_dict()


def test_projector_has_three_layers_and_ends_bare() -> None:
    projector = VICReg(hidden=16, out=8).projector(12)
    assert [type(layer) for layer in projector] == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear]


def test_large_images_have_the_loss_of_the_authors_code() -> None:
    # facebookresearch/vicreg: 25 mse + 25 / 2 (v + v') + (c + c').
    one, other = draw(0, 6, 4), draw(1, 6, 4)
    views = branch(torch.stack((one, other)))
    got = VICReg(out=4, **VICReg.recipe_at(224).options).loss(views, views)
    assert float(got) == pytest.approx(slow(one, other, (25, 12.5, 1)), rel=1e-5)


@pytest.mark.parametrize("option", ["invariance", "variance", "covariance"])
@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_impossible_weights_are_refused(option: str, weight: float) -> None:
    with pytest.raises(ValueError, match=option):
        VICReg(**{option: weight})
