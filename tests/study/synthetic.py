"""Studies without training: results made up from a rule, for tables, verdicts and pages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tailfin.momentum.placement import Placement
from tailfin.study.results import table
from tailfin.study.spec import cells, file
from tailfin.study.spec.cells import Cell, Compute
from tailfin.study.spec.design import Design, Row

COMPUTE = Compute("cpu", "fp32", "contiguous")

HEAD = """tailfin_study = 1
title = "A title"
question = "A question?"
"""

SETTINGS = """
[settings]
backbone = "resnet10w2"
"""

Rule = Callable[[cells.Config], float]
Fluctuation = Callable[[cells.Config, int], float]


def write(folder: Path, grid: str, settings: str = SETTINGS, head: str = HEAD) -> Path:
    path = folder / "study.toml"
    path.write_text(head + settings + grid, encoding="utf-8")
    return path


def design(folder: Path, grid: str, seeds: int | None = None, **parts: str) -> Design:
    return Design(file.read(write(folder, grid, **parts)), COMPUTE, seeds)


def placed_at(config: cells.Config) -> str:
    """The placement, and where that is auto what the run of this seed chose."""
    chosen = "layer4:" if config.seed == 1 else "projector"
    return chosen if config.momentum == "auto" else config.momentum


def result(
    cell: Cell,
    linear: float,
    fluctuation: Mapping[str, float] | None = None,
    cost: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What a run's result.json holds, as far as the table reads it."""
    names = cells.part_names(cell.config.backbone or "resnet10w16", 32)
    placed = Placement.parse(placed_at(cell.config), names).placed
    fork = names.index(placed[0]) if placed else len(names)
    share = (len(names) - fork) / len(names)
    held = {"knn": linear - 1, "linear": linear}
    return {
        "knn": linear - 3,
        "linear": linear,
        "validation_knn": linear - 5,
        "scores": {"backbone_momentum": held} if placed else {},
        "untrained": {"knn": 20.0, "linear": 25.0},
        "target_cost": {"predicted": share, "measured": share if cost is None else cost},
        "images_per_second": 100.0,
        "seconds": 10.0,
        "verdict": {"state": "healthy"},
        "device": "CPU",
        "versions": {"torch": "2"},
        "parts": [{"name": name} for name in names],
        "momentum_parts": list(placed),
        "fluctuation": {
            name: {"variation": value, "jump": value / 2, "spikes": 0}
            for name, value in (fluctuation or {}).items()
        },
    } | more


def rows(
    study: Design,
    linear: Rule,
    fluctuation: Fluctuation | None = None,
    cost: Callable[[cells.Config], float] | None = None,
    without: Callable[[cells.Config], bool] = lambda config: False,
) -> dict[str, Row]:
    """The rows of a whole study whose accuracy follows a rule."""
    found: dict[str, Row] = {}
    while True:
        new = [cell for cell in study.progress(found).cells if cell.fingerprint not in found]
        new = [cell for cell in new if not without(cell.config)]
        if not new:
            return found
        for cell in new:
            names = cells.part_names(cell.config.backbone or "resnet10w16", 32)
            seen = {n: fluctuation(cell.config, i) for i, n in enumerate(names)} if fluctuation else None
            price = cost(cell.config) if cost else None
            found[cell.fingerprint] = table.row(cell, result(cell, linear(cell.config), seen, price))
