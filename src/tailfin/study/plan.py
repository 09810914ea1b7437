"""What a study will take, before it takes it: `tailfin study --plan`."""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tailfin.report.words import duration
from tailfin.study import cells, compute
from tailfin.study.cells import Compute
from tailfin.study.design import Progress, Row
from tailfin.study.runner import CellFolders
from tailfin.training.config import Config

STEPS = 5
SAME_SPEED = ("seed", "lr", "weight_decay", "warmup_epochs", "decay", "decay_end", "crop_min", "tolerate")
"""Settings that the time of a run does not hang on; cells that share all others are measured once."""


def show(
    progress: Progress,
    rows: Mapping[str, Row],
    folders: CellFolders,
    locate: Mapping[str, str],
    jobs: int,
    on: Compute,
) -> None:
    """Print every cell with its state and its time, and the whole with `jobs` side by side."""
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
    told = _measure(todo, locate, jobs, on.device)
    print(f"on {on.device}, {on.precision}, {on.memory_format}")
    print(f"{'cell':<58}{'state':<13}{'time':>14}")
    for name, config, selects, state in states:
        time = "" if state == "done" else duration(_seconds(told[_speed(config)], selects))
        print(f"{name:<58}{state:<13}{time:>14}")
    left = [
        _seconds(told[_speed(config)], selects) for _, config, selects, state in states if state != "done"
    ]
    if not left:
        print(f"all {len(states)} cells are done")
        return
    memory = max(each["memory"] for each in told.values())
    print(
        f"{len(left)} of {len(states)} cells to do, {duration(sum(left))} one by one, about "
        f"{duration(side_by_side(left, jobs))} with {jobs} side by side"
    )
    print(
        f"memory: up to {memory / 2**30:.1f} GiB a cell, {jobs * memory / 2**30:.1f} GiB at a time; measured on "
        f"{STEPS} steps of each kind of cell and on judging a part of the images"
    )


def side_by_side(seconds: Sequence[float], jobs: int) -> float:
    """When the last of the cells ends if they start in order, `jobs` at a time."""
    ends = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def _measure(
    todo: Mapping[str, Config], locate: Mapping[str, str], jobs: int, device: str
) -> dict[str, dict[str, Any]]:
    """What each kind of cell takes; as many processes side by side as there will be cells."""
    located = [replace(c, device=device, data=locate.get(c.data, c.data)) for c in todo.values()]
    groups = [located[start::jobs] for start in range(jobs) if located[start::jobs]]
    order = [key for start in range(jobs) for key in list(todo)[start::jobs]]
    if not groups:
        return {}
    return dict(zip(order, compute.measure(groups, jobs, steps=STEPS, judging=True), strict=True))


def _seconds(told: Mapping[str, Any], selects: bool) -> float:
    return float(told["training"] + told["validating"] + (0.0 if selects else told["judging"]))


def _speed(config: Config) -> str:
    values = cells.settings(cells.dearest(config))
    return json.dumps(
        {name: value for name, value in values.items() if name not in SAME_SPEED}, sort_keys=True
    )
