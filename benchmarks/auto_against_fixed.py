"""What `--momentum auto` chooses, and how far that lies from the best fixed placement of finished studies.

A run with auto equals, to the bit, a run with the placement that it chose: so its accuracy is that of the study's own
run with the same seed, and only the measured phase is run here.

python benchmarks/auto_against_fixed.py results/cpu-placement results/cpu-shapes --data cifar10=PATH
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common import save

from tailfin.study import cells, table
from tailfin.study.statistics import paired
from tailfin.training.advice import advise
from tailfin.training.device import find_device, keep_freed_memory
from tailfin.training.setup import load_data

Arms = dict[str, dict[int, dict[str, Any]]]
"""Rows of the table by placement and seed."""
CONTROLS = ("none", "stopgrad")


def main() -> None:
    """Print, for each method and data set, the choice of each seed beside the best fixed placement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--data", nargs="*", default=[], help="where the images lie, NAME=PATH")
    parser.add_argument("--decay", type=float, default=0.99, help="of the runs to compare with")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    keep_freed_memory()
    figures = {name: compare(name, arms, asked.data) for name, arms in groups(asked.studies, asked.decay)}
    for against in ("momentum", "all"):
        within = [each[against]["within"] for each in figures.values()]
        print(f"against the best of {against}: no difference found in {sum(within)} of {len(within)}")
    save("auto-against-fixed", find_device("cpu"), figures, asked.out)


def groups(studies: Sequence[Path], decay: float) -> list[tuple[str, Arms]]:
    """Final rows that differ in placement and seed alone; tails and the controls, for auto chooses tails."""
    found: dict[str, Arms] = defaultdict(lambda: defaultdict(dict))
    for row in (row for folder in studies for row in table.read(folder).values()):
        config = cells.from_settings(row["settings"])
        if config is None or row["stage"] == table.SELECTION or config.decay not in (None, decay):
            continue
        tail = config.momentum in (*CONTROLS, "all", "projector") or config.momentum.endswith(":")
        if tail:
            found[f"{config.method} on {config.data}"][config.momentum][config.seed] = row
    return list(found.items())


def compare(name: str, arms: Arms, data: Sequence[str]) -> dict[str, Any]:
    """One method on one data set: choices, their cost, and the difference to the best fixed placement."""
    seeds = sorted(set.intersection(*(set(rows) for rows in arms.values())))
    placed = [key for key in arms if key not in CONTROLS]
    example = cells.from_settings(arms[placed[0]][seeds[0]]["settings"])
    assert example is not None
    location = dict(each.split("=", 1) for each in data).get(example.data, example.data)
    choices, shares = {}, []
    for seed in seeds:
        config = replace(example, momentum="auto", seed=seed, data=location)
        images = load_data(config, find_device(config.device))
        start = time.perf_counter()
        choices[seed] = advise(config, images).placement
        shares.append((time.perf_counter() - start) / arms["stopgrad"][seed]["seconds"])
    auto = {seed: arms[choice][seed]["linear"] for seed, choice in choices.items() if choice in arms}
    print(f"{name}: {choices}; the phase takes {100 * median(shares):.1f} % of a run")
    found: dict[str, Any] = {"choices": choices, "phase_share": shares}
    for against, keys in (("momentum", placed), ("all", list(arms))):
        means = {key: fmean(arms[key][seed]["linear"] for seed in seeds) for key in keys}
        best = max(means, key=lambda key: means[key])
        difference = paired(auto, {seed: arms[best][seed]["linear"] for seed in auto})
        within = len(auto) == len(seeds) and difference.low is not None and difference.high >= 0
        found[against] = {"best": best, "means": means, "within": within, **asdict(difference)}
        print(
            f"  best of {against}: {best}, {means[best]:.2f} %; auto - best {difference.mean:+.2f} points, "
            f"{difference.low} to {difference.high}, n = {difference.n} of {len(seeds)}"
        )
    return found


if __name__ == "__main__":
    main()
