"""SimSiam's loss against its formula and others' code, its heads, and its two options."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods.simsiam import SimSiam

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.tolist(), other.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def together(rows: Tensor) -> float:
    """1 where all rows point one way."""
    return float(torch.nn.functional.normalize(rows.detach(), dim=1).mean(dim=0).norm())


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 9), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, seed: int) -> None:
    method = SimSiam(out=p)
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    predictions = [method.predictor(view).detach() for view in online]
    terms = [
        -cosine(predictions[i][k], target[j][k])
        for i in range(views)
        for j in range(2)
        if i != j
        for k in range(n)
    ]
    got = method.loss(branch(online), branch(target))
    assert float(got.detach()) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_value_of_others_code() -> None:
    # solo-learn's SimSiam.training_step on the same waves, with a biased first layer in the predictor, run once.
    method = SimSiam(out=8)
    for k, parameter in enumerate(method.predictor.parameters()):
        parameter.data = wave(0.3 + 0.1 * k, *parameter.shape)
    got = method.loss(branch(wave(1.3, 2, 6, 8)), branch(wave(0.7, 2, 6, 8)))
    assert float(got.detach()) == pytest.approx(-0.0517070, abs=1e-6)


def test_orders_and_lengths_do_not_matter() -> None:
    method, online, target = SimSiam(out=4), draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    want = method.loss(branch(online), branch(target))
    got = method.loss(branch(online.flip(0)[:, order]), branch(3 * target.flip(0)[:, order]))
    assert float(got.detach()) == pytest.approx(float(want.detach()), abs=1e-5)


def test_projector_ends_in_a_norm_without_scale() -> None:
    projector = SimSiam(hidden=16, out=8).projector(12)
    assert [type(layer) for layer in projector] == [
        *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2,
        nn.Linear,
        nn.BatchNorm1d,
    ]
    assert not list(projector[-1].parameters())
    z = projector(draw(0, 64, 12))
    assert torch.allclose(z.mean(dim=0), torch.zeros(8), atol=1e-5)
    assert torch.allclose(z.var(dim=0, correction=0), torch.ones(8), atol=1e-2)


def test_the_predictor_is_a_bottleneck_whose_rate_is_fixed() -> None:
    method = SimSiam()
    assert method.predictor[0].weight.shape == (512, 2048)
    assert set(method.fixed_rate()) == set(method.parameters())


def test_options_switch_off_what_prevents_collapse() -> None:
    assert SimSiam(out=4).stop_gradient
    assert not SimSiam(out=4, stop_gradient=0).stop_gradient
    method, views = SimSiam(out=4, predictor=0), draw(0, 2, 6, 4)
    assert not list(method.parameters())
    want = -torch.cosine_similarity(views[0], views[1], dim=1).mean()
    assert float(method.loss(branch(views), branch(views))) == pytest.approx(float(want), abs=1e-6)


def test_without_both_the_outputs_collapse() -> None:
    method = SimSiam(out=4, predictor=0, stop_gradient=0)
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    images = draw(0, 32, 8)
    assert together(layer(images)) < 0.6
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for step in range(300):
        views = branch(torch.stack([layer(images + draw(2 * step + k + 1, 32, 8)) for k in range(2)]))
        optimizer.zero_grad()
        method.loss(views, views).backward()
        optimizer.step()
    assert together(layer(images)) > 0.95


def test_one_view_and_widths_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        SimSiam(out=4).loss(branch(draw(0, 1, 6, 4)), branch(draw(0, 1, 6, 4)))
    with pytest.raises(ValueError, match="hidden"):
        SimSiam(hidden=0)
