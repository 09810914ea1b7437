"""What the methods share whose targets are neighbours: a support set of past projections, and the look-up in it."""

from typing import ClassVar

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._ring import Ring, scaled
from tailfin.methods.base import Method, full_precision, unit


class NeighbourMethod(Method):
    """A method that looks up the nearest past projections of its target views.

    Attributes:
        neighbours: How many of them a target view has.
        support: Unit target projections of the first view, of past batches.
    """

    stop_gradient = True
    neighbours: ClassVar[int] = 1

    def __init__(self, hidden: int | None, out: int | None, queue_size: int) -> None:
        """`queue_size` is the number of past projections kept.

        Raises:
            ValueError: If that is fewer than the neighbours looked up.
        """
        super().__init__(hidden, out)
        if queue_size < self.neighbours:
            raise ValueError(f"queue_size {queue_size}; must be {self.neighbours} or more")
        self.support = Ring(1, queue_size, self.out)

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """As in `Method`; below CIFAR's 50,000 images the support set shrinks with them.

        It then holds projections as old, in epochs, as the published one, which lasts for more than an epoch.
        """
        values = super().defaults(in_features, images, image_size)
        return {**values, "queue_size": max(cls.neighbours, scaled(int(values["queue_size"]), images))}

    def nearest(self, projection: Tensor) -> Tensor:
        """Neighbours of [N, out] in the support set: [N, neighbours, out], without a gradient."""
        return nearest(projection, self.support, self.neighbours)

    def remember(self, target: Branch) -> None:
        """In training mode, let the first target view wait for `after_step`."""
        if self.training and torch.is_grad_enabled():
            self.support.gather(unit(target.projections[0])[None])

    def after_step(self, taken: bool = True) -> None:
        """Put the projections of all micro-batches since the last call into the support set, oldest out first."""
        self.support.commit(taken)


@torch.no_grad()
def nearest(vectors: Tensor, support: Ring, count: int) -> Tensor:
    """The `count` rows of the support set with the highest cosine to each vector, nearest first.

    While it holds fewer rows than that, the vector itself stands in for each that is missing: the method is then the
    one without neighbours.

    Args:
        vectors: Queries [N, P].
        support: Unit rows of one view, [1, size, P]; `size` is `count` or more.
        count: Neighbours a query.

    Returns:
        Unit vectors, float32 [N, count, P], without a gradient.
    """
    with full_precision(vectors):
        own, rows = unit(vectors), support.rows[0].float()
        empty = torch.zeros(len(rows), device=own.device).masked_fill(~support.filled(), -torch.inf)
        cosine, places = torch.addmm(empty, own, rows.T).topk(count)
        return torch.where((cosine > -torch.inf)[..., None], rows[places], own[:, None])
