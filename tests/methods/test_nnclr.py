"""NNCLR's loss against its formula and others' code, with a full and with an empty support set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.nnclr import NNCLR, neighbour_nce

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def hold(method: NNCLR, rows: Tensor) -> None:
    method.support.gather(F.normalize(rows, dim=1)[None])
    method.support.commit()


def slow(anchors: Tensor, candidates: Tensor, temperature: float) -> float:
    anchors, candidates = (F.normalize(x.double(), dim=1) for x in (anchors, candidates))
    total = 0.0
    for i, anchor in enumerate(anchors):
        odds = [math.exp(float(anchor @ candidate) / temperature) for candidate in candidates]
        total -= math.log(odds[i] / sum(odds)) / len(anchors)
    return total


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(2, 9), st.integers(0, 6), st.floats(0.1, 2), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, filled: int, temperature: float, seed: int) -> None:
    method = NNCLR(hidden=4, out=p, temperature=temperature, queue_size=6)
    past = draw(seed + 2, filled, p)
    hold(method, past)
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    predictions = [method.predictor(view).detach() for view in online]
    terms = []
    for j in range(2):
        anchors = target[j]
        if filled:
            anchors = past[
                [
                    max(range(filled), key=lambda k: float(F.cosine_similarity(z, past[k], dim=0)))
                    for z in target[j]
                ]
            ]
        terms += [slow(anchors, predictions[i], temperature) for i in range(views) if i != j]
    got = method.loss(branch(online), branch(target))
    assert float(got.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-4)


def test_value_of_others_code() -> None:
    # solo-learn's NNCLR.training_step on the same waves with a queue of 12, run once.
    method = NNCLR(hidden=8, out=8, queue_size=12)
    for k, parameter in enumerate(method.predictor.parameters()):
        parameter.data = wave(0.3 + 0.1 * k, *parameter.shape)
    hold(method, wave(0.9, 12, 8))
    got = method.loss(branch(wave(1.3, 2, 6, 8)), branch(wave(0.7, 2, 6, 8)))
    assert float(got.detach()) == pytest.approx(1.7694912, abs=1e-5)


def test_orders_do_not_matter() -> None:
    method, online, target = NNCLR(hidden=4, out=4, queue_size=9), draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    hold(method, draw(2, 9, 4))
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    want = method.loss(branch(online), branch(target))
    got = method.loss(branch(online.flip(0)[:, order]), branch(2 * target.flip(0)[:, order]))
    assert float(got.detach()) == pytest.approx(float(want.detach()), abs=1e-5)


def test_rotations_and_lengths_do_not_matter_to_the_contrast() -> None:
    anchors, candidates, turn = draw(0, 6, 4), draw(1, 6, 4), torch.linalg.qr(draw(2, 4, 4)).Q
    want = neighbour_nce(anchors, candidates, 0.2)
    assert float(neighbour_nce(3 * anchors @ turn, 2 * candidates @ turn, 0.2)) == pytest.approx(
        float(want), abs=1e-4
    )


def test_no_gradient_reaches_the_target_even_where_it_is_the_online_branch() -> None:
    method = NNCLR(hidden=4, out=4, queue_size=9)
    online, target = draw(0, 2, 6, 4).requires_grad_(), draw(1, 2, 6, 4).requires_grad_()
    for _ in range(2):  # without neighbours, and with some
        method.loss(branch(online), branch(target)).backward()
        method.after_step()
    assert target.grad is None
    assert float(online.grad.abs().sum()) > 0


def test_projector_and_predictor_have_the_published_widths() -> None:
    method = NNCLR()
    assert method.predictor[0].weight.shape == (4096, 256)
    projector = method.projector(512)
    assert projector[0].weight.shape == (2048, 512)
    assert projector[3].weight.shape == (2048, 2048)
    assert projector[-1].weight.shape == (256,)
    assert not list(method.fixed_rate())


def test_large_images_have_a_published_row_of_their_own() -> None:
    assert NNCLR.recipe_at(32) is NNCLR.recipe
    large = NNCLR.recipe_at(224)
    assert "imagenet-100" in large.source
    assert (large.lr, large.weight_decay, large.views) == (0.4, 1e-5, "byol")
    NNCLR(large.hidden, large.out, queue_size=4, **large.options)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"queue_size": 0}, {"out": 0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NNCLR(**options)  # type: ignore[arg-type]
