"""ReSSL's loss against its formula, which views it relates, and its queue."""

import copy
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.ressl import ReSSL, relation
from tailfin.views import recipes

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(seed: int, *shape: int) -> Tensor:
    return F.normalize(draw(seed, *shape), dim=-1)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def small(**options: float) -> ReSSL:
    return ReSSL(hidden=4, out=4, **{"queue_size": 8, **options})  # type: ignore[arg-type]


def slow(query: Tensor, key: Tensor, past: list[Tensor], online: float = 0.1, target: float = 0.04) -> float:
    """`past` holds, for each sample, the vectors that it is related to."""
    query, key = (F.normalize(x.double(), dim=-1) for x in (query, key))
    total = 0.0
    for q, k, rows in zip(query, key, past, strict=True):
        wanted = [math.exp(float(k @ row.double()) / target) for row in rows]
        given_ = [math.exp(float(q @ row.double()) / online) for row in rows]
        for one, other in zip(wanted, given_, strict=True):
            total -= one / sum(wanted) * math.log(other / sum(given_))
    return total / len(query)


@few
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 4), seeds)
def test_relation_is_the_formula_over_what_is_filled(n: int, filled: int, empty: int, seed: int) -> None:
    query, key, past = draw(seed, n, 5), 3 * draw(seed + 1, n, 5), units(seed + 2, filled, 5)
    queue = torch.cat((past, units(seed + 3, empty, 5)))  # what lies beyond must not matter
    got = relation(query, key, queue, torch.tensor(filled), 0.1, 0.04)
    assert float(got) == pytest.approx(slow(query, key, [past] * n), rel=1e-4, abs=1e-5)


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def test_value_of_another_implementation() -> None:
    # ressl_loss_func of solo-learn's solo/losses/ressl.py on the same waves as unit vectors, run once.
    past = F.normalize(wave(0.9, 6, 4), dim=1)
    got = relation(wave(1.3, 5, 4), wave(0.7, 5, 4), past, torch.tensor(6), 0.1, 0.04)
    assert float(got) == pytest.approx(8.6498928, rel=1e-5)


def test_while_nothing_is_queued_the_batchs_other_keys_stand_in() -> None:
    query, key = draw(0, 5, 4), draw(1, 5, 4)
    others = [torch.cat((F.normalize(key, dim=1)[:n], F.normalize(key, dim=1)[n + 1 :])) for n in range(5)]
    got = relation(query, key, torch.zeros(8, 4), torch.tensor(0), 0.1, 0.04)
    assert float(got) == pytest.approx(slow(query, key, others), rel=1e-4)


def test_rotations_of_all_and_orders_of_samples_and_of_the_queue_do_not_matter() -> None:
    query, key, past = draw(0, 5, 4), draw(1, 5, 4), units(2, 7, 4)
    turn, order = torch.linalg.qr(draw(3, 4, 4)).Q, torch.randperm(5)
    want = relation(query, key, past, torch.tensor(7), 0.1, 0.04)
    moved = ((x @ turn)[order] for x in (query, key))
    got = relation(*moved, (past @ turn).flip(0), torch.tensor(7), 0.1, 0.04)
    assert float(got) == pytest.approx(float(want), rel=1e-4)


def test_equal_relations_cost_their_entropy_and_have_no_gradient() -> None:
    query, past = draw(0, 5, 4).requires_grad_(), units(1, 7, 4)
    got = relation(query, query.detach(), past, torch.tensor(7), 0.1, 0.1)
    chances = (F.normalize(query.detach(), dim=1) @ past.T / 0.1).softmax(dim=1)
    assert float(got.detach()) == pytest.approx(float(-(chances * chances.log()).sum(dim=1).mean()), rel=1e-4)
    got.backward()
    assert torch.allclose(query.grad, torch.zeros(5, 4), atol=1e-6)
    # A sharper target asks for more of the same relation.
    query.grad = None
    relation(query, query.detach(), past, torch.tensor(7), 0.1, 0.04).backward()
    assert query.grad.abs().max() > 1e-3


