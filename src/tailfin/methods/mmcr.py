"""MMCR: the centres of the images' views fill as many directions as they can (arXiv 2303.03307)."""

from functools import partial

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import three_layers
from tailfin.methods.base import About, Method, Recipe, crossings, full_precision, mlp, unit


class MMCR(Method):
    """MMCR; with a momentum target, a centre is the middle of both branches' centres, as in the authors' code."""

    stop_gradient = False
    about = About(
        title="MMCR",
        family="redundancy",
        year=2023,
        source="2303.03307",
        idea="The unit projections of an image's views are averaged into a centre. The nuclear norm of all centres "
        "is to be large. Centres are long where the views agree, and the norm is large where centres point in all "
        "directions, so one term does both.",
        equation=r"-\lVert C \rVert_*, \quad c_i = \frac{1}{V} \sum_v z_i^{(v)}",
    )
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-3,
        weight_decay=1e-6,
        views="mocov2",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=512,
        out=128,
        batch_norm=True,
        warmup_epochs=0,
        source="ThomasYerxa/mmcr pretrain_cifar_stl.py and mmcr/cifar_stl (the rate unscaled: there a batch is 32 "
        "images in 40 views each), with adamw for adam; decay: pretrain_imagenet.py; schedule: ours",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.6,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=0.99,
        hidden=8192,
        out=512,
        batch_norm=True,
        source="ThomasYerxa/mmcr pretrain_imagenet.py and mmcr/imagenet",
        options={"layers": 3},
    )

    def __init__(
        self, hidden: int | None = None, out: int | None = None, *, layers: int = 2, local: float = 0.0
    ) -> None:
        """The projector has `layers` linear layers, 2 at CIFAR's and 3 at ImageNet's size as published.

        `local` is the paper's lambda: it weighs the nuclear norms of each image's own views, to be small.

        Raises:
            ValueError: If `layers` is not 2 or 3, or `local` below 0.
        """
        super().__init__(hidden, out)
        if layers not in (2, 3):
            raise ValueError(f"layers {layers}; must be 2 or 3")
        if not local >= 0:
            raise ValueError(f"local {local}; must be 0 or more")
        self.layers = layers
        self.local = local

    def projector(self, in_features: int) -> nn.Module:
        """The published head of two or three layers, the last without bias: [N, in_features] -> [N, out]."""
        build = three_layers if self.layers == 3 else partial(mlp, batch_norm=True)
        head = build(in_features, self.hidden, self.out)
        head[-1] = nn.Linear(self.hidden, self.out, bias=False)
        return head

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """The loss on all views; one branch of one view has nothing to compare."""
        crossings(online, target)
        views = torch.stack(online.projections)
        same = target.projections[0] is online.projections[0]
        return mmcr_loss(views, views[:0] if same else torch.stack(target.projections), self.local)


def mmcr_loss(online: Tensor, target: Tensor, local: float) -> Tensor:
    """-|C|_* + lambda 1/N sum_n |Z_n|_* (arXiv 2303.03307), a float32 scalar.

    A row of C is the mean of an image's unit projections of both branches, each counting once: half and half where
    both have all views, as in the authors' code. The rows of Z_n are its online ones.

    Args:
        online: Projections [V, N, P].
        target: The same of the target branch [W, N, P]; none (W = 0) where it is the online branch itself.
        local: Weight of the second term, lambda; 0 spares its computation.
    """
    with full_precision(online):
        views = torch.stack([unit(view) for view in online], dim=1)
        others = [unit(view)[:, None] for view in target]
        loss = -nuclear_norm(torch.cat((views, *others), dim=1).mean(dim=1))
        if local > 0:
            loss = loss + local * nuclear_norm(views) / len(views)
        return loss


def nuclear_norm(matrices: Tensor) -> Tensor:
    """Sum of all singular values of float32 [..., N, P]; NaN where an entry is not finite.

    Its gradient is the orthogonal factor of the matrix, finite for any: the values' own derivatives divide by
    nothing, and where values are 0 or equal it is one of several subgradients.
    """
    # The decomposition raises on entries that are not finite; a run that diverged is to say so by its loss instead.
    values: Tensor = torch.linalg.svdvals(matrices.nan_to_num(0.0, 0.0, 0.0))
    return values.sum() + 0 * matrices.sum()
