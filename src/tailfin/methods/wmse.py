"""W-MSE: views agree after each sub-batch was whitened (arXiv 2007.06346)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.base import About, Method, Recipe, crossings, full_precision
from tailfin.methods.byol import cosine_regression


class WMSE(Method):
    """W-MSE; with a momentum target, that branch's views are whitened by themselves as well.

    Batches arrive shuffled, so they are cut into sub-batches in their order. A sub-batch should hold twice as
    many samples as the projection has features. With no more samples than features whitening makes all samples
    equally far from each other whatever the encoder does, and only where they lie is left to learn; the
    regularised covariance keeps that finite.
    """

    stop_gradient = False
    about = About(
        title="W-MSE",
        family="redundancy",
        year=2020,
        source="2007.06346",
        needs=("sub-batches of at least twice as many samples as features",),
        idea="Projections are whitened: over a sub-batch their covariance becomes the identity. Whitened views of an "
        "image are then to be alike. Whitened samples cannot all be the same, so that no negatives are needed.",
        equation=r"2 - 2 \cos(W_z (z - \mu_z), W_{z'} (z' - \mu_{z'})), \quad W^\top W = \Sigma^{-1}",
        expected={"CIFAR-10": 88.67, "CIFAR-100": 61.33},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-6,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=1024,
        out=64,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/wmse.yaml, with adamw for adam; views: the nearest of ours; "
        "decay: ours",
    )
    large = Recipe(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-6,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=1024,
        out=128,
        batch_norm=True,
        warmup_epochs=2,
        source="htdt/self-supervised README.md and cfg.py (ImageNet-100, ResNet-18, two views; there 2e-3 at batch "
        "512 and 500 steps of warm-up), with adamw for adam; schedule, blur and decay: ours",
        options={"sub_batch": 256},
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        sub_batch: int = 128,
        shrinkage: float = 1e-6,
    ) -> None:
        """`sub_batch` samples are whitened at once; `shrinkage` is the share of the identity in their covariance.

        Raises:
            ValueError: If `sub_batch` is below 2 or `shrinkage` not in [1e-10, 1).
        """
        super().__init__(hidden, out)
        if sub_batch < 2:
            raise ValueError(f"sub_batch {sub_batch}; must be 2 or more")
        if not 1e-10 <= shrinkage < 1:  # below, factors of covariances of rank 1 fail in float64 too
            raise ValueError(f"shrinkage {shrinkage}; must be 1e-10 or more and below 1")
        self.sub_batch = sub_batch
        self.shrinkage = shrinkage

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """As in `Method`, but with the published output: a sub-batch of 128 whitens no 128 features."""
        return {**super().defaults(in_features, images, image_size), "out": cls.recipe_at(image_size).out}

    def doubts(self, count: int) -> list[str]:
        """What is whitened at once should be twice as many samples as features."""
        needed = 2 * self.out
        if count < needed:
            return [f"{count} images at a time are too few for it, which needs {needed}"]
        if self.sub_batch < needed:
            return [
                f"sub_batch {self.sub_batch} is too few to whiten {self.out} features, which needs {needed}"
            ]
        return []

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Squared distance of whitened unit vectors, the mean over pairs of views."""
        with full_precision(online.projections[0]):
            views = [self._whiten(view) for view in online.projections]
            keys = views if target is online else [self._whiten(view) for view in target.projections]
            losses = [cosine_regression(views[i], keys[j]) for i, j in crossings(online, target)]
        return torch.stack(losses).mean()

    def _whiten(self, view: Tensor) -> Tensor:
        """Whiten sub-batches of nearly one size, none larger than twice `sub_batch`."""
        parts = view.float().tensor_split(max(1, len(view) // self.sub_batch))
        return torch.cat([whiten(part, self.shrinkage) for part in parts])


def whiten(samples: Tensor, shrinkage: float) -> Tensor:
    """W (z - mean) with W^T W the inverse of the covariance, W lower triangular (arXiv 2007.06346).

    Features are first scaled by one number to a mean variance of 1, of which `shrinkage` then is a share. The
    published method has no shrinkage and fails where the covariance is singular, as with no more samples than
    features. A large one is a way out of whitening: directions whose variance falls below it are whitened no more,
    and with 1e-3 an encoder learnt to put all samples on one line (24 epochs of CIFAR-10: the loss went from 1.8 to
    .16, the effective rank from 24 to 1.03 and the validation kNN from 34 to 26 %).

    Args:
        samples: [N, P]; N is 2 or more.
        shrinkage: Weight of the identity in the covariance.

    Returns:
        float32 [N, P] with mean 0 and, as far as the shrinkage allows, the identity for covariance.
    """
    count, width = samples.shape
    # In float32 a shrinkage of 1e-6 is lost in the rounding of a covariance of rank 1, and its factor fails.
    wide = samples.double()
    deviations = wide - wide.mean(dim=0)
    variance = deviations.square().sum() / ((count - 1) * width)
    deviations = deviations * (variance + 1e-10).rsqrt()
    covariance = deviations.T @ deviations / (count - 1)
    covariance = (1 - shrinkage) * covariance + shrinkage * torch.eye(width, device=samples.device)
    # No eigenvalue is below the shrinkage: at 1e-8 covariances of rank 1 were factored up to 2048 features. So the
    # check, for which a GPU would have to be waited for, is left out.
    factor: Tensor = torch.linalg.cholesky_ex(covariance)[0]
    white: Tensor = torch.linalg.solve_triangular(factor, deviations.T, upper=False)
    return white.T.float()
