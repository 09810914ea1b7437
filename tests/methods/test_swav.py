"""SwAV's loss and codes against their formulas, its queue and its frozen prototypes."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.base import Moment
from tailfin.methods.swav import SwAV, sinkhorn, swapped_prediction

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def moment(step: int, total: int = 1000, per_epoch: int = 10) -> Moment:
    return Moment(step, total, per_epoch, torch.arange(2), None)


def small(**options: float) -> SwAV:
    torch.manual_seed(0)
    return SwAV(out=4, **{"prototypes": 6, "queue_size": 8, **options})  # type: ignore[arg-type]


def slow_sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    n, k = len(scores), len(scores[0])
    q = [[math.exp(s / epsilon) for s in row] for row in scores]
    for _ in range(iterations):
        shares = [sum(q[i][j] for i in range(n)) for j in range(k)]
        q = [[q[i][j] / shares[j] / k for j in range(k)] for i in range(n)]
        q = [[value / sum(row) / n for value in row] for row in q]
    return [[value * n for value in row] for row in q]


def slow(online: Tensor, target: Tensor, prototypes: Tensor, temperature: float, epsilon: float) -> float:
    online, target, prototypes = (F.normalize(x.double(), dim=-1) for x in (online, target, prototypes))
    terms = []
    for i in range(len(online)):
        for j in range(len(target)):
            if i == j:
                continue
            codes = slow_sinkhorn((target[j] @ prototypes.T).tolist(), epsilon, 3)
            for n, code in enumerate(codes):
                powers = [math.exp(float(online[i, n] @ c) / temperature) for c in prototypes]
                terms.append(-sum(q * math.log(p / sum(powers)) for q, p in zip(code, powers, strict=True)))
    return sum(terms) / len(terms)


@few
@given(st.integers(2, 4), st.integers(1, 6), st.integers(2, 7), seeds)
def test_swapped_prediction_is_the_formula(views: int, n: int, k: int, seed: int) -> None:
    online, target, prototypes = draw(seed, views, n, 5), draw(seed + 1, 2, n, 5), 3 * draw(seed + 2, k, 5)
    got = swapped_prediction(branch(online), branch(target), prototypes, 0.2, 0.1, 3)
    assert float(got) == pytest.approx(slow(online, target, prototypes, 0.2, 0.1), rel=1e-3)


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def test_values_of_another_implementation() -> None:
    # solo-learn's SinkhornKnopp(3, .05) and swav_loss_func on the same waves, run once.
    online, target, prototypes = wave(1.3, 2, 5, 4), wave(0.7, 2, 5, 4), wave(0.9, 6, 4)
    codes = sinkhorn(F.normalize(target[0], dim=1) @ F.normalize(prototypes, dim=1).T, 0.05, 3)
    want = torch.tensor([0.86939669, 8.9309e-11, 1.22576e-05, 7.42454e-07, 2.7514e-15, 0.13059023])
    assert torch.allclose(codes[0], want, rtol=1e-3, atol=1e-7)
    got = swapped_prediction(branch(online), branch(target), prototypes, 0.1, 0.05, 3)
    assert float(got) == pytest.approx(7.2913675, rel=1e-4)


@few
@given(seeds)
def test_many_iterations_balance_prototypes_and_samples(seed: int) -> None:
    scores = F.normalize(draw(seed, 12, 5), dim=1) @ F.normalize(draw(seed + 1, 4, 5), dim=1).T
    codes = sinkhorn(scores, 0.5, 200)
    assert torch.allclose(codes.sum(dim=1), torch.ones(12), atol=1e-4)
    assert torch.allclose(codes.sum(dim=0), torch.full((4,), 3.0), atol=1e-3)


def test_rotations_and_orders_do_not_matter() -> None:
    online, target, prototypes = draw(0, 2, 5, 4), draw(1, 2, 5, 4), draw(2, 6, 4)
    want = swapped_prediction(branch(online), branch(target), prototypes, 0.1, 0.05, 3)
    turn, samples = torch.linalg.qr(draw(3, 4, 4)).Q, torch.randperm(5)
    moved = [branch((views @ turn).flip(0)[:, samples]) for views in (online, target)]
    got = swapped_prediction(*moved, (prototypes @ turn).flip(0), 0.1, 0.05, 3)
    assert float(got) == pytest.approx(float(want), rel=1e-4)


def test_codes_have_no_gradient_but_predictions_and_prototypes_have() -> None:
    method = small()
    online, target = draw(0, 2, 5, 4).requires_grad_(), draw(1, 2, 5, 4).requires_grad_()
    method.loss(branch(online), branch(target)).backward()
    assert target.grad is None
    assert online.grad is not None
    assert method.prototypes.grad is not None


def test_prototypes_are_frozen_in_the_first_epoch_but_never_long() -> None:
    method = small()
    for step, total, frozen in ((0, 1000, True), (9, 1000, True), (10, 1000, False), (2, 20, False)):
        method.begin(moment(step, total))
        method.prototypes.grad = None
        method.loss(branch(draw(0, 2, 5, 4).requires_grad_()), branch(draw(1, 2, 5, 4))).backward()
        assert (method.prototypes.grad is None) == frozen


def test_the_queue_is_a_ring_that_only_taken_training_steps_fill() -> None:
    method = small()
    seen: list[Tensor] = []
    for step in range(6):
        views = [draw(10 * step + part, 2, 3, 4) for part in range(2)]
        for view in views:
            method.loss(branch(draw(99, 2, 3, 4)), branch(view))
        with torch.no_grad():
            method.loss(branch(draw(98, 2, 3, 4)), branch(draw(97, 2, 3, 4)))
        before = method.queue.rows.clone()
        method.after_step(taken=step != 2)
        if step == 2:
            assert torch.equal(before, method.queue.rows)
            continue
        seen += [F.normalize(view, dim=-1) for view in views]
        last = torch.cat(seen, dim=1)[:, -8:]
        for view in range(2):
            got = sorted(row for row in method.queue.rows[view].tolist() if any(row))
            want = sorted(last[view].tolist())
            assert torch.allclose(torch.tensor(got), torch.tensor(want), atol=1e-6)
    assert int(method.queue.entered) == 30


def test_codes_are_balanced_over_the_filled_part_of_the_queue_once_it_is_time() -> None:
    method = small(queue_epochs=2.0)
    method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))
    method.after_step()
    online, target = draw(2, 2, 5, 4), draw(3, 2, 5, 4)
    method.begin(moment(19))
    plain = slow(online, target, method.prototypes.detach(), 0.1, 0.05)
    assert method.loss(branch(online), branch(target)).item() == pytest.approx(plain, rel=1e-3)
    method.begin(moment(20))
    prototypes = F.normalize(method.prototypes.detach(), dim=1)
    terms = []
    for i, j in ((0, 1), (1, 0)):
        rows = torch.cat((F.normalize(target[j], dim=1), F.normalize(draw(1, 2, 3, 4)[j], dim=1)))
        codes = torch.tensor(slow_sinkhorn((rows @ prototypes.T).tolist(), 0.05, 3))[:5]
        predicted = (F.normalize(online[i], dim=1) @ prototypes.T / 0.1).log_softmax(dim=1)
        terms.append(-(codes * predicted).sum(dim=1).mean())
    want = float(torch.stack(terms).mean())
    assert want != pytest.approx(plain, rel=1e-2)
    assert method.loss(branch(online), branch(target)).item() == pytest.approx(want, rel=1e-3)


def test_state_goes_on_to_the_bit() -> None:
    method = small()
    method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))
    method.after_step()
    twin = small()
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    losses = [one.loss(branch(draw(2, 2, 3, 4)), branch(draw(3, 2, 3, 4))) for one in (method, twin, small())]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_defaults_follow_backbone_and_images() -> None:
    assert SwAV.defaults(512, 50_000).items() >= {"prototypes": 3000, "queue_size": 3840, "out": 128}.items()
    assert SwAV.defaults(64, 50_000).items() >= {"prototypes": 512, "hidden": 256}.items()
    assert SwAV.defaults(512, 1200).items() >= {"prototypes": 100, "queue_size": 150}.items()
    assert SwAV.defaults(512, 3).items() >= {"prototypes": 2, "queue_size": 0}.items()


@pytest.mark.parametrize("queue_size", [0, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["identical", "zero", "opposite"])
def test_finite_at_the_edges(queue_size: int, dtype: torch.dtype, kind: str) -> None:
    method = small(queue_size=queue_size, epsilon=0.025)
    views = draw(0, 1, 2, 4).expand(2, -1, -1).clone()
    if kind == "zero":
        views.zero_()
    if kind == "opposite":  # the sharpest codes there are
        views[:] = torch.stack((method.prototypes[0].detach(), -method.prototypes[0].detach()))
    online = views.to(dtype).requires_grad_()
    for _ in range(2):
        loss = method.loss(branch(online), branch(online.detach()))
        loss.backward()
        method.after_step()
        assert loss.dtype == torch.float32
        for tensor in (loss, online.grad, method.prototypes.grad):
            assert tensor is not None
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(
    "options",
    [{"prototypes": 1}, {"temperature": 0.0}, {"epsilon": 0.001}, {"iterations": 0}, {"queue_size": -1}],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        small(**options)
