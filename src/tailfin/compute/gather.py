"""The branch of the whole batch, from those of the processes' shares."""

from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tailfin.branch import Branch


class _Gather(torch.autograd.Function):
    """All processes' rows [N / W, D] as one tensor [N, D], by rank.

    Every process computes the same loss of all rows, so that each has the same gradient, and the sum of them over W
    processes is W times the own one: the backward pass sends nothing. (A reduce-scatter, which would be right for
    losses that differ, sends as much as the forward pass.)
    """

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        found = [
            torch.empty_like(rows, memory_format=torch.contiguous_format)
            for _ in range(dist.get_world_size())
        ]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        own = len(gradient) // dist.get_world_size()
        start = dist.get_rank() * own
        return gradient[start : start + own] * dist.get_world_size()


class Gathered(Branch):
    """A branch of the whole batch; what nobody looks at is never sent.

    Args:
        own: The branch of this process's share.
    """

    def __init__(self, own: Branch) -> None:
        object.__setattr__(self, "own", own)

    own: Branch

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """See `Branch`."""
        return tuple(_Gather.apply(each) for each in self.own.features)

    @cached_property
    def projections(self) -> tuple[Tensor, ...]:
        """See `Branch`."""
        if self.own.projections is self.own.features:
            return self.features
        return tuple(_Gather.apply(each) for each in self.own.projections)
