"""The sum over all keys in pieces: the same value and gradient as whole, without the whole matrix."""

from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tailfin.branch import Branch
from tailfin.methods import _contrast
from tailfin.methods._contrast import log_partition
from tailfin.methods.simclr import nt_xent


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("most", [2**26, 22, 11])
def test_it_is_the_formula_whole_and_in_pieces(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(_contrast, "MOST_SIMILARITIES", most)
    anchors, keys = draw(0, 7, 3).requires_grad_(), draw(1, 11, 3).requires_grad_()
    absent = torch.stack((torch.arange(7), torch.arange(7) + 4), dim=1)
    got = log_partition(anchors, keys, 0.5, absent)
    want = torch.stack(
        [
            torch.stack([anchors[i] @ keys[j] / 0.5 for j in range(11) if j not in (i, i + 4)])
            .exp()
            .sum()
            .log()
            for i in range(7)
        ]
    )
    torch.testing.assert_close(got, want)
    weights = draw(2, 7)
    for one, other in zip(
        torch.autograd.grad(got @ weights, (anchors, keys)),
        torch.autograd.grad(want @ weights, (anchors, keys)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(log_partition(anchors, keys, 0.5), (anchors @ keys.T / 0.5).logsumexp(dim=1))


def peak(count: int) -> int:
    """Peak bytes of SimCLR's loss and gradient on so many images."""
    views = tuple(draw(seed, count, 8).float().requires_grad_() for seed in (0, 1))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        nt_xent(Branch(views, views), Branch(views, views), 0.2).backward()  # type: ignore[no-untyped-call]
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def test_memory_grows_with_the_batch_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_contrast, "MOST_SIMILARITIES", 2**16)
    assert peak(1024) < 3 * peak(512)
    monkeypatch.setattr(_contrast, "MOST_SIMILARITIES", 2**26)
    assert peak(1024) > 3.5 * peak(512)
