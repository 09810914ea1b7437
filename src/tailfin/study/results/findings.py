"""What one context says about a claim, and the comparisons that it is told by."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tailfin.study.results.arms import METRICS, Arm, Context
from tailfin.study.results.statistics import Difference, Estimate, estimate, paired, slope

State = Literal["supported", "not supported", "no difference found", "not tested"]

METRIC = next(iter(METRICS))
MEASURES = {"variation": "variation around the trend", "jump": "step-to-step jump"}
"""How the fluctuation of a gradient is told, see `tailfin.stability.fluctuation`."""


@dataclass(frozen=True)
class Finding:
    """What one context says.

    Attributes:
        context: Its name.
        state: The verdict there.
        words: Why.
        evidence: Figures, one a line.
    """

    context: str
    state: State
    words: str
    evidence: tuple[str, ...] = ()


def fluctuation(arm: Arm, measure: str) -> dict[int, list[float]]:
    """An arm's fluctuation of each part in order, by seed; only seeds that have all of them."""
    columns = [arm.values(f"fluctuation_{measure}.{part}") for part in arm.parts]
    seeds = set.intersection(*map(set, columns)) if columns else set()
    return {seed: [column[seed] for column in columns] for seed in sorted(seeds)}


def calm(arm: Arm, control: Arm, measure: str) -> dict[int, float]:
    """By how much an arm's gradients fluctuate less than the control's, as a share, the mean over parts, by seed."""
    ours, theirs = fluctuation(arm, measure), fluctuation(control, measure)
    return {
        seed: fmean(1 - a / b for a, b in zip(ours[seed], theirs[seed], strict=True) if b > 0)
        for seed in ours.keys() & theirs.keys()
        if any(b > 0 for b in theirs[seed])
    }


def trend(arms: Sequence[Arm], control: Arm, measure: str) -> Estimate:
    """Over seeds, the slope over arms of the gain on the calm, in points for each tenth."""
    calms = [calm(arm, control, measure) for arm in arms]
    gains = [mean_gain([arm], control) for arm in arms]
    seeds = set.intersection(*map(set, calms), *map(set, gains))
    slopes = [slope([c[seed] for c in calms], [g[seed] for g in gains]) for seed in sorted(seeds)]
    return estimate([each / 10 for each in slopes if each is not None])


def agreement(
    context: Context, signs: Sequence[int | None], evidence: Sequence[str], more: str, less: str, none: str
) -> Finding:
    """All measures have to say the same; one that says the opposite is enough against."""
    if all(sign == 1 for sign in signs):
        return Finding(context.name, "supported", more, tuple(evidence))
    if all(sign == -1 for sign in signs):
        return Finding(context.name, "not supported", less, tuple(evidence))
    if -1 in signs:
        words = (
            "the two measures of fluctuation contradict each other"
            if 1 in signs
            else f"{less} by one measure"
        )
        return Finding(context.name, "not supported", words, tuple(evidence))
    words = f"{more} by one measure, and by the other {none}" if 1 in signs else none
    return Finding(context.name, "no difference found", words, tuple(evidence))


def needed(context: Context, *placements: str) -> list[Arm] | Finding:
    """The arms with these placements; where one is missing, what to say of it."""
    missing = [each for each in placements if each not in context.arms]
    if missing:
        return Finding(context.name, "not tested", f"no finished run with placement {' or '.join(missing)}")
    return [context.arms[each] for each in placements]


def gain(arm: Arm, control: Arm) -> Difference:
    """The difference in accuracy to a control, in points."""
    return paired(arm.values(METRIC), control.values(METRIC))


def mean_gain(arms: Sequence[Arm], control: Arm) -> dict[int, float]:
    """The mean over arms of the difference to the control, for the seeds that all of them have."""
    own, base = [arm.values(METRIC) for arm in arms], control.values(METRIC)
    seeds = set.intersection(set(base), *map(set, own))
    return {seed: fmean(values[seed] for values in own) - base[seed] for seed in sorted(seeds)}


def too_few(context: Context, evidence: Sequence[str]) -> Finding:
    """What to say where no interval can be given."""
    return Finding(context.name, "not tested", "fewer than two seeds in common: no interval", tuple(evidence))


def told(what: str, difference: Difference) -> str:
    """A difference in accuracy as a line of evidence."""
    return f"{what}: {figures(difference)}"


def figures(found: Estimate, unit: str = "points") -> str:
    """Mean, interval and number of seeds."""
    unit = f" {unit}" if unit else ""
    digits = 2 if unit == " points" else 3
    if found.n == 0:
        return "no seed in common"
    if found.low is None or found.high is None:
        return f"{found.mean:+.{digits}f}{unit}, one seed: no interval"
    return (
        f"{found.mean:+.{digits}f}{unit} [{found.low:+.{digits}f}, {found.high:+.{digits}f}], n = {found.n}"
    )