def test_the_last_target_view_teaches_all_the_other_views_and_none_else_teaches() -> None:
    method = small()
    method.loss(branch(draw(8, 2, 6, 4)), branch(draw(9, 2, 6, 4)))
    method.after_step()
    past = F.normalize(draw(9, 2, 6, 4)[1], dim=1)
    online, target = draw(0, 3, 5, 4).requires_grad_(), draw(1, 2, 5, 4).requires_grad_()
    loss = method.loss(branch(online), branch(target))
    want = [slow(online[i].detach(), target[1].detach(), [past] * 5) for i in (0, 2)]
    assert loss.item() == pytest.approx(sum(want) / 2, rel=1e-4)
    loss.backward()
    for grads, used in ((online.grad, [True, False, True]), (target.grad, [False, True])):
        assert [bool(grad.abs().sum() > 0) for grad in grads] == used


def test_the_recipe_gives_the_target_a_weak_view_last() -> None:
    for recipe, size in ((ReSSL.recipe, 32), (ReSSL.large, 224)):
        strong, weak = getattr(recipes, recipe.views)(size)
        assert strong.jitter > 0
        assert weak.jitter == weak.greyscale == weak.blur == weak.solarise == 0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=3), min_size=1, max_size=5),
)
def test_the_queue_is_a_fifo_of_weak_views(size: int, steps: list[list[int]]) -> None:
    method, want, seed = small(queue_size=size), deque[Tensor](maxlen=size), 0
    for step, micro_batches in enumerate(steps):
        taken = step != 1
        before = method.queue.rows.clone()
        for n in micro_batches:
            seed += 1
            target = draw(seed, 2, n, 4)
            method.loss(branch(draw(-seed, 2, n, 4)), branch(target))
            if taken:
                want.extend(F.normalize(target[1], dim=1))
        assert torch.equal(before, method.queue.rows)
        method.after_step(taken)
        filled = method.queue.rows[0, : int(method.queue.entered)]
        assert sorted(filled.tolist()) == sorted(row.tolist() for row in want)


def test_a_look_leaves_no_trace() -> None:
    method = small()
    with torch.no_grad():
        method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))
    method.after_step()
    method.eval()
    method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))
    method.after_step()
    assert int(method.queue.entered) == 0


def test_state_goes_on_to_the_bit() -> None:
    method = small()
    method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))
    method.after_step()
    twin = small()
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    losses = [one.loss(branch(draw(2, 2, 3, 4)), branch(draw(3, 2, 3, 4))) for one in (method, twin, small())]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["identical", "zero", "opposite"])
def test_finite_at_the_edges_of_sharp_temperatures(dtype: torch.dtype, kind: str) -> None:
    method = small(temperature=0.01, target_temperature=0.002)
    views = draw(0, 1, 3, 4).expand(2, -1, -1).clone()
    if kind != "identical":
        views = views * torch.tensor([1.0, -1.0] if kind == "opposite" else [0.0, 0.0])[:, None, None]
    online = views.to(dtype).requires_grad_()
    for _ in range(3):
        loss = method.loss(branch(online), branch(online.detach()))
        loss.backward()
        method.after_step()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(online.grad).all()


def test_the_queue_follows_the_images_and_the_large_recipe_large_images() -> None:
    sizes = [ReSSL.defaults(512, images)["queue_size"] for images in (1_000_000, 50_000, 5_000, 1, 0)]
    assert sizes == [65536, 65536, 6553, 1, 1]
    assert ReSSL.recipe_at(32) is ReSSL.recipe
    large = ReSSL.recipe_at(224)
    assert large is ReSSL.large
    assert large.options["queue_size"] == 131072
    assert ReSSL(large.hidden, large.out, **{**large.options, "queue_size": 4}).out == 512


@pytest.mark.parametrize("options", [{"queue_size": 0}, {"temperature": 0.0}, {"target_temperature": -1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[-1]):
        small(**options)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="1 views in the online"):
        small().loss(branch(draw(0, 1, 3, 4)), branch(draw(1, 1, 3, 4)))
