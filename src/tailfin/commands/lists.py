"""`list` as functions: the methods, and the placements of a backbone with their cost."""

from dataclasses import dataclass

import torch

from tailfin import backbones, methods
from tailfin.errors import UserError
from tailfin.momentum import MomentumEncoder, Placement
from tailfin.momentum.cost import part_flops


@dataclass(frozen=True)
class ListedMethod:
    """A method as it was published for CIFAR.

    Attributes:
        name, family, year: Of the method.
        momentum: Its placement and, where it has one, its decay.
        needs: What it asks for beside images.
    """

    name: str
    family: str | None
    year: int | None
    momentum: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class ListedPlacement:
    """A placement: as it is written, the parts with momentum weights, and the share of the forward FLOPs repeated."""

    text: str
    placed: tuple[str, ...]
    cost: float


def list_methods() -> list[ListedMethod]:
    """All methods, by family and year."""
    known = {name: methods.load(name) for name in methods.names()}
    found = []
    for name, method in sorted(known.items(), key=lambda item: (item[1].about.family, item[1].about.year)):
        recipe, about = method.recipe, method.about
        decay = "" if recipe.placement == "none" else f", {recipe.decay:g} to {recipe.decay_end:g}"
        found.append(
            ListedMethod(name, about.family, about.year, recipe.placement + decay, tuple(about.needs))
        )
    return found


def list_placements(backbone: str, image_size: int) -> list[ListedPlacement]:
    """Placements of a backbone with SimCLR's projector, the controls first.

    Raises:
        UserError: No such backbone, or one that cannot take such images.
    """
    if image_size < 1:
        raise UserError(f"--image-size is {image_size}; it must be at least 1")
    parts = backbones.create_parts(backbone, image_size=image_size)
    width = backbones.feature_width(parts, image_size=image_size, channels=3)
    projector = methods.load("simclr")().projector(width)
    encoder = MomentumEncoder(parts, projector=projector, placement="none")
    flops = part_flops(encoder, torch.zeros(1, 3, image_size, image_size))
    tails = [f"{name}:" for name in reversed(parts.names[1:])]
    found = []
    for text in ("none", "stopgrad", "projector", *tails, "all", "backbone", *parts.names):
        placement = Placement.parse(text, encoder.names)
        found.append(ListedPlacement(text, placement.placed, placement.cost(flops)))
    return found
