"""VICReg: views agree, features vary, and no two features vary together (arXiv 2105.04906)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods._heads import three_layers
from tailfin.methods.barlow_twins import off_diagonal_squares
from tailfin.methods.base import About, Method, Recipe, full_precision, pairs


class VICReg(Method):
    """VICReg: each view is kept from collapse by itself, so the branches may differ in all they like."""

    stop_gradient = False
    about = About(
        title="VICReg",
        family="redundancy",
        year=2021,
        source="2105.04906",
        idea="Two views of an image are to have near projections. Over a batch each feature is to keep a standard "
        "deviation of 1 or more, which rules out collapse. Two features are not to covary, so that each says "
        "something of its own.",
        equation=r"\lambda \, \mathrm{mse}(z, z') + \mu [v(z) + v(z')] + \nu [c(z) + c(z')]",
        expected={"CIFAR-10": 92.07, "CIFAR-100": 68.54},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=2048,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/vicreg.yaml; variance term: the paper's, as there (the authors' "
        "code halves it, so that its weight of 25 is 12.5 here); views: the nearest of ours; decay: ours",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=8192,
        out=8192,
        batch_norm=True,
        source="facebookresearch/vicreg main_vicreg.py and README.md (100 epochs on one node; its variance term is "
        "halved); decay: ours",
        options={"variance": 12.5},
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        """The weights of the three terms: the paper's lambda, mu and nu.

        Raises:
            ValueError: If a weight is below 0.
        """
        super().__init__(hidden, out)
        self.invariance, self.variance, self.covariance = check_weights(invariance, variance, covariance)

    def projector(self, in_features: int) -> nn.Module:
        """The published head of three layers: [N, in_features] -> [N, out]."""
        return three_layers(in_features, self.hidden, self.out)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`vicreg_loss`, the mean over pairs of views."""
        weights = self.invariance, self.variance, self.covariance
        return vicreg_loss(online, target, *weights, redundancy=covariance_loss)


def vicreg_loss(
    online: Branch,
    target: Branch,
    invariance: float,
    variance: float,
    covariance: float,
    *,
    redundancy: Callable[[Tensor], Tensor],
) -> Tensor:
    """lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')] (arXiv 2105.04906), a float32 scalar.

    The mean over every online view with every target view but its own. The distance s is the mean over samples and
    features, as in the authors' code; v is `spread_loss`. The authors' code halves v, so its mu of 25 is 12.5 here.

    Args:
        online: Projections, each [N, P]; N is 2 or more.
        target: The same from the target branch, of the same views or of the first ones alone.
        invariance: Weight of s, lambda.
        variance: Weight of v, mu.
        covariance: Weight of c, nu.
        redundancy: The term c of one view, float32 [N, P].
    """
    with full_precision(online.projections[0]):
        # A view's own terms are computed once, in however many pairs and whichever branches it stands.
        own: dict[int, Tensor] = {}
        total = []
        for one, other in pairs(online, target):
            for view in (one, other):
                if id(view) not in own:
                    own[id(view)] = variance * spread_loss(view.float()) + covariance * redundancy(
                        view.float()
                    )
            distance = F.mse_loss(one.float(), other.float())
            total.append(invariance * distance + own[id(one)] + own[id(other)])
        return torch.stack(total).mean()


def check_weights(invariance: float, variance: float, covariance: float) -> tuple[float, float, float]:
    """The weights, if none is below 0.

    Raises:
        ValueError: If one is.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} {weight}; must be 0 or more")
    return invariance, variance, covariance


def spread_loss(view: Tensor) -> Tensor:
    """By how much the features' deviations fall short of 1: v = 1/P sum_j max(0, 1 - sqrt(Var z_j + 1e-4)).

    Args:
        view: Projections, float32 [N, P]; N is 2 or more.
    """
    return F.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_loss(view: Tensor) -> Tensor:
    """Squared covariances of different features, c = 1/P sum_{i != j} Cov(z)_ij^2.

    Args:
        view: Projections, float32 [N, P]; N is 2 or more.
    """
    deviations = view - view.mean(dim=0)
    return off_diagonal_squares(deviations / (len(view) - 1), deviations) / view.shape[1]
