"""BYOL: each view predicts the target's projection of the other view (arXiv 2006.07733)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods.base import NORM_FLOOR, About, Method, Recipe, crossings, full_precision, mlp, predict


class BYOL(Method):
    """BYOL; the predictor belongs to the online branch alone."""

    stop_gradient = True
    about = About(
        title="BYOL",
        family="prediction",
        year=2020,
        source="2006.07733",
        idea="The online branch predicts, through a head of its own, what a momentum copy of the encoder makes of "
        "the other view. There are no negatives. The predictor and the slow target keep the outputs from collapsing.",
        equation=r"2 - 2 \cos(q(z_1), z'_2) + 2 - 2 \cos(q(z_2), z'_1)",
        expected={"CIFAR-10": 92.58, "CIFAR-100": 70.46},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
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
        source="solo-learn scripts/pretrain/cifar/byol.yaml",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.45,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/imagenet/byol.yaml",
    )

    def __init__(
        self, hidden: int | None = None, out: int | None = None, *, predictor: int = 1, stop_gradient: int = 1
    ) -> None:
        """The predictor has the projector's hidden width and its output width on both ends.

        `predictor` 0 leaves it out and `stop_gradient` 0 lets momentum `none` send gradients into both branches:
        without either nothing keeps the outputs from collapsing (section 5, table 5b).
        """
        super().__init__(hidden, out)
        self.stop_gradient = bool(stop_gradient)
        head = mlp(self.out, self.hidden, self.out, batch_norm=True)
        self.predictor = head if predictor else nn.Identity()

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Squared distance of unit vectors, summed over both directions (section 3.1, equation 2).

        With further online views it is the mean over pairs, times two.
        """
        found = crossings(online, target)
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        return (
            2
            * torch.stack([cosine_regression(predictions[i], target.projections[j]) for i, j in found]).mean()
        )


def cosine_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of 2 - 2 cos(prediction, target), both [N, P] (arXiv 2006.07733, equation 2)."""
    with full_precision(prediction):
        cosine = F.cosine_similarity(prediction.float(), target.float(), dim=1, eps=NORM_FLOOR)
        return (2 - 2 * cosine).mean()
