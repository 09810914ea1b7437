"""What a study will take, before it takes it: `tailfin study --plan`."""

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tailfin.run.config import Config
from tailfin.study.execution import compute
from tailfin.study.execution.runner import CellFolders
from tailfin.study.spec import cells
from tailfin.study.spec.cells import Compute
from tailfin.study.spec.design import Progress, Row

STEPS = 5
SAME_SPEED = ("seed", "lr", "weight_decay", "warmup_epochs", "decay", "decay_end", "crop_min", "tolerate")
"""Settings that the time of a run does not hang on; cells that share all others are measured once."""


@dataclass(frozen=True)
class Planned:
    """A cell: its name, its state, and the seconds that it will take; None where it is done."""

    name: str
    state: str
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a study will take.

    Attributes:
        on: What it is computed with.
        cells: All of them, including those whose settings are not chosen yet.
        jobs: How many run side by side.
        memory: Most bytes of one of them; 0 where all are done.
    """

    on: Compute
    cells: list[Planned]
    jobs: int
    memory: int

    @property
    def left(self) -> list[float]:
        """Seconds of each cell that is to do."""
        return [each.seconds for each in self.cells if each.seconds is not None]


def plan(
    progress: Progress,
    rows: Mapping[str, Row],
    folders: CellFolders,
    locate: Mapping[str, str],
    jobs: int,
    on: Compute,
    say: Callable[[str], object],
) -> Plan:
    """Every cell with its state and its time, measured, with `jobs` side by side."""
    states = [
        (cell.name, cell.config, cell.selects, "done" if cell.fingerprint in rows else folders.state(cell))
        for cell in progress.cells
    ]
    # Whatever the selection will choose, the run takes the same time.
    states += [
        (f"{cells.name(entry.variant, ())}, {entry.frame}", entry.variant, False, "to do")
        for entry in progress.entries
        if entry.cell is None
    ]
    todo = {_speed(config): config for _, config, _, state in states if state != "done"}
    told = _measure(todo, locate, jobs, on.device, say)
    planned = [
        Planned(name, state, None if state == "done" else _seconds(told[_speed(config)], selects))
        for name, config, selects, state in states
    ]
    return Plan(on, planned, jobs, max((each["memory"] for each in told.values()), default=0))


def side_by_side(seconds: Sequence[float], jobs: int) -> float:
    """When the last of the cells ends if they start in order, `jobs` at a time."""
    ends = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def _measure(
    todo: Mapping[str, Config],
    locate: Mapping[str, str],
    jobs: int,
    device: str,
    say: Callable[[str], object],
) -> dict[str, dict[str, Any]]:
    """What each kind of cell takes; as many processes side by side as there will be cells."""
    located = [replace(c, device=device, data=locate.get(c.data, c.data)) for c in todo.values()]
    groups = [located[start::jobs] for start in range(jobs) if located[start::jobs]]
    order = [key for start in range(jobs) for key in list(todo)[start::jobs]]
    if not groups:
        return {}
    return dict(zip(order, compute.measure(groups, jobs, steps=STEPS, judging=True, say=say), strict=True))


def _seconds(told: Mapping[str, Any], selects: bool) -> float:
    return float(told["training"] + told["validating"] + (0.0 if selects else told["judging"]))


def _speed(config: Config) -> str:
    values = cells.settings(cells.dearest(config))
    return json.dumps(
        {name: value for name, value in values.items() if name not in SAME_SPEED}, sort_keys=True
    )
