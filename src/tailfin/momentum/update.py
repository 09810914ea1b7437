"""The momentum update: decay schedules and the fused, in-place average over tensors matched by name."""

import math
from collections.abc import Iterable, Mapping
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


class Average:
    """The update in place, momentum <- decay * momentum + (1 - decay) * online, of one module after another.

    Tensors are matched by name once, and looked up anew at each update, so that one that was replaced is found: to
    walk the modules by name each time takes .66 ms for a ResNet-50, more than the update itself on a GPU.

    Floating tensors are averaged in the momentum tensor's own dtype (fp32 or higher), fused over all of them;
    integer and boolean tensors are copied. Under `batch`, buffers are left to the momentum module's own forward.

    Args:
        momentum: The slow module.
        online: The module that it follows.
        buffers: What becomes of buffers.

    Raises:
        ValueError: A tensor that the other module lacks, here or at an update.
    """

    def __init__(self, momentum: nn.Module, online: nn.Module, buffers: Buffers) -> None:
        self.momentum, self.online, self.policy = momentum, online, buffers
        self._parameters = _matched(momentum, online, "_parameters")
        self._buffers = [] if buffers == "batch" else _matched(momentum, online, "_buffers")

    @torch.no_grad()
    def gather(self, targets: list[Tensor], sources: list[Tensor]) -> None:
        """Put the tensors that are to be averaged at the ends of the lists, and copy the others."""
        ours, theirs = _tensors(self._parameters)
        own, other = _tensors(self._buffers)
        if self.policy == "copy":
            for target, source in zip(own, other, strict=True):
                target.copy_(source)
        else:
            ours, theirs = ours + own, theirs + other
        for target, source in zip(ours, theirs, strict=True):
            if target.is_floating_point():
                targets.append(target)
                sources.append(source if source.dtype == target.dtype else source.to(target.dtype))
            else:
                target.copy_(source)


@torch.no_grad()
def average_(averages: Iterable[tuple[Average, float]]) -> None:
    """One update of several modules, each at its decay: a fused call for each decay that there is."""
    groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for average, decay in averages:
        average.gather(*groups.setdefault(decay, ([], [])))
    for decay, (targets, sources) in groups.items():
        if targets:
            torch._foreach_lerp_(targets, sources, weight=1.0 - decay)


Slots = list[tuple[str, dict[str, Tensor | None], dict[str, Tensor | None], list[str]]]
"""Of each module in turn: its name, the momentum one's tensors, the online one's, and which of them count."""


def _matched(momentum: nn.Module, online: nn.Module, kind: str) -> Slots:
    """The modules' own dictionaries of tensors side by side; a tensor that modules share counts once."""
    ours, theirs = dict(momentum.named_modules()), dict(online.named_modules())
    seen: set[int] = set()
    slots: Slots = []
    for name in dict.fromkeys((*ours, *theirs)):
        own, other = getattr(ours.get(name), kind, {}), getattr(theirs.get(name), kind, {})
        _check_names(name, own, other)
        keys = [key for key, tensor in own.items() if tensor is not None and id(tensor) not in seen]
        seen.update(id(own[key]) for key in keys)
        if own:
            slots.append((name, own, other, keys))
    return slots


def _tensors(slots: Slots) -> tuple[list[Tensor], list[Tensor]]:
    ours, theirs = [], []
    for name, own, other, keys in slots:
        _check_names(name, own, other)
        for key in keys:
            target, source = own[key], other[key]
            assert target is not None
            if source is None:
                raise ValueError(f"tensor {key!r} of {name!r} exists in the momentum part alone")
            ours.append(target)
            theirs.append(source)
    return ours, theirs


def _check_names(name: str, own: Mapping[str, object], other: Mapping[str, object]) -> None:
    if own.keys() != other.keys():
        odd = min(own.keys() ^ other.keys())
        tensor = f"{name}.{odd}" if name else odd
        raise ValueError(f"tensor {tensor!r} exists in only one of the online and the momentum part")
