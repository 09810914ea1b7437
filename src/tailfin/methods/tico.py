"""TiCo: views agree, and avoid the directions that projections have taken of late (arXiv 2206.10698)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.base import About, Method, Recipe, full_precision, pairs, unit


class TiCo(Method):
    """TiCo in both directions, where the published loss has one; the covariance is that of all online views.

    Attributes:
        covariance: float32 [out, out], the running mean of the unit projections' second moments; 0 at first.
    """

    stop_gradient = True
    about = About(
        title="TiCo",
        family="redundancy",
        year=2022,
        source="2206.10698",
        idea="A view is to agree with what a momentum encoder makes of the other view. It is to avoid the directions "
        "in which the projections of this and earlier batches lie, as a running covariance tells. That is a contrast "
        "with every past projection, at the cost of one small matrix.",
        equation=r"1 - z \cdot z' + \rho \, z^\top C z, \quad C \leftarrow \beta C + (1 - \beta) "
        r"\frac{1}{N} \sum_i z_i z_i^\top",
        expected={"ImageNet": 49.7},
        expected_source="lightly's README, ResNet-50, batch 256, 100 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=1.0,
        weight_decay=1e-5,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=True,
        source="head and start of the decay: sayannag/TiCo-pytorch, which is not the authors'; optimizer, end of the "
        "decay and views at CIFAR size: ours, BYOL's in solo-learn",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.2,
        weight_decay=1.5e-6,
        trust_coefficient=0.001,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=True,
        source="lightly benchmarks/imagenet/resnet50/tico.py",
    )
    covariance: Tensor

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        contrast: float = 8.0,
        memory: float = 0.9,
    ) -> None:
        """`contrast` is the paper's rho, the covariance's weight; `memory` its beta, the weight of the past.

        Raises:
            ValueError: If `contrast` is below 0 or `memory` not in [0, 1).
        """
        super().__init__(hidden, out)
        if not contrast >= 0:
            raise ValueError(f"contrast {contrast}; must be 0 or more")
        if not 0 <= memory < 1:
            raise ValueError(f"memory {memory}; must be from 0 to below 1")
        self.contrast = contrast
        self.memory = memory
        self.register_buffer("covariance", torch.zeros(self.out, self.out))
        self._gathered: Tensor | None = None
        self._batches = 0

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Agreement and contrast, the mean over pairs; in training mode the moments wait for `after_step`."""
        losses = [
            tico_loss(one, other, self.covariance, self.contrast, self.memory)
            for one, other in pairs(online, target)
        ]
        if self.training and torch.is_grad_enabled():
            gathered = torch.stack([second_moment(view.detach()) for view in online.projections]).mean(dim=0)
            self._gathered = gathered if self._gathered is None else self._gathered + gathered
            self._batches += 1
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, taken: bool = True) -> None:
        """Average the moments of all micro-batches since the last call into the covariance."""
        gathered, batches = self._gathered, self._batches
        self._gathered, self._batches = None, 0
        if taken and gathered is not None:
            self.covariance.lerp_((gathered / batches).to(self.covariance.dtype), 1 - self.memory)


def tico_loss(one: Tensor, other: Tensor, past: Tensor, contrast: float, memory: float) -> Tensor:
    """Mean over N of 1 - z z' + rho z^T C z, where C = beta C_past + (1 - beta) 1/N sum z z^T (arXiv 2206.10698).

    All z are unit vectors. The batch's own share of C has a gradient.

    Args:
        one: Online projections [N, P].
        other: Target projections of another view [N, P].
        past: Covariance before this batch [P, P].
        contrast: Weight of the second term, rho.
        memory: Weight of the past, beta.
    """
    with full_precision(one):
        own = second_moment(one)
        covariance = memory * past.float() + (1 - memory) * own
        # The mean of z^T C z over the batch is the sum of the products of C and the batch's own moment.
        return 1 - (unit(one) * unit(other)).sum(dim=1).mean() + contrast * (covariance * own).sum()


def second_moment(view: Tensor) -> Tensor:
    """1/N sum z z^T of the unit vectors z, float32 [P, P], for projections [N, P]."""
    with full_precision(view):
        rows = unit(view)
        return rows.T @ rows / len(rows)
