"""SimCo's loss against its formula and the authors' code, and its gradient where the authors' code has none."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.simco import SimCo, dual_temperature

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
temperatures = st.floats(0.07, 2)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def share(query: Tensor, keys: Tensor, own: int, temperature: float) -> float:
    odds = [math.exp(float(query @ key) / temperature) for key in keys]
    return odds[own] / sum(odds)


def slow(query: Tensor, key: Tensor, within: float, between: float) -> float:
    query, key = F.normalize(query.double(), dim=1), F.normalize(key.double(), dim=1)
    total = 0.0
    for i, anchor in enumerate(query):
        inner, outer = share(anchor, key, i, within), share(anchor, key, i, between)
        total -= (1 - outer) / (1 - inner) * math.log(inner)
    return total / len(query)


@few
@given(st.integers(2, 4), st.integers(2, 6), st.integers(2, 9), temperatures, st.floats(0.5, 20), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, within: float, multiple: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    terms = [
        slow(online[i], target[j], within, within * multiple)
        for i in range(views)
        for j in range(2)
        if i != j
    ]
    method = SimCo(temperature=within, multiple=multiple)
    got = method.loss(branch(online), branch(target))
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("temperature", "multiple", "want"), [(0.1, 10.0, 0.94741786), (0.2, 3.0, 0.83004498)]
)
def test_values_of_the_authors_code(temperature: float, multiple: float, want: float) -> None:
    # ChaoningZhang/Dual-temperature solo/losses/dual_temperature_loss.py, both directions as in its SimCo; run once.
    views = branch(wave(1.3, 2, 6, 8))
    got = SimCo(temperature=temperature, multiple=multiple).loss(views, views)
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_a_gradient_of_the_authors_code() -> None:
    # The same code's gradient of one direction with respect to the first normalised query.
    views = F.normalize(wave(1.3, 2, 6, 8), dim=2)
    query = views[0].clone().requires_grad_()
    dual_temperature(query, views[1], 0.1, 1.0).backward()
    want = torch.tensor([-0.0838, 0.0590, 0.1154, 0.0027, -0.1139, -0.0636, 0.0799, 0.1064])
    radial = want - (want @ views[0, 0]) * views[0, 0]  # normalising takes off what points along the query
    assert query.grad is not None
    assert torch.allclose(query.grad[0], radial, atol=2e-4)


@few
@given(st.integers(2, 6), st.floats(0.07, 1), seeds)
def test_equal_temperatures_make_it_info_nce(n: int, temperature: float, seed: int) -> None:
    query, key = draw(seed, 2, n, 5)
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    want = F.cross_entropy(logits, torch.arange(n))
    assert float(dual_temperature(query, key, temperature, temperature)) == pytest.approx(
        float(want), rel=1e-4
    )


def gradient(query: Tensor, key: Tensor, within: float, between: float) -> Tensor:
    query = query.clone().requires_grad_()
    dual_temperature(query, key, within, between).backward()
    assert query.grad is not None
    return query.grad


def test_within_an_anchor_the_negatives_shares_are_those_at_the_temperature_within() -> None:
    query, key = draw(0, 2, 6, 4)
    mixed, plain = gradient(query, key, 0.1, 1.0), gradient(query, key, 0.1, 0.1)
    assert torch.allclose(F.cosine_similarity(mixed, plain, dim=1), torch.ones(6), atol=1e-5)
    assert not torch.allclose(mixed.norm(dim=1), plain.norm(dim=1), rtol=0.1)


def test_anchors_differ_as_at_the_temperature_between_them() -> None:
    # Where an anchor is equally far from all its negatives, the direction of its gradient does not hang on the
    # temperature: the lengths then compare as InfoNCE's at `between`.
    key = torch.eye(3)
    query = torch.tensor([[1.0, 0.2, 0.2], [0.6, 1.0, 0.6], [0.1, 0.1, 1.0]])
    mixed, plain, sharp = (gradient(query, key, *t).norm(dim=1) for t in ((0.1, 1.0), (1.0, 1.0), (0.1, 0.1)))
    assert torch.allclose(mixed / mixed[1], plain / plain[1], rtol=1e-3)
    assert float(sharp[0] / sharp[1]) < 0.1 * float(mixed[0] / mixed[1])


def test_an_anchor_that_is_all_but_solved_still_has_its_weight() -> None:
    # Opposite keys at temperature .1 have 1 - p = exp(-20), which float32 rounds to 0 where it is not kept as
    # log-odds: the authors' code divides by it. The limit of the loss is 1 - p(between).
    key = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for within in (0.1, 0.05, 0.03):
        query = key.clone().requires_grad_()
        loss = dual_temperature(query, key, within, 1.0)
        loss.backward()
        assert loss.item() == pytest.approx(1 / (1 + math.exp(2)), rel=1e-3)
        assert query.grad is not None
        assert torch.isfinite(query.grad).all()


def test_nothing_overflows_at_the_smallest_temperatures() -> None:
    key = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for query in (key, -key, torch.zeros_like(key)):
        query = query.clone().requires_grad_()
        loss = dual_temperature(query, key, 1e-3, 1.0)
        loss.backward()
        assert torch.isfinite(loss)
        assert query.grad is not None
        assert torch.isfinite(query.grad).all()


def test_rotations_lengths_and_orders_do_not_matter() -> None:
    online, target, turn = draw(0, 2, 5, 4), draw(1, 2, 5, 4), torch.linalg.qr(draw(2, 4, 4)).Q
    want = SimCo().loss(branch(online), branch(target))
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = [branch(3 * (views @ turn).flip(0)[:, order]) for views in (online, target)]
    assert float(SimCo().loss(*moved)) == pytest.approx(float(want), rel=1e-4)


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        SimCo().loss(branch(draw(0, 2, 1, 4)), branch(draw(1, 2, 1, 4)))


def test_the_head_has_no_batch_norm_and_the_authors_widths() -> None:
    shapes = [tuple(p.shape) for p in SimCo().projector(512).parameters()]
    assert shapes == [(128, 512), (128,), (128, 128), (128,)]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"multiple": 0.0}, {"multiple": math.nan}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SimCo(**options)  # type: ignore[arg-type]
