"""Optimizers and the learning rate's schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tailfin.methods.base import Method
from tailfin.run.config import Config, OptimizerName


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step of a run, see `learning_rate`.

    Attributes:
        peak: The highest rate: `lr`, given for a batch of 256, scaled to the batch.
        warmup: Steps of the linear warm-up.
        total: Steps of the run.
    """

    peak: float
    warmup: int
    total: int

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Schedule":
        """That of a run's settings, of which nothing is left open."""
        return cls(
            cast(float, config.lr) * config.batch_size / 256,
            round(cast(float, config.warmup_epochs) * steps_per_epoch),
            steps_per_epoch * config.epochs,
        )

    def __call__(self, step: int) -> float:
        """The rate of step number `step`, counted from 0."""
        return learning_rate(step, peak=self.peak, warmup=self.warmup, total=self.total)


def of(config: Config, encoder: nn.Module, method: Method, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a run's settings, of which nothing is left open; the method's recipe says the rest."""
    recipe = method.recipe_at(cast(int, config.image_size))
    published = config.optimizer == recipe.optimizer
    return build(
        cast(OptimizerName, config.optimizer),
        (encoder, method),
        lr=lr,
        weight_decay=cast(float, config.weight_decay),
        momentum=recipe.momentum,
        trust_coefficient=recipe.trust_coefficient if published else None,
        clip=recipe.clip and published,
        fixed=method.fixed_rate(),
    )


def build(
    kind: OptimizerName,
    modules: Iterable[nn.Module],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    trust_coefficient: float | None = None,
    clip: bool = False,
    fixed: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of `modules`, in the order of their names.

    Norms and biases (parameters of one dimension) get neither weight decay nor LARS's scaling.

    Args:
        kind: "sgd", "lars" (arXiv 1708.03888) or "adamw".
        modules: What to train; frozen parameters are left out.
        lr: Peak learning rate.
        weight_decay: For matrices and kernels.
        momentum: Of SGD and LARS.
        trust_coefficient: LARS's eta; 0.001 where None.
        clip: LARS's local rate is at most the global one (LARC).
        fixed: Parameters whose rate stays at `lr`, see `set_learning_rate`.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    held = {id(p) for p in fixed}
    groups: list[dict[str, Any]] = []
    for still in (False, True):
        own = [p for p in parameters if (id(p) in held) == still]
        for decayed in (True, False):
            some = [p for p in own if (p.ndim > 1) == decayed]
            if some:
                groups.append(
                    {"params": some, "weight_decay": weight_decay if decayed else 0.0, "fixed": still}
                )
    if kind == "adamw":
        # Fused: 3.9 instead of 14 ms on a ResNet-18. Not SGD, which then fails where a parameter's first gradient
        # comes later than others' (SwAV's prototypes).
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    from timm.optim import Lars

    for group in groups:
        # Else timm leaves kernels unscaled where weight decay is 0; vectors it must leave.
        group["always_adapt"] = group["params"][0].ndim > 1
    eta = 0.001 if trust_coefficient is None else trust_coefficient
    optimizer: torch.optim.Optimizer = Lars(
        groups, lr=lr, momentum=momentum, trust_coeff=eta, trust_clip=clip
    )
    return optimizer


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """The rate of step number `step`, counted from 0: linear up over `warmup` steps, then a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate `lr`, but those that are fixed."""
    for group in optimizer.param_groups:
        if not group.get("fixed"):
            group["lr"] = lr
