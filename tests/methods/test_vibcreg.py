"""VIbCReg's loss and its IterNorm against their formulas and others' code."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tailfin import MomentumEncoder
from tailfin.branch import Branch
from tailfin.methods.vibcreg import IterNorm, VIbCReg, correlation_loss, inverse_square_root

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
        c = covariances(view)
        total += variance * sum(max(0.0, 1 - math.sqrt(c[i][i] + 1e-4)) for i in range(p)) / p
        squares = [c[i][j] ** 2 / (c[i][i] * c[j][j]) for i in range(p) for j in range(p) if i != j]
        total += covariance * sum(squares) / p**2
    return total


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 9), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, seed: int) -> None:
    online, target = draw(seed, views, n, p), 0.3 * draw(seed + 1, 2, n, p) + 1
    weights = 3.0, 5.0, 70.0
    terms = [slow(online[i], target[j], weights) for i in range(views) for j in range(2) if i != j]
    method = VIbCReg(out=p, invariance=weights[0], variance=weights[1], covariance=weights[2])
    assert float(method.loss(branch(online), branch(target))) == pytest.approx(
        sum(terms) / len(terms), rel=1e-3
    )


def test_values_of_others_code() -> None:
    # solo-learn's vibcreg_loss_func(25, 25, 200) on the same waves, run once.
    online, target, wide = wave(1.3, 2, 7, 4), wave(0.7, 2, 7, 4), wave(1.3, 2, 4, 9)
    for one, other, want in ((online, target, 72.6028709), (wide, wide, 137.0760651)):
        got = VIbCReg(out=4).loss(branch(one), branch(other))
        assert float(got) == pytest.approx(want, rel=1e-5)


def test_correlations_do_not_depend_on_sizes_shifts_and_orders() -> None:
    view = draw(0, 9, 4) + 2 * draw(1, 9, 1)
    want = float(correlation_loss(view))
    moved = (view * torch.tensor([1.0, -20, 0.3, 5]) + 7).flip(1).roll(4, dims=0)
    assert float(correlation_loss(moved)) == pytest.approx(want, rel=1e-3)
    twins = view[:, :1].expand(-1, 4)
    assert float(correlation_loss(twins)) == pytest.approx(12 / 16, rel=1e-5)
    assert float(correlation_loss(twins.repeat(1, 8))) == pytest.approx(32 * 31 / 32**2, rel=1e-5)


def iter_norm(features: int, size: int) -> IterNorm:
    class Groups(IterNorm):
        SIZE = size

    return Groups(features)


def test_iter_norm_is_that_of_others_code() -> None:
    # solo-learn's IterNorm(6, num_groups=2) on the same wave, run once.
    norm, x = iter_norm(6, 3), wave(1.3, 5, 6).requires_grad_()
    out = norm(x)
    (out * wave(0.7, 5, 6)).sum().backward()
    assert x.grad is not None
    for got, want in (
        (out[0], [0.9943159, -0.8481702, -0.2125652, 1.0423131, 1.0251261, -0.5471274]),
        (x.grad[1], [-0.0573777, 0.2390640, 0.3903773, 1.3425369, -0.3725154, -0.6924138]),
        (norm.running_mean, [0.0301097, -0.0391238, -0.0391978, 0.0306539, 0.0094186, 0.0288543]),
        (norm.running_whitening[1, 0], [1.2137592, -0.1071958, -0.2139201]),
        (norm.running_whitening[1, 2], [-0.2139203, 0.0873017, 1.2183588]),
        (norm.eval()(x)[2], [-0.3429542, -0.3252093, -0.4123248, -0.2266818, -1.0356977, 0.2047032]),
    ):
        assert torch.allclose(got, torch.tensor(want), rtol=1e-4, atol=1e-5)


@few
@given(st.integers(1, 6), st.integers(0, 5), seeds)
def test_iteration_works_on_each_eigenvalue(size: int, iterations: int, seed: int) -> None:
    rows = draw(seed, 2, 20, size)
    covariance = rows.transpose(1, 2) @ rows / 20
    got = inverse_square_root(covariance, 1e-5, iterations)
    for group in range(2):
        values, vectors = torch.linalg.eigh(covariance[group].double())
        values = values + 1e-5
        roots = []
        for value in values.tolist():
            share, root = value / float(values.sum()), 1.0
            for _ in range(iterations):
                root = 1.5 * root - 0.5 * root**3 * share
            roots.append(root / math.sqrt(float(values.sum())))
        want = vectors @ torch.diag(torch.tensor(roots, dtype=torch.float64)) @ vectors.T
        assert torch.allclose(got[group].double(), want, rtol=1e-3, atol=1e-4)


def test_groups_are_whitened_each_by_itself() -> None:
    """Five iterations bring a good covariance near the identity; features of two groups stay correlated."""
    x = draw(0, 400, 2)
    norm = iter_norm(4, 2)
    white = norm(torch.cat((x @ torch.tensor([[2.0, 0.5], [0.0, 1.0]]) + 3, x), dim=1)).detach()
    covariance = white.T @ white / 400
    for group in (slice(0, 2), slice(2, 4)):
        assert torch.allclose(covariance[group, group], torch.eye(2), atol=0.02)
    assert float(covariance[:2, 2:].abs().max()) > 0.9
    assert torch.allclose(white.mean(dim=0), torch.zeros(4), atol=1e-5)


@pytest.mark.parametrize(("features", "size"), [(2048, 32), (128, 32), (48, 24), (37, 1), (7, 7)])
def test_groups_divide_the_features(features: int, size: int) -> None:
    assert IterNorm(features).running_whitening.shape == (features // size, size, size)


def test_running_averages_move_in_training_alone_and_are_kept() -> None:
    norm = iter_norm(6, 3)
    norm(draw(0, 8, 6))
    state = copy.deepcopy(norm.state_dict())
    assert not torch.equal(state["running_mean"], torch.zeros(6))
    twin = iter_norm(6, 3)
    twin.load_state_dict(state)
    x = draw(1, 8, 6)
    assert torch.equal(norm.eval()(x), twin.eval()(x))
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())


def test_a_target_path_leaves_the_online_averages_alone() -> None:
    """With momentum on the first part alone the target runs through the online projector."""
    results = []
    for placement in ("none", "stem"):
        torch.manual_seed(0)
        parts = nn.Sequential()
        parts.add_module("stem", nn.Linear(8, 10))
        encoder = MomentumEncoder(
            parts, projector=VIbCReg(hidden=12, out=6).projector(10), placement=placement
        )
        encoder([draw(1, 16, 8), draw(2, 16, 8)])
        results.append(dict(encoder.part("projector").named_buffers()))
    assert "7.running_whitening" in results[0]
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 5, 64])
def test_iter_norm_of_constant_and_huge_inputs_is_finite(count: int, dtype: torch.dtype) -> None:
    for x in (torch.zeros(count, 32), torch.full((count, 32), 7.0), 1e4 * draw(0, count, 32)):
        x = x.to(dtype).requires_grad_()
        out = IterNorm(32)(x)
        out.square().sum().backward()
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()
        assert torch.isfinite(x.grad).all()


def test_projector_ends_in_iter_norm() -> None:
    projector = VIbCReg(hidden=16, out=8).projector(12)
    assert [type(layer) for layer in projector] == [
        *[nn.Linear, nn.BatchNorm1d, nn.GELU] * 2,
        nn.Linear,
        IterNorm,
    ]


@pytest.mark.parametrize("option", ["invariance", "variance", "covariance"])
def test_impossible_weights_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        VIbCReg(**{option: -1.0})
