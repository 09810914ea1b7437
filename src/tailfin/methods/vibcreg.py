"""VIbCReg: VICReg with a normalised covariance and features whitened by iteration (arXiv 2109.00783)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.barlow_twins import off_diagonal_squares
from tailfin.methods.base import NORM_FLOOR, About, Method, Recipe, full_precision
from tailfin.methods.vicreg import check_weights, vicreg_loss


class VIbCReg(Method):
    """VIbCReg: its projector ends in `IterNorm`, and its covariance term does not depend on the width."""

    stop_gradient = False
    about = About(
        title="VIbCReg",
        family="redundancy",
        year=2021,
        source="2109.00783",
        idea="Two views of an image are to have near projections, and every feature is to vary over the batch. "
        "Features are not to correlate, whatever their size and number, where VICReg bounds covariances. A last "
        "layer of the projector whitens groups of features by iteration, which makes that easy to reach.",
        equation=r"\lambda \, \mathrm{mse}(z, z') + \mu [v(z) + v(z')] + "
        r"\frac{\nu}{P^2} \sum_{i \neq j} [\rho_{ij}(z)^2 + \rho_{ij}(z')^2]",
        expected={"CIFAR-10": 91.18, "CIFAR-100": 67.37},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=2048,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/vibcreg.yaml; views: the nearest of ours; decay: ours",
    )
    large = Recipe(
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
        source="solo-learn scripts/pretrain/imagenet-100/vibcreg.yaml, for ResNet-18; views: the nearest of ours; "
        "decay: ours",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 200.0,
    ) -> None:
        """The weights of the three terms.

        Raises:
            ValueError: If a weight is below 0.
        """
        super().__init__(hidden, out)
        self.invariance, self.variance, self.covariance = check_weights(invariance, variance, covariance)

    def projector(self, in_features: int) -> nn.Module:
        """Three layers with GELU, then iterative normalisation: [N, in_features] -> [N, out]."""
        return nn.Sequential(
            nn.Linear(in_features, self.hidden),
            nn.BatchNorm1d(self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, self.hidden),
            nn.BatchNorm1d(self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, self.out),
            IterNorm(self.out),
        )

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`vicreg_loss` with correlations for covariances (arXiv 2109.00783), the mean over pairs of views."""
        weights = self.invariance, self.variance, self.covariance
        return vicreg_loss(online, target, *weights, redundancy=correlation_loss)


def correlation_loss(view: Tensor) -> Tensor:
    """Squared correlations of different features, c = 1/P^2 sum_{i != j} rho(z)_ij^2.

    Args:
        view: Projections, float32 [N, P].
    """
    deviations = F.normalize(view - view.mean(dim=0), dim=0, eps=NORM_FLOOR)
    return off_diagonal_squares(deviations, deviations) / view.shape[1] ** 2


class IterNorm(nn.Module):
    """Whitens groups of features by Newton's iteration (arXiv 1904.03441), then scales and shifts.

    Five iterations whiten nearly, and least where a direction hardly varies: noise is not blown up, and a batch
    smaller than a group is no harm. In evaluation the running averages whiten, as in batch norm.

    Attributes:
        running_mean: float32 [features].
        running_whitening: float32 [groups, size, size], the average inverse square root of the covariance.
        average: Takes a mean over the rows at hand to that over the batch, of which they may be a share.
    """

    SIZE = 32
    """Features of a group at most: 64 groups of the published 2048."""
    ITERATIONS = 5
    MOMENTUM = 0.1
    """Weight of a batch in the running averages."""
    FLOOR = 1e-5
    """Added to the variances."""

    running_mean: Tensor
    running_whitening: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.average = _itself
        size = next(size for size in range(min(features, self.SIZE), 0, -1) if features % size == 0)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_whitening", torch.eye(size).repeat(features // size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, features] -> float32 [N, features]."""
        with full_precision(x):
            x = x.float()
            mean, whitening = self.running_mean.float(), self.running_whitening.float()
            groups, size, _ = whitening.shape
            if self.training:
                mean = self.average(x.mean(dim=0))
            deviations = (x - mean).view(len(x), groups, size).transpose(0, 1)
            if self.training:
                covariance = self.average(deviations.transpose(1, 2) @ deviations / len(x))
                whitening = inverse_square_root(covariance, self.FLOOR, self.ITERATIONS)
                with torch.no_grad():
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.MOMENTUM)
                    self.running_whitening.lerp_(whitening.to(self.running_whitening.dtype), self.MOMENTUM)
            white = (deviations @ whitening).transpose(0, 1).reshape(len(x), groups * size)
            return white * self.weight.float() + self.bias.float()


def _itself(statistic: Tensor) -> Tensor:
    return statistic


def inverse_square_root(covariance: Tensor, floor: float, iterations: int) -> Tensor:
    """Nearly the inverse square roots of covariances plus `floor` I, float32 [groups, size, size]."""
    identity = torch.eye(covariance.shape[-1], device=covariance.device)
    covariance = covariance + floor * identity
    # The trace bounds every eigenvalue, so the iteration starts where it converges.
    trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    root = identity.expand_as(covariance)
    for _ in range(iterations):
        root = 1.5 * root - 0.5 * root @ root @ root @ (covariance / trace)
    return root * trace.rsqrt()
