"""NNSiam: SimSiam towards the nearest past neighbour of the target (arXiv 2104.14548's idea, in solo-learn)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import normalised_mlp
from tailfin.methods._support import NeighbourMethod
from tailfin.methods.base import About, Recipe, crossings, mlp, predict
from tailfin.methods.simsiam import negative_cosine


class NNSiam(NeighbourMethod):
    """NNSiam as solo-learn has it: SimSiam's projector and loss, NNCLR's wide predictor and neighbours."""

    about = About(
        title="NNSiam",
        family="prediction",
        year=2021,
        source="2104.14548",
        idea="As in SimSiam the online branch predicts what the same encoder makes of the other view. It is to hit "
        "not that projection but its nearest neighbour among those of many past images. The neighbours have no "
        "gradient, which together with the predictor keeps the outputs from collapsing.",
        equation=r"-\tfrac{1}{2} \cos(q(z_1), \mathrm{NN}(z_2, Q)) - \tfrac{1}{2} \cos(q(z_2), \mathrm{NN}(z_1, Q))",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.5,
        weight_decay=1e-5,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=2048,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/nnsiam.yaml; decay: ours",
    )

    def __init__(self, hidden: int | None = None, out: int | None = None, *, queue_size: int = 65536) -> None:
        """`queue_size` past projections are kept to look for neighbours in.

        The predictor is twice as wide as the projector's hidden layers.

        Raises:
            ValueError: If `queue_size` is below 1.
        """
        super().__init__(hidden, out, queue_size)
        self.predictor = mlp(self.out, 2 * self.hidden, self.out, batch_norm=True)

    def projector(self, in_features: int) -> nn.Module:
        """SimSiam's: three layers, the last one normalised too, without a scale: [N, in_features] -> [N, out]."""
        return normalised_mlp(in_features, self.hidden, self.out, affine=False)

    def fixed_rate(self) -> Iterable[nn.Parameter]:
        """The predictor's, as in SimSiam."""
        return self.predictor.parameters()

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """SimSiam's negative cosine over all pairs, averaged; in training mode the first target view is kept."""
        found = crossings(online, target)
        neighbours = [self.nearest(projection)[:, 0] for projection in target.projections]
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        self.remember(target)
        return torch.stack([negative_cosine(predictions[i], neighbours[j]) for i, j in found]).mean()
