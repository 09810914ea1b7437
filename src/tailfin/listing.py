"""`tailfin list`: methods, backbones, and placements with their cost."""

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tailfin import backbones, methods
from tailfin.errors import UserError
from tailfin.momentum import MomentumEncoder, Placement
from tailfin.momentum.cost import part_flops


def show(what: str, backbone: str, image_size: int) -> int:
    """Print the lists; `what` is "methods", "backbones", "placements" or "all"."""
    console = Console()
    if what in ("methods", "all"):
        console.print(_methods())
    if what in ("backbones", "all"):
        console.print(_backbones())
    if what in ("placements", "all"):
        console.print(_placements(backbone, image_size))
    return 0


def _methods() -> Table:
    table = Table(
        title="methods (--method), momentum as published for CIFAR",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("name", "family", "year", "momentum, decay"):
        table.add_column(heading, no_wrap=True)
    table.add_column("needs", overflow="fold")
    known = {name: methods.load(name) for name in methods.names()}
    for name, method in sorted(known.items(), key=lambda item: (item[1].about.family, item[1].about.year)):
        recipe, about = method.recipe, method.about
        decay = "" if recipe.placement == "none" else f", {recipe.decay:g} to {recipe.decay_end:g}"
        table.add_row(
            name,
            about.family,
            str(about.year),
            recipe.placement + decay,
            ", ".join(about.needs) or "-",
        )
    return table


def _backbones() -> Table:
    table = Table(title="backbones (--backbone) that are split into parts by themselves")
    for heading in ("family", "examples", "parts before the projector"):
        table.add_column(heading, overflow="fold")
    for row in backbones.FAMILIES:
        table.add_row(*row)
    return table


def _placements(backbone: str, image_size: int) -> Table:
    if image_size < 1:
        raise UserError(f"--image-size is {image_size}; it must be at least 1")
    parts = backbones.create_parts(backbone, image_size=image_size)
    width = backbones.feature_width(parts, image_size=image_size, channels=3)
    example = torch.zeros(1, 3, image_size, image_size)
    projector = methods.load("simclr")().projector(width)
    encoder = MomentumEncoder(parts, projector=projector, placement="none")
    flops = part_flops(encoder, example)
    table = Table(title=f"placements (--momentum) of {backbone} at {image_size} px, SimCLR's projector")
    table.add_column("placement")
    table.add_column("parts with momentum weights", overflow="fold")
    table.add_column("target repeats, of the forward FLOPs", justify="right")
    tails = [f"{name}:" for name in parts.names[1:]]
    for text in ("none", "stopgrad", "projector", *reversed(tails), "all", "backbone", *parts.names):
        placement = Placement.parse(text, encoder.names)
        table.add_row(text, ", ".join(placement.placed) or "-", f"{100 * placement.cost(flops):.1f} %")
    return table
