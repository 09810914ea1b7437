"""DCL's loss against its formula, others' code and SimCLR's loss, and what a batch of one image would do to it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.dcl import DCL, decoupled, mises_fisher
from tailfin.methods.simclr import nt_xent

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def slow(online: Tensor, target: Tensor, temperature: float, sigma: float) -> float:
    online, target = F.normalize(online.double(), dim=-1), F.normalize(target.double(), dim=-1)
    n, terms = online.shape[1], []
    for i in range(len(online)):
        for j in range(len(target)):
            if i == j:
                continue
            alike = [float(online[i, k] @ target[j, k]) for k in range(n)]
            for k in range(n):
                odds = 0.0
                for view in target:
                    for other in range(n):
                        if other != k:
                            odds += math.exp(float(online[i, k] @ view[other]) / temperature)
                weight = 1.0
                if sigma:
                    weight = 2 - math.exp(alike[k] / sigma) / (sum(math.exp(c / sigma) for c in alike) / n)
                terms.append(math.log(odds) - weight * alike[k] / temperature)
    return sum(terms) / len(terms)


@few
@given(
    st.integers(2, 4),
    st.integers(2, 6),
    st.integers(2, 9),
    st.floats(0.07, 2),
    st.sampled_from([0, 0.5]),
    seeds,
)
def test_loss_is_the_formula(views: int, n: int, p: int, temperature: float, sigma: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    got = decoupled(branch(online), branch(target), temperature, sigma)
    assert float(got) == pytest.approx(slow(online, target, temperature, sigma), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("sigma", "want"), [(0.0, 1.1044159), (0.5, 1.1074937)])
def test_values_of_others_code(sigma: float, want: float) -> None:
    # The mean of both directions of DCL and DCLW in raminnakhli/Decoupled-Contrastive-Learning loss/dcl.py, and
    # of lightly's DCLLoss and DCLWLoss, whose values agree, on the same waves at temperature .1; run once.
    views = branch(wave(1.3, 2, 6, 8))
    assert float(DCL(sigma=sigma).loss(views, views)) == pytest.approx(want, rel=1e-5)


@few
@given(st.integers(2, 6), st.integers(2, 6), seeds)
def test_an_anchors_gradient_is_nt_xents_without_the_coupling(n: int, p: int, seed: int) -> None:
    # NT-Xent's is multiplied by 1 - p, the negatives' share of the softmax: what the paper takes out.
    online, target = draw(seed, 2, n, p).requires_grad_(), draw(seed + 1, 2, n, p)
    free, coupled = (
        torch.autograd.grad(loss(branch(online), branch(target), 0.3), online)[0]
        for loss in (decoupled, nt_xent)
    )
    anchors, keys = F.normalize(online.detach(), dim=-1), F.normalize(target, dim=-1)
    for view in range(2):
        for k in range(n):
            positive = math.exp(float(anchors[view, k] @ keys[1 - view, k]) / 0.3)
            rest = [keys[v, m] for v in range(2) for m in range(n) if m != k]
            negatives = sum(math.exp(float(anchors[view, k] @ key) / 0.3) for key in rest)
            want = negatives / (positive + negatives) * free[view, k]
            assert torch.allclose(coupled[view, k], want, rtol=1e-3, atol=1e-5)


def test_rotations_lengths_and_orders_do_not_matter() -> None:
    online, target, turn = draw(0, 2, 5, 4), draw(1, 2, 5, 4), torch.linalg.qr(draw(2, 4, 4)).Q
    want = decoupled(branch(online), branch(target), 0.1, 0.5)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = [branch(3 * (views @ turn).flip(0)[:, order]) for views in (online, target)]
    assert float(decoupled(*moved, 0.1, 0.5)) == pytest.approx(float(want), rel=1e-4)


def test_weights_average_to_one_favour_the_unlike_and_have_no_gradient() -> None:
    cosine = torch.tensor([0.9, 0.1, 0.5, -0.3]).requires_grad_()
    weights = mises_fisher(cosine, 0.5)
    assert not weights.requires_grad
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
    assert weights.argsort(descending=True).tolist() == cosine.argsort().tolist()
    assert torch.allclose(mises_fisher(torch.full((4,), 0.7), 0.5), torch.ones(4))


def test_gradient_reaches_the_keys_unless_they_are_detached() -> None:
    online, target = draw(0, 2, 5, 4).requires_grad_(), draw(1, 2, 5, 4).requires_grad_()
    decoupled(branch(online), branch(target), 0.1).backward()
    assert target.grad is not None
    # Every key of both views is some anchor's positive or negative.
    assert (target.grad.abs().sum(dim=2) > 0).all()


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        DCL().loss(branch(draw(0, 2, 1, 4)), branch(draw(1, 2, 1, 4)))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"sigma": -0.1}, {"sigma": math.nan}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DCL(**options)  # type: ignore[arg-type]
