"""NNSiam's loss against its formula and others' code, with a full and with an empty support set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.nnsiam import NNSiam

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def hold(method: NNSiam, rows: Tensor) -> None:
    method.support.gather(F.normalize(rows, dim=1)[None])
    method.support.commit()


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.tolist(), other.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(2, 9), st.integers(0, 6), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, filled: int, seed: int) -> None:
    method = NNSiam(hidden=4, out=p, queue_size=6)
    past = draw(seed + 2, filled, p)
    hold(method, past)
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    terms = []
    for i in range(views):
        predictions = method.predictor(online[i]).detach()
        for j in range(2):
            if i == j:
                continue
            for prediction, z in zip(predictions, target[j], strict=True):
                neighbour = max(past, key=lambda row, z=z: cosine(row, z)) if filled else z
                terms.append(-cosine(prediction, neighbour))
    got = method.loss(branch(online), branch(target))
    assert float(got.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-4)


def test_value_of_others_code() -> None:
    # solo-learn's NNSiam.training_step on the same waves with a queue of 12, run once.
    method = NNSiam(hidden=8, out=8, queue_size=12)
    for k, parameter in enumerate(method.predictor.parameters()):
        parameter.data = wave(0.3 + 0.1 * k, *parameter.shape)
    hold(method, wave(0.9, 12, 8))
    got = method.loss(branch(wave(1.3, 2, 6, 8)), branch(wave(0.7, 2, 6, 8)))
    assert float(got.detach()) == pytest.approx(0.0623921, abs=1e-5)


def test_orders_and_lengths_do_not_matter() -> None:
    method, online, target = NNSiam(hidden=4, out=4, queue_size=9), draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    hold(method, draw(2, 9, 4))
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    want = method.loss(branch(online), branch(target))
    got = method.loss(branch(online.flip(0)[:, order]), branch(2 * target.flip(0)[:, order]))
    assert float(got.detach()) == pytest.approx(float(want.detach()), abs=1e-5)


def test_no_gradient_reaches_the_target_even_where_it_is_the_online_branch() -> None:
    method = NNSiam(hidden=4, out=4, queue_size=9)
    online, target = draw(0, 2, 6, 4).requires_grad_(), draw(1, 2, 6, 4).requires_grad_()
    for _ in range(2):  # without neighbours, and with some
        method.loss(branch(online), branch(target)).backward()
        method.after_step()
    assert target.grad is None
    assert float(online.grad.abs().sum()) > 0


def test_the_predictor_has_the_published_width_and_a_fixed_rate() -> None:
    method = NNSiam(queue_size=1)
    assert method.predictor[0].weight.shape == (4096, 2048)
    assert set(method.fixed_rate()) == set(method.parameters())
    assert not list(method.projector(16)[-1].parameters())
