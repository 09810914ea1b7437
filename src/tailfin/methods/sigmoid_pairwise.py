"""Sigmoid pairwise: SigLIP's loss on two views of images, each pair judged by itself (arXiv 2303.15343)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.base import About, Method, Recipe, full_precision, mutual, unit


class SigmoidPairwise(Method):
    """SigLIP's loss between views, with a learnt bias and a scale that can be learnt too.

    SigLIP learns both, from 10 and -10 on. Here the scale is kept, at the inverse of SimCLR's temperature, and the
    bias starts near the log-odds of a positive in a batch of 256: kNN was 33.8 % so and 27.8 % with SigLIP's start
    (means of 3 seeds, differences 8, 2.5 and 7.5; SimCLR 35.0 %, 2 seeds; 2,000 CIFAR-10 images, resnet10w8, batch
    128, 90 steps). arXiv 2410.17427 (SigCLR) too reports that on images the temperature should be fixed.

    What is learnt is learnt at a slower pace than the weights. SigLIP trains with Adam, whose steps do not hang on
    how long a gradient is; the recipe here is LARS, which leaves scalars at the full rate. At first projections are
    alike, so every negative pulls at the scale: at full pace it fell from 10 to 0.8 in 8 steps and to 0 in 16 (batch
    256), where no cosine counts any more. At a hundredth it fell to 6.2 and rose again to 7.4 (90 steps, batch 128).

    Attributes:
        log_scale: Logarithm of what multiplies the cosines.
        bias: What is added to them then.
    """

    stop_gradient = False
    about = About(
        title="Sigmoid pairwise",
        family="contrastive",
        year=2023,
        source="2303.15343",
        idea="Every pair of views in the batch is judged by itself: of the same image, or not. No softmax makes the "
        "pairs compete, so the loss of one pair does not depend on the others. A learnt bias says how rare the pairs "
        "of the same image are.",
        equation=r"-\frac{1}{N} \sum_i \sum_j \log \frac{1}{1 + \exp(-y_{ij} (t \cos(z_i, z'_j) + b))}, \quad "
        r"y_{ii} = 1,\ y_{i \neq j} = -1",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.4,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        clip=True,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=256,
        batch_norm=True,
        source="ours: all of SimCLR's row, of solo-learn scripts/pretrain/cifar/simclr.yaml; scale and bias: ours",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        scale: float = 5.0,
        bias: float = -5.0,
        pace: float = 0.01,
        learn_scale: int = 0,
    ) -> None:
        """`scale` multiplies the cosines and `bias` is added to them, at the start.

        The bias is learnt, and with `learn_scale` 1 so is the scale: with gradients times `pace`, which adaptive
        optimizers undo.

        Raises:
            ValueError: If `scale` is not above 0 or `pace` is below 0.
        """
        super().__init__(hidden, out)
        if not scale > 0:
            raise ValueError(f"scale {scale}; must be above 0")
        if not pace >= 0:
            raise ValueError(f"pace {pace}; must be 0 or more")
        self.pace = pace
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=bool(learn_scale))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`pairwise`, the mean over pairs of views."""
        scale = slowed(self.log_scale, self.pace).float().exp()
        bias = slowed(self.bias, self.pace).float()
        return torch.stack(
            [pairwise(one, other, scale, bias) for one, other in mutual(online, target)]
        ).mean()


def slowed(value: Tensor, pace: float) -> Tensor:
    """`value`, its gradient times `pace`."""
    return value.detach() + pace * (value - value.detach())


def pairwise(one: Tensor, other: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Logistic loss of every pair, summed over the other view and averaged over this one (arXiv 2303.15343).

    A pair's logit is scale * cosine + bias. N pairs are of the same image, N (N - 1) are not.

    Args:
        one: Projections of one view [N, P].
        other: Of another view [N, P]; row i is of the same image.
        scale: Multiplies the cosines, a scalar.
        bias: Is added then, a scalar.
    """
    with full_precision(one):
        logits = scale * (unit(one) @ unit(other).T) + bias
        sign = 1 - 2 * torch.eye(len(logits), device=logits.device)
        return F.softplus(sign * logits).sum(dim=1).mean()
