"""SimDINO: DINO without prototypes, held open by the coding rate of its features (arXiv 2502.10385)."""

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import gelu_mlp
from tailfin.methods.base import About, Method, Recipe, full_precision, pairs, unit


class SimDINO(Method):
    """SimDINO: no prototypes, temperatures or centre. The projector is DINO's without its last layer."""

    stop_gradient = True
    about = About(
        title="SimDINO",
        family="redundancy",
        year=2025,
        source="2502.10385",
        idea="A student's features of a view are to be near a momentum teacher's of the other view. The coding rate, "
        "which is how many bits the student's features need, is to be high, so that they spread over all directions. "
        "That one term takes the place of DINO's prototypes, centring and sharpening.",
        equation=r"\tfrac{1}{2} \lVert z_s - z'_t \rVert^2 - \gamma \tfrac{1}{2} \log\det\left(I + "
        r"\frac{d}{\varepsilon^2} \mathrm{Cov}(z_s)\right)",
        expected={"ImageNet": 77.3},
        expected_source="RobinWu218/SimDINO README, ViT-B/16 with ten small crops, 100 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="all",
        decay=0.996,
        decay_end=1.0,
        hidden=2048,
        out=256,
        batch_norm=False,
        source="head, decay and loss: RobinWu218/SimDINO simdino/main_dino.py and README, whose default is the "
        "coding rate of the mean of both branches (expa_type 1) and whose optimizer is ViT-B's alone; optimizer: "
        "ours, DINO's in solo-learn",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        distortion: float = 0.05,
        rate: float = 1.0,
    ) -> None:
        """`distortion` is the paper's epsilon squared; `rate` scales the coding rate's weight, 0 leaves it out.

        Raises:
            ValueError: If `distortion` is not above 0 or `rate` is below 0.
        """
        super().__init__(hidden, out)
        if not distortion > 0:
            raise ValueError(f"distortion {distortion}; must be above 0")
        if not rate >= 0:
            raise ValueError(f"rate {rate}; must be 0 or more")
        self.distortion = distortion
        self.rate = rate

    def projector(self, in_features: int) -> nn.Module:
        """DINO's MLP: [N, in_features] -> [N, out]; the loss brings its rows to length 1."""
        return gelu_mlp(in_features, self.hidden, self.out)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Distance to the target less the weighted coding rate; small crops take part in the distance alone."""
        return nearness(online, target) - self.rate * expansion(
            online.projections[: len(target.projections)], self.distortion
        )


def nearness(online: Branch, target: Branch) -> Tensor:
    """Half the squared distance of unit vectors (arXiv 2502.10385), a float32 scalar.

    The mean over samples and over every online view with every target view but its own.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch, of the same views or of the first ones alone.
    """
    with full_precision(online.projections[0]):
        distances = [
            (unit(one) - unit(other)).square().sum(dim=1).mean() / 2 for one, other in pairs(online, target)
        ]
        return torch.stack(distances).mean()


def expansion(views: tuple[Tensor, ...], distortion: float) -> Tensor:
    """Mean over views of gamma times the coding rate (arXiv 2502.10385), a float32 scalar.

    The weight is gamma = (N + P) / (N P), which makes it the size of the distance at any batch and width.

    Args:
        views: Projections of one view each, [N, P].
        distortion: The paper's epsilon squared.
    """
    with full_precision(views[0]):
        count, width = views[0].shape
        gamma = (count + width) / (count * width)
        return gamma * torch.stack([coding_rate(unit(view), distortion) for view in views]).mean()


def coding_rate(vectors: Tensor, distortion: float) -> Tensor:
    """Half the log-determinant of I + P / distortion times the covariance about 0 of float32 [N, P], in nats."""
    count, width = vectors.shape
    # I + A A^T and I + A^T A have one determinant; the smaller matrix is the cheaper.
    gram = vectors @ vectors.T if count < width else vectors.T @ vectors
    matrix = torch.eye(len(gram), device=gram.device) + gram * (width / (count * distortion))
    # No eigenvalue is below 1, so the check, for which a GPU would have to be waited for, is not needed.
    factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]
    return factor.diagonal().log().sum()
