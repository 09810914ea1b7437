"""LeJEPA: views predict their centre while random projections are to look Gaussian (arXiv 2511.08544)."""

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import three_layers
from tailfin.methods.base import About, Method, Recipe, crossings, full_precision, unit

REACH = 3.0
"""The statistic compares characteristic functions on [-REACH, REACH]."""


class LeJEPA(Method):
    """LeJEPA with SIGReg; with a momentum target, the centre is that of the target's views."""

    stop_gradient = False
    about = About(
        title="LeJEPA",
        family="redundancy",
        year=2025,
        source="2511.08544",
        idea="Every view is to be near the centre of its image's views. Over a batch the projections are to follow a "
        "standard normal distribution, which is the one that serves unknown later tasks best. A test of normality "
        "along random directions, drawn anew each step, measures how far they are from it.",
        equation=r"\frac{1 - \lambda}{P} \lVert z - \bar z \rVert^2 + \lambda \, \frac{N}{|A|} \sum_{a \in A} \int "
        r"|\hat\varphi_{a \cdot z}(t) - e^{-t^2/2}|^2 e^{-t^2/2} \, dt",
        expected={"ImageNet": 79},
        expected_source="the paper's abstract, ViT-H/14",
    )
    recipe = Recipe(
        optimizer="adamw",
        lr=5e-4,
        weight_decay=5e-4,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        warmup_epochs=1,
        source="rbalestr-lab/lejepa README.md (optimizer, for ResNets, at no stated batch), MINIMAL.md (head, "
        "directions, warm-up) and scripts (lambda); views: the nearest of ours; decay: ours",
    )
    large = Recipe(
        optimizer="adamw",
        lr=2.5e-4,
        weight_decay=5e-4,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=512,
        batch_norm=True,
        warmup_epochs=1,
        source="rbalestr-lab/lejepa README.md (weight decay for ResNets, directions), "
        "scripts/launch_epps_ablation.md (5e-4 at batch 512, output, lambda) and MINIMAL.md (hidden width, warm-up); "
        "views: the nearest of ours; decay: ours",
        options={"directions": 1024},
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        regularisation: float = 0.05,
        directions: int = 256,
        knots: int = 17,
    ) -> None:
        """`regularisation` is the paper's lambda; `directions` and `knots` are how finely it is measured.

        Raises:
            ValueError: If `regularisation` is not in [0, 1], `directions` is below 1 or `knots` below 2.
        """
        super().__init__(hidden, out)
        if not 0 <= regularisation <= 1:
            raise ValueError(f"regularisation {regularisation}; must be from 0 to 1")
        if directions < 1:
            raise ValueError(f"directions {directions}; must be 1 or more")
        if knots < 2:
            raise ValueError(f"knots {knots}; must be 2 or more")
        self.regularisation = regularisation
        self.directions = directions
        self.knots = knots

    def projector(self, in_features: int) -> nn.Module:
        """Three layers: [N, in_features] -> [N, out]."""
        return three_layers(in_features, self.hidden, self.out)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """The distance to the centre and SIGReg, weighted; the mean over the online views."""
        crossings(online, target)
        directions = draw(online.projections[0], self.directions)
        with full_precision(directions):
            centre = torch.stack(target.projections).float().mean(dim=0)
            weight = self.regularisation
            losses = [
                lejepa_loss(view, centre, directions, self.knots, weight) for view in online.projections
            ]
        return torch.stack(losses).mean()


def lejepa_loss(
    view: Tensor, centre: Tensor, directions: Tensor, knots: int, regularisation: float
) -> Tensor:
    """(1 - lambda) mse(z, centre) + lambda SIGReg(z) of one view (arXiv 2511.08544), a float32 scalar.

    The distance is the mean over samples and features, as in the authors' code; SIGReg is the mean over directions a
    of `epps_pulley` of a^T z.

    Args:
        view: Projections [N, P].
        centre: Mean projections of the same images [N, P].
        directions: Unit columns, float32 [P, A].
        knots: Points of the statistic's integral.
        regularisation: lambda.
    """
    with full_precision(view):
        view = view.float()
        distance = (view - centre.float()).square().mean()
        return (1 - regularisation) * distance + regularisation * epps_pulley(view @ directions, knots).mean()


def draw(like: Tensor, count: int) -> Tensor:
    """Random unit columns, float32 [P, count], for projections `like` of [N, P]; from torch's own generator."""
    return unit(torch.randn(count, like.shape[1], device=like.device)).T


def epps_pulley(samples: Tensor, knots: int) -> Tensor:
    """Epps and Pulley's statistic of how far samples are from a standard normal distribution, [A].

    N times the integral of the squared distance between the characteristic functions, with the normal one for
    weight, by the trapezoidal rule. Both sides of 0 are alike, so one is computed and counted twice.

    Args:
        samples: float32 [N, A], a column a direction.
        knots: Points t on [0, REACH].
    """
    t = torch.linspace(0, REACH, knots, device=samples.device)
    normal = (-t.square() / 2).exp()
    angles = samples[:, :, None] * t
    distance = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    integral: Tensor = torch.trapezoid(distance * normal, t, dim=1)
    return 2 * len(samples) * integral
