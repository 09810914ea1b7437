"""Each loss against its paper's formula, written out slowly in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.base import unit
from tailfin.methods.byol import BYOL, cosine_regression
from tailfin.methods.mocov2plus import MoCoV2Plus, info_nce
from tailfin.methods.simclr import SimCLR, nt_xent
from tailfin.methods.simsiam import negative_cosine

sizes = st.integers(2, 7)
widths = st.integers(2, 9)
seeds = st.integers(0, 2**31 - 1)
temperatures = st.floats(0.07, 1.0)
few = settings(max_examples=25, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    length = lambda v: math.sqrt(sum(float(x) ** 2 for x in v))  # noqa: E731
    return dot / (length(a) * length(b))


def branch(first: Tensor, second: Tensor) -> Branch:
    return Branch((first, second), (first, second))


def slow_nt_xent(online: list[Tensor], target: list[Tensor], temperature: float) -> float:
    total, n = 0.0, len(online[0])
    for view in (0, 1):
        for i in range(n):
            anchor = online[view][i]
            positive = math.exp(cosine(anchor, target[1 - view][i]) / temperature)
            everything = 0.0
            for other_view in (0, 1):
                for j in range(n):
                    if (other_view, j) != (view, i):
                        everything += math.exp(cosine(anchor, target[other_view][j]) / temperature)
            total += -math.log(positive / everything)
    return total / (2 * n)


def slow_info_nce(query: Tensor, key: Tensor, negatives: list[list[Tensor]], temperature: float) -> float:
    total = 0.0
    for i in range(len(query)):
        positive = math.exp(cosine(query[i], key[i]) / temperature)
        rest = sum(math.exp(cosine(query[i], negative) / temperature) for negative in negatives[i])
        total += -math.log(positive / (positive + rest))
    return total / len(query)


@few
@given(sizes, widths, temperatures, seeds)
def test_nt_xent_is_the_formula(n: int, p: int, temperature: float, seed: int) -> None:
    z = draw(seed, 4, n, p)
    online, target = [z[0], z[1]], [z[2], z[3]]
    for other in (online, target):
        got = nt_xent(branch(z[0], z[1]), branch(other[0], other[1]), temperature)
        assert float(got) == pytest.approx(slow_nt_xent(online, other, temperature), rel=1e-4, abs=1e-5)


@few
@given(sizes, widths, seeds)
def test_cosine_regression_is_the_formula(n: int, p: int, seed: int) -> None:
    a, b = draw(seed, 2, n, p)
    want = sum(2 - 2 * cosine(a[i], b[i]) for i in range(n)) / n
    assert float(cosine_regression(a, b)) == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_byol_sums_both_directions_through_the_predictor() -> None:
    torch.manual_seed(0)
    method = BYOL(hidden=8, out=5).eval()
    z = draw(1, 4, 6, 5)
    want = cosine_regression(method.predictor(z[0]), z[3]) + cosine_regression(method.predictor(z[1]), z[2])
    torch.testing.assert_close(method.loss(branch(z[0], z[1]), branch(z[2], z[3])), want)


def test_identical_predictions_have_no_byol_loss_and_opposite_ones_the_most() -> None:
    z = draw(0, 6, 5)
    assert float(cosine_regression(z, 3 * z)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_regression(z, -z)) == pytest.approx(4, abs=1e-6)


@few
@given(sizes, widths, temperatures, st.integers(1, 9), st.integers(0, 12), seeds)
def test_info_nce_is_the_formula(
    n: int, p: int, temperature: float, slots: int, enqueued: int, seed: int
) -> None:
    query, key = draw(seed, 2, n, p)
    # Junk in the empty slots: they must count for nothing.
    queue = torch.nn.functional.normalize(draw(seed + 1, slots, p), dim=1)
    filled = list(queue[: min(slots, enqueued)])
    others = [[key[j] for j in range(n) if j != i] for i in range(n)]
    negatives = [filled] * n if filled else others
    got = info_nce(query, key, queue, torch.tensor(enqueued), temperature)
    assert float(got) == pytest.approx(slow_info_nce(query, key, negatives, temperature), rel=1e-4, abs=1e-5)


def loss_of(name: str, z: Tensor) -> Tensor:
    """The loss of the four tensors online 1, online 2, target 1, target 2; MoCo with a half-filled queue."""
    if name == "simclr":
        return SimCLR().loss(branch(z[0], z[1]), branch(z[2], z[3]))
    if name == "byol":
        return cosine_regression(z[0], z[3]) + cosine_regression(z[1], z[2])
    method = MoCoV2Plus(out=z.shape[2], queue_size=4 * z.shape[1])
    if name == "moco, queue filling":
        method.loss(branch(z[0].flip(1), z[1].flip(0)), branch(z[2], z[3]))
        method.after_step()
    return method.loss(branch(z[0], z[1]), branch(z[2], z[3]))


losses = pytest.mark.parametrize("name", ["simclr", "byol", "moco, queue empty", "moco, queue filling"])


@losses
@few
@given(n=sizes, p=widths, seed=seeds)
def test_invariant_to_view_order_rotation_and_scale(name: str, n: int, p: int, seed: int) -> None:
    z = draw(seed, 4, n, p)
    want = loss_of(name, z)
    rotation, _ = torch.linalg.qr(draw(seed + 1, p, p))
    scale = 0.1 + draw(seed + 2, 4, n, 1).abs()
    torch.testing.assert_close(loss_of(name, z[[1, 0, 3, 2]]), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss_of(name, z * scale), want, rtol=1e-4, atol=1e-4)
    if name != "moco, queue filling":  # its queue is filled from flipped coordinates
        torch.testing.assert_close(loss_of(name, z @ rotation), want, rtol=1e-4, atol=1e-4)


@losses
@few
@given(n=sizes, p=widths, seed=seeds)
def test_invariant_to_sample_order(name: str, n: int, p: int, seed: int) -> None:
    z = draw(seed, 4, n, p)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss_of(name, z[:, order]), loss_of(name, z), rtol=1e-4, atol=1e-4)


def embeddings(kind: str) -> Tensor:
    z = draw(0, 4, 6, 8)
    if kind == "identical views":
        return z[:1].expand(4, 6, 8).clone()
    if kind == "constant":
        return torch.ones(4, 6, 8)
    if kind == "zero":
        return torch.zeros(4, 6, 8)
    if kind == "some zero":
        return z * (torch.arange(6) > 2).float().unsqueeze(1)
    if kind == "huge":
        return z * 1e12
    return z[:, :2]


kinds = pytest.mark.parametrize(
    "kind", ["identical views", "constant", "zero", "some zero", "huge", "two samples"]
)


@losses
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_loss_and_gradient(name: str, kind: str, dtype: torch.dtype) -> None:
    z = embeddings(kind).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = loss_of(name, z)
    loss.backward()
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    if kind == "two samples":
        assert z.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("loss", "slope"),
    [
        (lambda rows, other: (unit(rows) * unit(other)).sum() / len(rows), 1),
        (cosine_regression, 2),
        (negative_cosine, 1),
    ],
    ids=["unit", "cosine_regression", "negative_cosine"],
)
def test_the_gradient_at_a_dead_row_is_bounded(loss: Callable[[Tensor, Tensor], Tensor], slope: int) -> None:
    # `slope` is the loss's own, along the cosine. A floor of 1e-12, torch's for normalize, gives 1e12 times that.
    rows, other = draw(0, 4, 8), draw(1, 4, 8)
    rows[1] = 0
    rows.requires_grad_()
    loss(rows, other).backward()
    assert rows.grad is not None
    size = float(rows.grad[1].norm()) * len(rows) / slope
    assert 0 < size <= 1.0001e6


@losses
def test_autocast_does_not_change_the_loss(name: str) -> None:
    z = draw(3, 4, 16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = loss_of(name, z)
    assert torch.equal(under_autocast, loss_of(name, z))


def test_byol_predictor_takes_bfloat16_with_and_without_autocast() -> None:
    torch.manual_seed(0)
    method = BYOL(hidden=16, out=8)
    z = draw(0, 4, 6, 8).bfloat16().requires_grad_()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = method.loss(branch(z[0], z[1]), branch(z[2].detach(), z[3].detach()))
        loss.backward()
        assert loss.dtype is torch.float32
        assert z.grad is not None
        assert z.grad[:2].abs().sum() > 0


@pytest.mark.parametrize("method", [SimCLR(8, 8), BYOL(8, 8), MoCoV2Plus(8, 8, queue_size=4)])
def test_one_view_is_refused(method: SimCLR | BYOL | MoCoV2Plus) -> None:
    views = (draw(0, 4, 8),)
    with pytest.raises(ValueError, match="1 views"):
        method.loss(Branch(views, views), Branch(views, views))


def test_a_queue_a_view_takes_two_targets() -> None:
    views = tuple(draw(0, 3, 4, 8))
    with pytest.raises(ValueError, match="3 views"):
        MoCoV2Plus(8, 8, queue_size=4).loss(Branch(views, views), Branch(views, views))
