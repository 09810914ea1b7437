"""Barlow Twins' loss against its formula and others' code, and what leaves it as it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods.barlow_twins import BarlowTwins, cross_correlation_loss, off_diagonal_squares

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def standardised(view: Tensor) -> list[list[float]]:
    """Columns of a view."""
    columns = []
    for column in view.double().T.tolist():
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        columns.append([(x - mean) / math.sqrt(variance + 1e-5) for x in column])
    return columns


def slow(one: Tensor, other: Tensor, redundancy: float) -> float:
    left, right = standardised(one), standardised(other)
    total = 0.0
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            correlation = sum(x * y for x, y in zip(a, b, strict=True)) / len(a)
            total += (1 - correlation) ** 2 if i == j else redundancy * correlation**2
    return total


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 9), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, seed: int) -> None:
    online, target = draw(seed, views, n, p), 2 * draw(seed + 1, 2, n, p) + 1
    terms = [slow(online[i], target[j], 0.3) for i in range(views) for j in range(2) if i != j]
    got = BarlowTwins(out=p, redundancy=0.3, scale=0.7).loss(branch(online), branch(target))
    assert float(got) == pytest.approx(0.7 * sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_values_of_others_code() -> None:
    # solo-learn's barlow_loss_func(lamb=.0051, scale_loss=.1) on the same waves, run once.
    online, target, wide = wave(1.3, 2, 7, 4), wave(0.7, 2, 7, 4), wave(1.3, 2, 4, 9)
    for one, other, want in (
        (online, target, 0.4931528),
        (online, online, 0.2810518),
        (wide, wide, 1.3391576),
    ):
        got = BarlowTwins(out=4).loss(branch(one), branch(other))
        assert float(got) == pytest.approx(want, rel=1e-5)


@few
@given(st.integers(2, 12), st.integers(1, 12), seeds)
def test_both_ways_to_the_squares_have_one_value_and_gradient(n: int, p: int, seed: int) -> None:
    left, right = draw(seed, n, p).requires_grad_(), draw(seed + 1, n, p).requires_grad_()
    product = left.double().T @ right.double()
    want = (product * (1 - torch.eye(p))).square().sum()
    got = off_diagonal_squares(left, right)
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-4, abs=1e-3)
    for mine, other in zip(
        torch.autograd.grad(got, (left, right)), torch.autograd.grad(want, (left, right)), strict=True
    ):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-3)


def test_orders_scales_and_shifts_do_not_matter_but_rotations_do() -> None:
    online = draw(0, 2, 9, 4) + 2 * draw(2, 2, 9, 1)
    target, method = online.flip(0) + draw(1, 2, 9, 4), BarlowTwins(out=4, redundancy=1.0)
    want = float(method.loss(branch(online), branch(target)))
    samples, features = torch.arange(9).roll(4), torch.tensor([2, 0, 3, 1])
    sizes = torch.tensor([3.0, 10.0, 5.0, 8.0])
    moved = (sizes * online + 2).flip(0)[:, samples][:, :, features]
    others = (sizes.flip(0) * target - 1).flip(0)[:, samples][:, :, features]
    assert float(method.loss(branch(moved), branch(others))) == pytest.approx(want, rel=1e-4)
    turn = torch.linalg.qr(draw(3, 4, 4)).Q
    assert float(method.loss(branch(online @ turn), branch(target @ turn))) != pytest.approx(want, rel=1e-2)


def test_uncorrelated_equal_views_are_the_minimum_and_constant_ones_are_not() -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert float(cross_correlation_loss(signs, signs, 1.0)) == pytest.approx(0, abs=1e-8)
    assert float(cross_correlation_loss(signs, -signs, 1.0)) == pytest.approx(12, rel=1e-4)
    same = torch.full((4, 3), 5.0)
    assert float(cross_correlation_loss(same, same, 1.0)) == pytest.approx(3, rel=1e-6)


def test_features_that_are_all_one_are_a_minimum_without_the_redundancy_term_alone() -> None:
    one = draw(0, 200, 1) * torch.linspace(1, 3, 5)
    assert float(cross_correlation_loss(one, one, 0.0)) == pytest.approx(0, abs=1e-8)
    assert float(cross_correlation_loss(one, one, 0.1)) == pytest.approx(0.1 * 5 * 4, rel=1e-4)


def test_the_gradient_reaches_both_branches_and_no_state_is_kept() -> None:
    method = BarlowTwins(out=4)
    online, target = draw(0, 2, 6, 4).requires_grad_(), draw(1, 2, 6, 4).requires_grad_()
    method.loss(branch(online), branch(target)).backward()
    assert online.grad is not None
    assert target.grad is not None
    assert float(online.grad.abs().min()) > 0
    assert float(target.grad.abs().min()) > 0
    assert not method.state_dict()


def test_projector_has_three_layers_and_ends_bare() -> None:
    projector = BarlowTwins(hidden=16, out=8).projector(12)
    assert [type(layer) for layer in projector] == [*[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2, nn.Linear]


def test_large_images_have_their_own_scale() -> None:
    assert BarlowTwins.recipe_at(32) is BarlowTwins.recipe
    large = BarlowTwins.recipe_at(224)
    views = branch(draw(0, 2, 6, 4))
    losses = [BarlowTwins(out=4, **options).loss(views, views) for options in ({}, large.options)]
    assert float(losses[1] / losses[0]) == pytest.approx(0.48, rel=1e-5)


@pytest.mark.parametrize("options", [{"redundancy": -1.0}, {"scale": 0.0}, {"scale": math.nan}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BarlowTwins(**options)


def test_a_branch_of_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="compares 2 or more"):
        BarlowTwins(out=4).loss(branch(draw(0, 1, 6, 4)), branch(draw(1, 1, 6, 4)))
