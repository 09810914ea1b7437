"""TiCo's loss against its formula and others' code, and its running covariance."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.tico import TiCo, second_moment, tico_loss

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def units(view: Tensor) -> list[list[float]]:
    return [[x / math.hypot(*row) for x in row] for row in view.double().tolist()]


def moment(view: Tensor) -> list[list[float]]:
    rows = units(view)
    return [
        [sum(z[i] * z[j] for z in rows) / len(rows) for j in range(len(rows[0]))] for i in range(len(rows[0]))
    ]


def slow(one: Tensor, other: Tensor, past: list[list[float]], rho: float, beta: float) -> float:
    z, other_z, own, p = units(one), units(other), moment(one), one.shape[1]
    covariance = [[beta * past[i][j] + (1 - beta) * own[i][j] for j in range(p)] for i in range(p)]
    total = 0.0
    for a, b in zip(z, other_z, strict=True):
        total += 1 - sum(x * y for x, y in zip(a, b, strict=True))
        total += rho * sum(a[i] * covariance[i][j] * a[j] for i in range(p) for j in range(p))
    return total / len(z)


@few
@given(st.integers(2, 4), st.integers(2, 7), st.integers(1, 6), seeds)
def test_loss_is_the_formula_as_the_covariance_fills(views: int, n: int, p: int, seed: int) -> None:
    method = TiCo(out=p, contrast=3.0, memory=0.7)
    past = [[0.0] * p for _ in range(p)]
    for step in range(3):
        online, target = draw(seed + step, views, n, p), draw(seed - step - 1, 2, n, p)
        terms = [slow(online[i], target[j], past, 3.0, 0.7) for i in range(views) for j in range(2) if i != j]
        assert float(method.loss(branch(online), branch(target))) == pytest.approx(
            sum(terms) / len(terms), rel=1e-4
        )
        method.after_step()
        moments = [moment(view) for view in online]
        past = [
            [0.7 * past[i][j] + 0.3 * sum(m[i][j] for m in moments) / views for j in range(p)]
            for i in range(p)
        ]
        assert torch.allclose(method.covariance, torch.tensor(past), atol=1e-5)


def test_values_of_others_code() -> None:
    # sayannag/TiCo-pytorch's TiCo_Loss(.9, 8) over three batches of waves, run once; 1 is added to its loss.
    past = torch.zeros(4, 4)
    for step, (want, gradient) in enumerate(
        (
            (1.2670777, [0.0415959, -0.0045633, 0.0191329, -0.0317967]),
            (1.6063602, [0.0269139, -0.0025675, -0.0453971, -0.0308339]),
            (1.4499401, [-0.0326974, 0.1029435, 0.0381252, -0.0497550]),
        )
    ):
        online, target = wave(1.3 + step, 2, 7, 4).requires_grad_(), wave(0.7 + step, 2, 7, 4)
        loss = tico_loss(online[0], target[1], past, 8.0, 0.9)
        loss.backward()
        assert online.grad is not None
        assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
        assert torch.allclose(online.grad[0, 0], torch.tensor(gradient), atol=1e-5)
        past = 0.9 * past + 0.1 * second_moment(online[0].detach())
    assert torch.allclose(past[0], torch.tensor([0.0784144, 0.0116287, -0.0044289, 0.0158076]), atol=1e-6)


def test_orders_sizes_and_rotations_do_not_matter() -> None:
    online, target, past = draw(0, 2, 6, 4), draw(1, 2, 6, 4), draw(2, 2, 6, 4)
    turn, samples = torch.linalg.qr(draw(3, 4, 4)).Q, torch.arange(6).roll(2)
    losses = []
    for move in (False, True):
        method = TiCo(out=4)
        for batch in (past, online):
            views, others = batch, target
            if move:
                views, others = (3 * (x @ turn).flip(0)[:, samples] for x in (batch, target))
            loss = method.loss(branch(views), branch(others))
            method.after_step()
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_directions_taken_of_late_cost_more() -> None:
    method = TiCo(out=3)
    first, second = torch.eye(3)[0].expand(2, 5, 3), torch.eye(3)[1].expand(2, 5, 3)
    for _ in range(50):
        method.loss(branch(first), branch(first))
        method.after_step()
    with torch.no_grad():
        assert float(method.loss(branch(first), branch(first))) == pytest.approx(8, rel=1e-2)
        assert float(method.loss(branch(second), branch(second))) == pytest.approx(8 * 0.1, rel=1e-2)


def test_the_covariance_moves_once_a_taken_training_step() -> None:
    method = TiCo(out=4, memory=0.5)
    batches = [draw(step, 2, 5, 4) for step in range(3)]
    for batch in batches[:2]:
        method.loss(branch(batch), branch(batch))
    assert not method.covariance.any()
    method.after_step()
    want = 0.5 * torch.stack([second_moment(view) for batch in batches[:2] for view in batch]).mean(dim=0)
    assert torch.allclose(method.covariance, want, atol=1e-6)
    before = method.covariance.clone()
    method.loss(branch(batches[2]), branch(batches[2]))
    method.after_step(taken=False)
    method.after_step()
    with torch.no_grad():
        method.loss(branch(batches[2]), branch(batches[2]))
    method.eval()
    method.loss(branch(batches[2]), branch(batches[2]))
    method.after_step()
    assert torch.equal(before, method.covariance)


def test_the_covariance_goes_on_to_the_bit() -> None:
    method = TiCo(out=4)
    method.loss(branch(draw(0, 2, 5, 4)), branch(draw(1, 2, 5, 4)))
    method.after_step()
    twin = TiCo(out=4)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    losses = [m.loss(branch(draw(2, 2, 5, 4)), branch(draw(3, 2, 5, 4))) for m in (method, twin, TiCo(out=4))]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_what_waits_holds_no_graph() -> None:
    method, views = TiCo(out=4), draw(0, 2, 5, 4).requires_grad_()
    method.loss(branch(views), branch(views.detach()))
    method.after_step()
    assert not method.covariance.requires_grad


@pytest.mark.parametrize("options", [{"contrast": -1.0}, {"memory": 1.0}, {"memory": -0.1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TiCo(**options)
