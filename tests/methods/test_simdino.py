"""SimDINO's distance and coding rate against their formulas, and that the rate prevents collapse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.simdino import SimDINO, coding_rate, expansion

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def slow(online: Tensor, target: Tensor, distortion: float, rate: float) -> float:
    online, target = (F.normalize(x.double(), dim=-1) for x in (online, target))
    n, p = online.shape[1:]
    distances = [
        sum(float(a - b) ** 2 for a, b in zip(online[i, k], target[j, k], strict=True)) / 2
        for i in range(len(online))
        for j in range(len(target))
        if i != j
        for k in range(n)
    ]
    rates = []
    for view in online[: len(target)]:
        covariance = torch.zeros(p, p, dtype=torch.float64)
        for row in view:
            covariance += torch.outer(row, row) / n
        eigenvalues = torch.linalg.eigvalsh(covariance).tolist()
        rates.append(sum(math.log(1 + p / distortion * max(0.0, value)) for value in eigenvalues) / 2)
    gamma = 1 / n + 1 / p
    return sum(distances) / len(distances) - rate * gamma * sum(rates) / len(rates)


@few
@given(
    st.integers(2, 4),
    st.integers(1, 9),
    st.integers(2, 9),
    st.sampled_from([0.05, 0.5]),
    st.floats(0, 3),
    seeds,
)
def test_loss_is_the_formula(views: int, n: int, p: int, distortion: float, rate: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    got = SimDINO(out=p, distortion=distortion, rate=rate).loss(branch(online), branch(target))
    assert float(got) == pytest.approx(slow(online, target, distortion, rate), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "distortion", "official"),
    [
        ((2, 5, 4), 0.5, -0.7216083),
        ((2, 5, 4), 0.05, -1.6627609),
        ((2, 3, 8), 0.5, -0.9974383),
        ((2, 3, 8), 0.05, -2.0037780),
    ],
)
def test_values_of_the_authors_code(shape: tuple[int, ...], distortion: float, official: float) -> None:
    # Their MCRLoss(2, 0, 0, distortion, 1) on the same waves, run once; it has -cos for the distance 1 - cos.
    got = SimDINO(out=shape[-1], distortion=distortion).loss(
        branch(wave(1.3, *shape)), branch(wave(0.7, *shape))
    )
    assert float(got) == pytest.approx(1 + official, abs=2e-5)


def test_rotations_orders_and_lengths_do_not_matter() -> None:
    method, online, target = SimDINO(out=4), draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    want = method.loss(branch(online), branch(target))
    turn, order = torch.linalg.qr(draw(2, 4, 4)).Q, torch.tensor([3, 0, 5, 4, 1, 2])
    got = method.loss(*(branch(3 * (views @ turn).flip(0)[:, order]) for views in (online, target)))
    assert float(got) == pytest.approx(float(want), abs=1e-5)


@pytest.mark.parametrize(("n", "p"), [(5, 9), (9, 5)])
def test_both_gram_matrices_give_one_rate_and_gradient(n: int, p: int) -> None:
    vectors = draw(0, n, p).requires_grad_()
    want = torch.logdet(torch.eye(p) + p / (0.1 * n) * vectors.T @ vectors) / 2
    got = coding_rate(vectors, 0.1)
    assert float(got.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(value, vectors)[0] for value in (got, want)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_rate_is_highest_where_directions_are_used_alike() -> None:
    even = torch.eye(4).repeat(3, 1)
    one = torch.eye(4)[:1].repeat(12, 1)
    half = torch.eye(4)[:2].repeat(6, 1)
    values = [float(expansion((views,), 0.05)) for views in (one, half, even)]
    assert values == sorted(values)
    assert values[2] == pytest.approx((1 / 12 + 1 / 4) * 4 * math.log(1 + 1 / 0.05) / 2, rel=1e-5)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_without_the_rate_the_features_collapse_and_with_it_they_spread(rate: float) -> None:
    torch.manual_seed(0)
    method = SimDINO(hidden=16, out=4, rate=rate)
    views = F.normalize(draw(0, 2, 16, 4) + 3.0, dim=-1).requires_grad_()  # a narrow cone
    optimizer = torch.optim.SGD([views], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        method.loss(branch(views), branch(views.detach())).backward()
        optimizer.step()
    rows = F.normalize(views.detach()[0], dim=1)
    length = float(rows.mean(dim=0).norm())  # 1 where all rows are one
    assert (length < 0.5) == bool(rate)


def test_small_crops_count_for_the_distance_alone() -> None:
    method, online, target = SimDINO(out=4), draw(0, 3, 6, 4), draw(1, 2, 6, 4)
    assert float(method.loss(branch(online), branch(target))) == pytest.approx(
        slow(online, target, 0.05, 1.0), abs=1e-4
    )
    assert torch.equal(
        expansion(branch(online).projections[:2], 0.05), expansion(branch(online[:2]).projections, 0.05)
    )


def test_there_is_no_state() -> None:
    assert not SimDINO(hidden=8, out=4).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "identical", "constant", "zero"])
@pytest.mark.parametrize(("n", "p"), [(2, 4), (2, 256), (8192, 8)])
def test_finite_at_the_edges(dtype: torch.dtype, kind: str, n: int, p: int) -> None:
    views = draw(0, 2, n, p)
    if kind == "identical":
        views[1] = views[0]
    elif kind != "random":
        views.fill_(float(kind == "constant"))
    online = views.to(dtype).requires_grad_()
    loss = SimDINO(out=p, distortion=1e-3).loss(branch(online), branch(online))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert online.grad is not None
    assert torch.isfinite(online.grad).all()


@pytest.mark.parametrize(("hidden", "deviation"), [(2048, 0.02), (512, 0.04), (4096, 0.02)])
def test_the_head_starts_as_published_and_wider_where_it_is_narrow(hidden: int, deviation: float) -> None:
    head = SimDINO(hidden=hidden, out=8).projector(16)
    weights = [value for name, value in head.named_parameters() if name.endswith("weight")]
    assert len(weights) == 3
    for weight in weights:
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
        if weight.numel() > 10_000:  # the authors cut at plus and minus 2, and not at two deviations
            assert float(weight.abs().max()) > 3 * deviation


def test_defaults_and_refusals() -> None:
    assert SimDINO.defaults(512, 50_000).items() >= {"hidden": 2048, "out": 256}.items()
    assert SimDINO.defaults(64, 50_000).items() >= {"hidden": 256, "out": 128}.items()
    with pytest.raises(ValueError, match="distortion"):
        SimDINO(distortion=0.0)
    with pytest.raises(ValueError, match="rate"):
        SimDINO(rate=-1.0)
