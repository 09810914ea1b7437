"""The momentum update: decay schedules and the fused, in-place average over tensors matched by name."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from tailfin.errors import unknown

Buffers = Literal["batch", "ema", "copy"]
"""What becomes of a momentum part's buffers, BatchNorm's statistics above all.

`batch`: the part normalises with its own batch statistics and keeps its own running ones (BYOL, MoCo).
`ema`: statistics are averaged like the weights and the part runs in eval mode (EMAN, arXiv 2101.08482).
`copy`: statistics are the online part's at every update and the part runs in eval mode.
"""


@dataclass(frozen=True)
class Decay:
    """The weight of the old value in the average, per optimizer step: constant, or a cosine from `start` to `end`.

    d(t) = end - (end - start) (1 + cos(pi t / steps)) / 2, which is BYOL's schedule (arXiv 2006.07733, section 3.2)
    for end = 1. After `steps` updates it stays at `end`.

    Raises:
        ValueError: A decay outside [0, 1], or an end that differs from the start without the number of steps.
    """

    start: float
    end: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for value in (self.start, self.start if self.end is None else self.end):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"decay is the weight of the old value and lies in [0, 1], got {value}")
        if self.end not in (None, self.start) and (self.steps is None or self.steps < 1):
            raise ValueError("a decay that moves from start to end needs the number of optimizer steps")

    def __call__(self, step: int) -> float:
        """The decay of update number `step`, counted from 0."""
        if self.end is None or self.steps is None:
            return self.start
        progress = min(step / self.steps, 1.0)
        return self.end - (self.end - self.start) * (1.0 + math.cos(math.pi * progress)) / 2.0


def scale_decay(decay: float, kappa: float) -> float:
    """The decay for a batch `kappa` times as large: decay ** kappa (EMA scaling rule, arXiv 2307.13813)."""
    if not 0.0 <= decay <= 1.0 or kappa <= 0.0:
        raise ValueError(f"needs a decay in [0, 1] and kappa > 0, got {decay} and {kappa}")
    return cast(float, decay**kappa)


def check_buffers(policy: str) -> Buffers:
    """`policy` where it is one of the three, else a `UserError` that names the nearest."""
    if policy not in get_args(Buffers):
        raise unknown("buffer policy", policy, get_args(Buffers))
    return cast(Buffers, policy)


@torch.no_grad()
def average_(momentum: nn.Module, online: nn.Module, decay: float, buffers: Buffers) -> None:
    """One update in place: momentum <- decay * momentum + (1 - decay) * online.

    Floating tensors are averaged in the momentum tensor's own dtype (fp32 or higher), fused over all of them;
    integer and boolean tensors are copied. Under `batch`, buffers are left to the momentum module's own forward.

    Raises:
        ValueError: A tensor that the other module lacks.
    """
    ours, theirs = _pairs(momentum.named_parameters(), online.named_parameters())
    if buffers != "batch":
        own, other = _pairs(momentum.named_buffers(), online.named_buffers())
        if buffers == "copy":
            for target, source in zip(own, other, strict=True):
                target.copy_(source)
        else:
            ours, theirs = ours + own, theirs + other
    targets, sources = [], []
    for target, source in zip(ours, theirs, strict=True):
        if target.is_floating_point():
            targets.append(target)
            sources.append(source.to(target.dtype))
        else:
            target.copy_(source)
    if targets:
        torch._foreach_lerp_(targets, sources, weight=1.0 - decay)


def _pairs(
    momentum: Iterable[tuple[str, Tensor]], online: Iterable[tuple[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of both modules in one order, matched by name."""
    ours, theirs = dict(momentum), dict(online)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())[0]
        raise ValueError(f"tensor {odd!r} exists in only one of the online and the momentum part")
    return list(ours.values()), [theirs[name] for name in ours]
