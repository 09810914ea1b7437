"""Seeded, stratified choices of images: held-out splits and limited subsets."""

import torch
from torch import Tensor


def validation_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified indices (fit, validation), each int64 and increasing, together a partition of [0, N).

    Every class gives round(fraction * its size) images to the validation part, but at least one where it has
    two, and never all. Images without a label give none.

    Args:
        labels: int64 [N], -1 for none.
        fraction: Share of the validation part, in (0, 1).
        seed: Equal seeds give equal splits.

    Raises:
        ValueError: If `fraction` is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels[labels >= 0].unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def random_subset(count: int, limit: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Increasing indices int64 [min(limit, count)] of a random subset, with the class shares of `labels`
    int64 [count].

    Each class's share is exact to within one image.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    if labels is not None:
        # The r-th of a class's n images gets the place (r + u) / n, with one u in [0, 1) a class: cutting the
        # sorted places anywhere leaves every class its share.
        place = torch.empty(count, dtype=torch.float64)
        for label in labels.unique().tolist():
            members = order[labels[order] == label]
            offset = torch.rand((), generator=generator, dtype=torch.float64)
            place[members] = (torch.arange(len(members), dtype=torch.float64) + offset) / len(members)
        order = place.argsort()
    return order[:limit].sort().values
