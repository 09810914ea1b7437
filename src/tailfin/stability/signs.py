"""Signs of trouble in what the monitors recorded, each with its step and its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

from tailfin.momentum import MomentumEncoder
from tailfin.stability.fluctuation import (
    FEWEST,
    SPIKE,
    Floats,
    rolling_variation,
    spike_origins,
    spikes,
    without_spikes,
)
from tailfin.stability.probe import Reading

COLLAPSED_SPREAD = 0.1
"""Of the normalised embedding: 1 for directions spread evenly over the sphere, 0 for one point."""
COLLAPSED_RANK = 3.0
"""Effective rank (RankMe, uncentred) of the projections, where they are 41 wide or wider.

Its least value is 1, and a line off the origin has 2, whatever the width, so no share of the width can be the bar.
Collapsed at the last reading of 64 images, after 100 steps of 24, seeds 0 and 1: SimSiam without predictor and
stop-gradient 1.3 and 1.9, Barlow Twins without its redundancy term 2.5 and 2.7. Sound: 44 runs of 23 methods as
published, 120 such steps, 4.6 and more (but Barlow Twins 3.1: so small a batch cannot keep its features apart); 65
of SimCLR and BYOL in results/, 4.4 and more at the end and 3.6 at the lowest; before training, 11.8 and more. VICReg
without covariance term, at 2.8 and 5.1, is seen at times only. The rank of the centred projections (collapsed 1.3 to
2.2; sound 2.5, Barlow Twins, and 4.2 and more) separates no better, nor does their participation ratio (1.07 to
1.15; 1.16 and 1.5).
"""
UNSTABLE = 0.5
"""Variation of a part's gradient around its trend, spikes left out. 67 runs of SimCLR and BYOL had .34 at most, BYOL
by SGD at a rate of 10 to 100 had .62 to 4."""
WINDOW = 100
MANY_SPIKES = 3
"""Steps with a spike: healthy runs had none in 300 steps, runs at 10 to 300 times the published rate 6 to 14."""
STALE = 0.05
"""Target's drift on the probe batch over the online one's. At a decay of .99 it is near 1, at .99999 below .01."""
FOLLOWING = 0.9995
"""Cosine between online and target output from which on the target is the online branch in all but name."""
FAST = 0.95
"""Decay from which on an average of 20 updates and more is no accident: in a long run the online weights move so
little that such a target, too, is close to them."""
START = 0.1
"""Share of a run that belongs to the warm-up, in which gradients change fast for a good reason."""


@dataclass(frozen=True)
class Sign:
    """Something that is wrong.

    Attributes:
        state: In a word or three.
        words: One sentence, with part and step.
        evidence: The figures.
    """

    state: str
    words: str
    evidence: str


def find_signs(
    series: Mapping[str, ArrayLike],
    readings: Sequence[tuple[int, Reading]] = (),
    *,
    encoder: MomentumEncoder | None = None,
    steps: int | None = None,
    width: int = 64,
) -> list[Sign]:
    """All signs of trouble in what a run's monitors saw, the worst first.

    Args:
        series: Gradient norms by part, a step each, from a run's first step on: `dict(zip(monitor.names, rows.T))` of
            all rows that `GradientMonitor.flush` gave. Empty where nothing listened.
        readings: (step, reading) of a `Probe`, in order.
        encoder: What was trained; without it nothing is said of its target.
        steps: Length of the run, which the target's memory is compared with. Open: up to the last value or reading.
        width: Of the projections.
    """
    norms = {name: np.asarray(values, dtype=np.float64) for name, values in series.items()}
    collapsed = collapse_sign(readings, width)
    found = [] if collapsed is None else [collapsed]
    found += gradient_signs(1, norms)
    if encoder is not None and encoder.placement.placed:
        if steps is None:
            steps = max(
                [len(values) for values in norms.values()] + [step for step, _ in readings], default=0
            )
        part = encoder.placement.placed[-1]
        found += target_signs(readings, part, encoder.decays[part](0), steps)
    return found


def few_dimensions(rank: float, width: int) -> bool:
    """Whether an effective rank of projections of this width is that of a dimensional collapse."""
    return rank < min(COLLAPSED_RANK, 1 + (width - 1) / 20)


def collapse_sign(readings: Sequence[tuple[int, Reading]], width: int) -> Sign | None:
    """Complete or dimensional collapse of the probe batch's projections, and since when it lasts.

    Args:
        readings: (step, reading) of a probe, in order.
        width: Of the projections.
    """
    rows = [(step, r["collapse"]) for step, r in readings if r.get("collapse")]
    complete = _since([(step, row["spread"] < COLLAPSED_SPREAD) for step, row in rows])
    if complete is not None:
        spread = rows[-1][1]["spread"]
        return Sign(
            "collapsing",
            f"The projections have collapsed completely since step {complete}: those of nearly all images are one.",
            f"spread of the probe batch's projections {spread:.3f} (1 even, 0 one point)",
        )
    few = _since([(step, few_dimensions(row["rank"], width)) for step, row in rows])
    if few is not None:
        return Sign(
            "collapsing",
            f"The projections are collapsing since step {few}: they use very few dimensions.",
            f"effective rank of the probe batch's projections {rows[-1][1]['rank']:.1f} of {width}",
        )
    return None


def gradient_signs(first_step: int, series: Mapping[str, Floats]) -> list[Sign]:
    """Gradients that are not finite, instability and spikes at the parts' outputs.

    Args:
        first_step: Number of the first recorded step, counted from 1.
        series: Norms a step and part, in the parts' order, with all steps of the run; NaN where a part was not heard,
            inf where its gradient was not finite.
    """
    length = max((len(values) for values in series.values()), default=0)
    skip = int(START * length)
    found = _not_finite(series, first_step, skip)
    late = {name: np.where(np.isfinite(values), values, np.nan)[skip:] for name, values in series.items()}
    late = {name: values for name, values in late.items() if np.isfinite(values).sum() >= FEWEST}
    if (unstable := _unstable(late)) is not None:
        part, step, level = unstable
        found.append(
            Sign(
                "unstable",
                f"The training is unstable at {part} since step {first_step + skip + step}.",
                f"gradient at {part} varies by {100 * level:.0f} % around its trend, spikes left out "
                f"(over {100 * UNSTABLE:.0f} % is unstable)",
            )
        )
    steps = np.any([spikes(values) for values in late.values()], axis=0).sum() if late else 0
    if steps >= MANY_SPIKES:
        bursts = spike_origins(late)
        parts = [part for _, part in bursts]
        origin = max(dict.fromkeys(parts), key=parts.count)
        found.append(
            Sign(
                "gradient spikes",
                f"The gradient has spikes; they start at {origin}, the first one at step "
                f"{first_step + skip + bursts[0][0]}.",
                f"{steps} steps above {SPIKE:g} times the running median, in {len(bursts)} bursts, "
                f"{parts.count(origin)} of them from {origin}",
            )
        )
    return found


def _not_finite(series: Mapping[str, Floats], first_step: int, skip: int) -> list[Sign]:
    """Gradients that are not finite after the warm-up, in which a gradient scaler looks for its scale."""
    broken = {name: np.isinf(values) for name, values in series.items()}
    steps = np.any(list(broken.values()), axis=0) if broken else np.zeros(0, dtype=bool)
    if not steps[skip:].any():
        return []
    first = int(np.flatnonzero(steps)[0])
    # The backward pass carries it on to all parts before the one where it began.
    part = [name for name, values in broken.items() if values[first]][-1]
    return [
        Sign(
            "gradient not finite",
            f"The gradient was not finite in {steps.sum()} of {len(steps)} steps, first at step {first_step + first} "
            f"at the output of {part}.",
            f"inf or NaN in the gradient at {', '.join(name for name, values in broken.items() if values.any())}",
        )
    ]


def _unstable(series: Mapping[str, Floats]) -> tuple[str, int, float] | None:
    """The part that became unstable first (of several at one time the worst), when, and its highest level."""
    found = []
    for name, values in series.items():
        steps = np.flatnonzero(np.isfinite(values))
        # One spike of 8 times in a window of 100 steps alone brings it to 70 %; spikes have a sign of their own.
        rolling = rolling_variation(without_spikes(values[steps]), min(WINDOW, len(steps)))
        above = np.flatnonzero(rolling > UNSTABLE)
        if len(above):
            found.append((int(steps[above[0]]), -float(np.nanmax(rolling)), name))
    if not found:
        return None
    step, level, name = min(found)
    return name, step, -level


def target_signs(readings: Sequence[tuple[int, Reading]], part: str, decay: float, steps: int) -> list[Sign]:
    """A target that hardly moves in this run, or one that is the online branch in all but name.

    Args:
        readings: (step, reading) of a probe, in order.
        part: The last part with momentum weights.
        decay: Of its average, at the first step.
        steps: Length of the run.
    """
    drifts = [
        reading["target_drift"][part] / reading["online_drift"][part]
        for _, reading in readings
        if reading.get("online_drift", {}).get(part)
    ]
    drifts = [drift for drift in drifts if math.isfinite(drift)]
    gaps = [
        reading["gap"][part]
        for _, reading in readings
        if math.isfinite(reading.get("gap", {}).get(part, math.nan))
    ]
    memory = f"{1 / (1 - decay):,.0f} updates" if decay < 1 else "for ever"
    if drifts and median(drifts) < STALE:
        return [
            Sign(
                "target stale",
                f"The target hardly moves: an average with decay {decay:g} remembers {memory}, and the run has "
                f"{steps:,} steps. Lower --decay.",
                f"at {part} the target moves {100 * median(drifts):.1f} % as far as the online branch",
            )
        ]
    if decay < FAST and gaps and median(gaps) > FOLLOWING:
        return [
            Sign(
                "target too fast",
                f"The target follows the online branch at once: an average with decay {decay:g} remembers {memory}. "
                "Raise --decay.",
                f"cosine {median(gaps):.5f} between online and target output of {part}",
            )
        ]
    return []


def _since(rows: Sequence[tuple[int, bool]]) -> int | None:
    """The step from which on all rows are true; None where the last one is not."""
    since = None
    for step, bad in reversed(rows):
        if not bad:
            break
        since = step
    return since
