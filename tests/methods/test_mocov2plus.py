"""The queue against a plain list, and its place in the training step."""

import copy
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.mocov2plus import MoCoV2Plus


def branch(seed: int, n: int, p: int = 4) -> Branch:
    views = tuple(torch.randn(2, n, p, generator=torch.Generator().manual_seed(seed)))
    return Branch(views, views)


def rows(keys: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in keys.tolist()}


def unit(keys: Tensor) -> Tensor:
    return torch.nn.functional.normalize(keys, dim=1)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 11),
    steps=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6),
)
def test_queue_is_a_fifo_for_any_batch_sizes(size: int, steps: list[list[int]]) -> None:
    method = MoCoV2Plus(out=4, queue_size=size)
    want = tuple(deque[Tensor](maxlen=size) for _ in range(2))
    seed = 0
    for micro_batches in steps:
        for n in micro_batches:
            seed += 1
            target = branch(seed, n)
            method.loss(branch(-seed, n), target)
            for view in (0, 1):
                want[view].extend(unit(target.projections[view]))
        method.after_step()
        filled = min(size, int(method.queue.entered))
        for view in (0, 1):
            assert rows(method.queue.rows[view, :filled]) == rows(torch.stack(list(want[view])))


def test_loss_moves_the_queue_only_at_a_taken_step_in_training() -> None:
    method = MoCoV2Plus(out=4, queue_size=8)
    start = copy.deepcopy(method.state_dict())
    method.loss(branch(0, 3), branch(1, 3))
    assert all(torch.equal(start[name], value) for name, value in method.state_dict().items())
    method.after_step(taken=False)
    method.after_step()
    with torch.no_grad():
        method.loss(branch(0, 3), branch(1, 3))
    method.after_step()
    method.eval()
    method.loss(branch(0, 3), branch(1, 3))
    method.after_step()
    assert all(torch.equal(start[name], value) for name, value in method.state_dict().items())
    method.train()
    method.loss(branch(0, 3), branch(1, 3))
    method.after_step()
    assert int(method.queue.entered) == 3


def test_a_loop_without_after_step_keeps_a_bounded_number_of_keys() -> None:
    method = MoCoV2Plus(out=4, queue_size=8)
    for seed in range(50):
        method.loss(branch(seed, 3), branch(seed, 3))
    assert sum(keys.shape[1] for keys in method.queue._pending) <= 8 + 2
    method.after_step()
    last = torch.cat([unit(branch(seed, 3).projections[0]) for seed in range(47, 50)])[-8:]
    assert rows(method.queue.rows[0]) == rows(last)


def test_keys_carry_no_gradient_into_the_queue_but_the_loss_may_cross_the_target() -> None:
    method = MoCoV2Plus(out=4, queue_size=8)
    views = tuple(z.requires_grad_() for z in branch(0, 3).projections)
    method.loss(branch(1, 3), Branch(views, views)).backward()
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in views)
    method.after_step()
    assert not method.queue.rows.requires_grad


def test_each_view_is_compared_with_its_own_keys_queue() -> None:
    # Queue of view 1 holds view-1 keys; the loss of query 2 (whose positives are view-1 keys) reads it.
    method = MoCoV2Plus(out=4, queue_size=3)
    target = branch(5, 3)
    method.loss(branch(4, 3), target)
    method.after_step()
    for view in (0, 1):
        assert rows(method.queue.rows[view]) == rows(unit(target.projections[view]))
    online = tuple(z.requires_grad_() for z in branch(6, 3).projections)
    before = method.loss(Branch(online, online), branch(7, 3))
    gradient = torch.autograd.grad(before, online)
    method.queue.rows[0].neg_()
    changed = torch.autograd.grad(method.loss(Branch(online, online), branch(7, 3)), online)
    assert torch.equal(gradient[0], changed[0])
    assert not torch.equal(gradient[1], changed[1])


def test_resume_is_bit_exact() -> None:
    def run(method: MoCoV2Plus, seeds: range) -> list[Tensor]:
        losses = []
        for seed in seeds:
            losses.append(method.loss(branch(seed, 5), branch(-seed, 5)))
            method.after_step()
        return losses

    straight = MoCoV2Plus(out=4, queue_size=13)
    want = run(straight, range(1, 9))
    first = MoCoV2Plus(out=4, queue_size=13)
    run(first, range(1, 5))
    second = MoCoV2Plus(out=4, queue_size=13)
    second.load_state_dict(first.state_dict())
    got = run(second, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(want[4:], got, strict=True))
    assert torch.equal(straight.queue.rows, second.queue.rows)


@pytest.mark.parametrize("options", [{"queue_size": 0}, {"temperature": 0.0}, {"hidden": 0}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MoCoV2Plus(**options)  # type: ignore[arg-type]


def test_the_large_recipe_is_for_large_images_and_constructs() -> None:
    assert MoCoV2Plus.recipe_at(32) is MoCoV2Plus.recipe
    large = MoCoV2Plus.recipe_at(224)
    assert large is MoCoV2Plus.large
    assert large.weight_decay < MoCoV2Plus.recipe.weight_decay
    assert large.options == {"queue_size": 65536}
    MoCoV2Plus(large.hidden, large.out, **large.options)
