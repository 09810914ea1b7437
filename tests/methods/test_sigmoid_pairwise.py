"""The sigmoid pairwise loss against its formula, and the pace at which its scale and bias are learnt."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.sigmoid_pairwise import SigmoidPairwise, pairwise

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def slow(one: Tensor, other: Tensor, scale: float, bias: float) -> float:
    one, other = F.normalize(one.double(), dim=1), F.normalize(other.double(), dim=1)
    total = 0.0
    for i in range(len(one)):
        for j in range(len(other)):
            label = 1 if i == j else -1
            logit = scale * float(one[i] @ other[j]) + bias
            total -= math.log(1 / (1 + math.exp(-label * logit)))
    return total / len(one)


def value(one: Tensor, other: Tensor, scale: float, bias: float) -> float:
    return float(pairwise(one, other, torch.tensor(scale), torch.tensor(bias)))


@few
@given(st.integers(2, 4), st.integers(1, 6), st.integers(2, 9), st.floats(0.5, 20), st.floats(-12, 3), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, scale: float, bias: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    terms = [slow(online[i], target[j], scale, bias) for i in range(views) for j in range(2) if i != j]
    method = SigmoidPairwise(scale=scale, bias=bias)
    got = method.loss(branch(online), branch(target)).item()
    assert got == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_it_can_start_as_siglip_does() -> None:
    method = SigmoidPairwise(scale=10, bias=-10, learn_scale=1)
    assert method.log_scale.requires_grad
    assert method.log_scale.item() == pytest.approx(math.log(10))
    assert method.bias.item() == -10
    # Orthogonal images that are alike in both views: the positives are even odds, the negatives settled.
    views = branch(torch.eye(4).expand(2, 4, 4))
    want = math.log(2) + 3 * math.log1p(math.exp(-10))
    assert method.loss(views, views).item() == pytest.approx(want, rel=1e-5)


def test_every_pair_is_judged_by_itself() -> None:
    # The batch's loss is a sum over pairs of images; a softmax would tie them together.
    one, other = draw(0, 5, 4), draw(1, 5, 4)
    two = [value(one[[i, j]], other[[i, j]], 10, -10) for i in range(5) for j in range(i)]
    positives = [value(one[[i]], other[[i]], 10, -10) for i in range(5)]
    # A batch of two is half of both positives and both negatives, and each image is in four such batches.
    want = (2 * sum(two) - 3 * sum(positives)) / 5
    assert value(one, other, 10, -10) == pytest.approx(want, rel=1e-4)


def test_best_bias_without_information_is_the_log_odds_of_a_positive() -> None:
    same = torch.ones(8, 4)
    bias = torch.tensor(0.0, requires_grad=True)
    pairwise(same, same, torch.tensor(0.0), bias).backward()
    assert bias.grad is not None
    assert bias.grad.item() == pytest.approx((7 - 1) / 2, rel=1e-5)
    bias = torch.tensor(-math.log(7), requires_grad=True)
    pairwise(same, same, torch.tensor(0.0), bias).backward()
    assert bias.grad is not None
    assert bias.grad.item() == pytest.approx(0, abs=1e-6)


def test_swapped_views_rotations_lengths_and_orders_do_not_matter() -> None:
    one, other, turn = draw(0, 5, 4), draw(1, 5, 4), torch.linalg.qr(draw(2, 4, 4)).Q
    want = value(one, other, 10, -5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert value(other, one, 10, -5) == pytest.approx(want, rel=1e-4)
    assert value(3 * (one @ turn)[order], (other @ turn)[order], 10, -5) == pytest.approx(want, rel=1e-4)
    assert value(one[order], other, 10, -5) != pytest.approx(want, rel=1e-2)


@pytest.mark.parametrize("pace", [0.0, 0.01, 1.0])
def test_scale_and_bias_learn_at_their_pace_and_the_views_at_full(pace: float) -> None:
    views, full = draw(0, 2, 6, 4), draw(0, 2, 6, 4)
    views.requires_grad_()
    full.requires_grad_()
    method = SigmoidPairwise(scale=10, bias=-10, pace=pace, learn_scale=1)
    method.loss(branch(views), branch(views)).backward()
    log_scale = torch.tensor(math.log(10), requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)
    pairwise(full[0], full[1], log_scale.exp(), bias).backward()
    assert torch.allclose(views.grad, full.grad, atol=1e-6)
    for own, want in ((method.log_scale, log_scale), (method.bias, bias)):
        assert own.grad is not None
        assert want.grad is not None
        assert abs(want.grad.item()) > 1e-3
        assert own.grad.item() == pytest.approx(pace * want.grad.item(), rel=1e-4)


def test_the_scale_is_kept_unless_asked_for() -> None:
    method = SigmoidPairwise()
    method.loss(branch(draw(0, 2, 6, 4)), branch(draw(1, 2, 6, 4))).backward()
    assert method.log_scale.grad is None
    assert method.bias.grad is not None


def test_scale_and_bias_are_state() -> None:
    method = SigmoidPairwise()
    with torch.no_grad():
        method.log_scale.add_(0.3)
        method.bias.sub_(2)
    twin = SigmoidPairwise(scale=3, bias=1)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    views = branch(draw(0, 2, 6, 4))
    assert torch.equal(method.loss(views, views), twin.loss(views, views))
    assert not torch.equal(method.loss(views, views), SigmoidPairwise().loss(views, views))


def test_far_logits_stay_finite() -> None:
    one = torch.eye(4)
    for other in (one, -one, one.roll(1, 0)):
        view = one.clone().requires_grad_()
        loss = pairwise(view, other, torch.tensor(1000.0), torch.tensor(-200.0))
        loss.backward()
        assert torch.isfinite(loss)
        assert view.grad is not None
        assert torch.isfinite(view.grad).all()


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": math.nan}, {"pace": -1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SigmoidPairwise(**options)  # type: ignore[arg-type]
