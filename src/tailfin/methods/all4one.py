"""All4One: one neighbour, the centroid of five and decorrelated features in a single loss (arXiv 2303.09417)."""

from math import gcd

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import normalised_mlp
from tailfin.methods._support import NeighbourMethod
from tailfin.methods.base import (
    About,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    mlp,
    pairs,
    predict,
    two_views,
    unit,
)
from tailfin.methods.nnclr import neighbour_nce

VARIANCE_FLOOR = 1e-12
"""Mean squares below this have no gradient: that of their root would be infinite at 0."""


class All4One(NeighbourMethod):
    """All4One; two predictors and a small transformer belong to the online branch alone.

    As published but for one thing: the authors train the transformer at a rate of .1 where all else has 1.0; here
    there is one rate.

    Attributes:
        attention: Makes one centroid out of a view's neighbours.
    """

    neighbours = 5
    about = About(
        title="All4One",
        family="contrastive",
        year=2023,
        source="2303.09417",
        idea="As in NNCLR a view's nearest past neighbour is to find the prediction of the other view. A transformer "
        "also sums up its five nearest neighbours in a centroid, which is to find the other view's centroid, where "
        "a prediction has taken the first place. A third term makes the features of both views alike and independent "
        "of each other.",
        equation=r"\tfrac{1}{2} L_{\text{neighbour}} + \tfrac{1}{2} L_{\text{centroid}} + 5 \cdot \tfrac{1}{2} "
        r"\left(\sqrt{\overline{(1 - C_{ii})^2}} + \sqrt{\overline{C_{ij}^2}}\right)",
        expected={"CIFAR-10": 93.24, "CIFAR-100": 72.17},
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
        hidden=2048,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/all4one.yaml and solo/methods/all4one.py",
    )
    large = Recipe(
        optimizer="lars",
        lr=1.0,
        weight_decay=1e-5,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=2048,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/imagenet-100/all4one.yml (ResNet-18); decay: solo/methods/base.py",
    )

    waves: Tensor

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.2,
        centroid_temperature: float = 0.1,
        centroid: float = 0.5,
        feature: float = 5.0,
        queue_size: int = 98304,
    ) -> None:
        """`centroid` and `feature` weigh their terms, beside .5 for the neighbours; 0 leaves a term out.

        The predictors are twice as wide as the projector's hidden layers. `queue_size` past projections are kept to
        look for neighbours in.

        Raises:
            ValueError: If a temperature is not above 0, a weight is below 0 or `queue_size` is below 5.
        """
        super().__init__(hidden, out, queue_size)
        for name, weight in {"centroid": centroid, "feature": feature}.items():
            if not weight >= 0:
                raise ValueError(f"{name} {weight}; must be 0 or more")
        self.temperature = check_temperature(temperature)
        self.centroid_temperature = check_temperature(centroid_temperature)
        self.centroid = centroid
        self.feature = feature
        self.predictor = mlp(self.out, 2 * self.hidden, self.out, batch_norm=True)
        self.centroid_predictor = mlp(self.out, 2 * self.hidden, self.out, batch_norm=True)
        layer = nn.TransformerEncoderLayer(
            self.out, nhead=gcd(8, self.out), dim_feedforward=2 * self.out, dropout=0.1, batch_first=True
        )
        self.attention = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        self.register_buffer("waves", place_waves(self.neighbours, self.out), persistent=False)

    def projector(self, in_features: int) -> nn.Module:
        """Three layers, the last one normalised too: [N, in_features] -> [N, out]."""
        return normalised_mlp(in_features, self.hidden, self.out, affine=True)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """The weighted sum of the three terms; in training mode the first target view is kept.

        Online views that the target lacks have no neighbours, hence no centroids; they take part in the other two.
        """
        neighbours = [self.nearest(projection) for projection in two_views(target.projections)]
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        first = [
            neighbour_nce(neighbours[j][:, 0], predictions[i], self.temperature)
            for i, j in crossings(online, target)
        ]
        centroids = [self._centroid(rows) for rows in neighbours]
        shifted = [
            self._centroid(torch.cat((predict(self.centroid_predictor, one)[:, None], rows[:, :-1]), dim=1))
            for one, rows in zip(online.projections, neighbours, strict=False)
        ]
        every = [
            neighbour_nce(centroids[j], shifted[i], self.centroid_temperature) for i, j in ((0, 1), (1, 0))
        ]
        self.remember(target)
        return (
            torch.stack(first).mean() / 2
            + self.centroid * torch.stack(every).mean()
            + self.feature * redundancy(pairs(online, target))
        )

    def _centroid(self, rows: Tensor) -> Tensor:
        """What the transformer makes of the first of rows [N, neighbours, out], having seen the others."""
        return predict(self.attention, rows + self.waves)[:, 0]


def place_waves(places: int, width: int) -> Tensor:
    """What marks each place of a sequence: [places, width], one sine or cosine along the features a place.

    So it is in the authors' code; usually each place has its own point on all waves.
    """
    even = places + places % 2
    rates = 10000.0 ** (-torch.arange(0, even, 2) / even)
    angles = rates[:, None] * torch.arange(width)
    return torch.stack((angles.sin(), angles.cos()), dim=1).flatten(0, 1)[:places]


def redundancy(views: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean of two roots: of how far each feature is from itself in the other view, and how near to the others.

    Both are mean squares over the entries of C and over the pairs of views. C holds the cosines of the features over
    the batch, [P, P]; the target's samples are brought to length 1 before, as in the authors' code.

    Args:
        views: Online and target projections, [N, P] each.
    """
    with full_precision(views[0][0]):
        same, other = [], []
        for online, target in views:
            cosine = unit(unit(target).T) @ unit(online.T).T
            own = cosine.diagonal()
            width = len(own)
            same.append((own - 1).square().mean())
            other.append((cosine - own.diag()).square().sum() / max(1, width * (width - 1)))
        roots = [torch.stack(squares).mean().clamp_min(VARIANCE_FLOOR).sqrt() for squares in (same, other)]
        return torch.stack(roots).mean()
