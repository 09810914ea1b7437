"""What `--momentum auto` chooses, and how far that lies from the best fixed placement of finished studies.

A run with auto equals, to the bit, a run with the placement that it chose: so its accuracy is that of the study's own
run with the same seed, and only the measured phase is run here. Beside it stands what the projector would have given
each time, the choice that needs no phase.

python benchmarks/auto_against_fixed.py results/cpu-placement results/cpu-shapes --data cifar10=PATH
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common import save

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.measuring.advice import advise
from tailfin.momentum.placement import PROJECTOR
from tailfin.run.config import Config
from tailfin.study.results import table
from tailfin.study.results.arms import Arm, Context, contexts
from tailfin.study.results.statistics import Difference, paired
from tailfin.study.spec import cells
from tailfin.study.spec.design import Row
from tailfin.training.setup import load_data

CONTROLS = ("none", "stopgrad")
COMPUTING = ("device", "precision", "memory_format")
"""Settings that the rows of a group may differ in, beside placement and seed; every other one tells groups apart."""


def main() -> None:
    """Print, for each group of runs, the choice of each seed beside the best fixed placement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--data", nargs="*", default=[], help="where the images lie, NAME=PATH")
    parser.add_argument("--decay", type=float, default=0.99, help="of the runs to compare with")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    keep_freed_memory()
    rows = [row for folder in asked.studies for row in table.read(folder).values()]
    found = {context.name: compare(context, asked.data) for context in groups(rows, asked.decay)}
    figures = {name: each for name, each in found.items() if each is not None}
    for against in ("momentum", "all"):
        for who in ("auto", PROJECTOR):
            within = [each[against][who]["within"] for each in figures.values()]
            print(
                f"{who} against the best of {against}: no difference found in {sum(within)} of {len(within)}"
            )
    save("auto-against-fixed", find_device("cpu"), figures, asked.out)


def groups(rows: Sequence[Row], decay: float) -> list[Context]:
    """Final rows that differ in placement, seed and computing alone; tails and the controls, for auto chooses tails.

    Raises:
        SystemExit: Two runs of one placement and seed that differ in what they were computed with.
    """
    read = [(cells.from_settings(row["settings"]), row) for row in rows if row["stage"] != table.SELECTION]
    known = [(c, row) for c, row in read if c is not None and c.decay in (None, decay) and _is_tail(c)]
    configs = [config for config, _ in known]
    told = cells.telling(configs, set(cells.varying(configs)) - {"seed", *COMPUTING})
    keys = dict.fromkeys(("method", "data", *cells.MOMENTUM, *told))
    arms: dict[str, Arm] = {}
    for config, row in known:
        settings = {key: getattr(config, key) for key in keys}
        arm = arms.setdefault(repr(settings), Arm("", settings, {}))
        other = arm.rows.get(config.seed, row)
        if other["fingerprint"] != row["fingerprint"]:
            raise SystemExit(
                f"two runs of {arm.what}, {arm.momentum}, seed {config.seed} differ in one of "
                f"{', '.join(COMPUTING)} alone: leave one of the studies out"
            )
        arms[repr(settings)] = replace(arm, rows={**arm.rows, config.seed: row})
    return contexts(list(arms.values()))


def _is_tail(config: Config) -> bool:
    return config.momentum in (*CONTROLS, "all", PROJECTOR) or config.momentum.endswith(":")


def compare(context: Context, data: Sequence[str]) -> dict[str, Any] | None:
    """One group: choices, their cost, the differences to the best fixed placement; None where runs are missing."""
    arms = context.arms
    placed = [key for key in arms if key not in CONTROLS]
    seeds = sorted(set.intersection(*(set(arm.rows) for arm in arms.values())))
    if not {"stopgrad", PROJECTOR} <= arms.keys() or not seeds:
        print(f"{context.name}: left out, for it needs stopgrad, {PROJECTOR} and a seed that all arms have")
        return None
    choices, shares = {}, []
    for seed in seeds:
        example = cells.from_settings(arms[PROJECTOR].rows[seed]["settings"])
        assert example is not None
        location = dict(each.split("=", 1) for each in data).get(example.data, example.data)
        config = replace(example, momentum="auto", data=location)
        images = load_data(config, find_device(config.device))
        start = time.perf_counter()
        choices[seed] = advise(config, images).placement
        shares.append((time.perf_counter() - start) / arms["stopgrad"].rows[seed]["seconds"])
    linear = {key: {seed: arm.rows[seed]["linear"] for seed in seeds} for key, arm in arms.items()}
    ours = {
        "auto": {seed: linear[choice][seed] for seed, choice in choices.items() if choice in arms},
        PROJECTOR: linear[PROJECTOR],
    }
    print(f"{context.name}: {choices}; the phase takes {100 * median(shares):.1f} % of a run")
    found: dict[str, Any] = {"choices": choices, "phase_share": shares}
    for against, keys in (("momentum", placed), ("all", list(arms))):
        means = {key: fmean(linear[key].values()) for key in keys}
        best = max(means, key=lambda key: means[key])
        print(f"  best of {against}: {best}, {means[best]:.2f} %")
        found[against] = {"best": best, "means": means}
        same = {"auto": all(each == best for each in choices.values()), PROJECTOR: best == PROJECTOR}
        for who, values in ours.items():
            found[against][who] = figures = judged(values, linear[best], same[who])
            print(f"    {who} - best: {told(figures, len(seeds))}")
    return found


def judged(values: Mapping[int, float], best: Mapping[int, float], same: bool) -> dict[str, Any]:
    """The difference to the best, and how large a one could have been found: half the width of its interval."""
    difference: Difference = paired(values, best)
    low, high = difference.low, difference.high
    half = None if low is None or high is None else (high - low) / 2
    within = len(values) == len(best) and high is not None and high >= 0
    words = "the same runs" if same else difference.words
    return {**asdict(difference), "half_width": half, "within": within, "words": words}


def told(figures: Mapping[str, Any], seeds: int) -> str:
    """The figures of `judged` in a line."""
    if figures["half_width"] is None:
        return f"{figures['words']}, n = {figures['n']} of {seeds}"
    return (
        f"{figures['mean']:+.2f} points, n = {figures['n']} of {seeds}: {figures['words']}, half-width of the "
        f"interval {figures['half_width']:.2f}"
    )


if __name__ == "__main__":
    main()
