"""NNBYOL: BYOL towards the nearest past neighbour of the target (arXiv 2104.14548's idea, in solo-learn)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._support import NeighbourMethod
from tailfin.methods.base import About, Recipe, crossings, mlp, predict
from tailfin.methods.byol import cosine_regression


class NNBYOL(NeighbourMethod):
    """NNBYOL as solo-learn has it: BYOL's heads and loss, with the target's neighbour in the target's place."""

    about = About(
        title="NNBYOL",
        family="prediction",
        year=2021,
        source="2104.14548",
        idea="As in BYOL the online branch predicts what a momentum copy of the encoder makes of the other view. It "
        "is to hit not that projection but its nearest neighbour among those of many past images. The targets are "
        "thus more varied than augmentation alone makes them.",
        equation=r"2 - 2 \cos(q(z_1), \mathrm{NN}(z'_2, Q)) + 2 - 2 \cos(q(z_2), \mathrm{NN}(z'_1, Q))",
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
        source="solo-learn scripts/pretrain/cifar/nnbyol.yaml",
    )

    def __init__(self, hidden: int | None = None, out: int | None = None, *, queue_size: int = 65536) -> None:
        """`queue_size` past projections are kept to look for neighbours in.

        Raises:
            ValueError: If `queue_size` is below 1.
        """
        super().__init__(hidden, out, queue_size)
        self.predictor = mlp(self.out, self.hidden, self.out, batch_norm=True)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """BYOL's squared distance, summed over both directions; in training mode the first target view is kept.

        With further online views it is the mean over pairs, times two.
        """
        found = crossings(online, target)
        neighbours = [self.nearest(projection)[:, 0] for projection in target.projections]
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        self.remember(target)
        return 2 * torch.stack([cosine_regression(predictions[i], neighbours[j]) for i, j in found]).mean()
