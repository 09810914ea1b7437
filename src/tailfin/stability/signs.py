"""Signs of trouble in what the monitors recorded, each with its step and its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from tailfin.stability.fluctuation import (
    FEWEST,
    SPIKE,
    Floats,
    rolling_variation,
    spike_origins,
    spikes,
)
from tailfin.stability.probe import Reading

COLLAPSED_SPREAD = 0.1
"""Of the normalised embedding: 1 for directions spread evenly over the sphere, 0 for one point."""
COLLAPSED_RANK = 0.02
"""Effective rank over width. Healthy projectors of 128 outputs were seen between 0.2 and 0.6."""
UNSTABLE = 0.5
"""Variation of a part's gradient around its trend; healthy runs were seen below 0.3."""
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
            f"The encoder has collapsed completely since step {complete}: nearly all images have one embedding.",
            f"spread of the probe batch's projections {spread:.3f} (1 even, 0 one point)",
        )
    few = _since([(step, row["rank"] < COLLAPSED_RANK * width) for step, row in rows])
    if few is not None:
        return Sign(
            "collapsing",
            f"The encoder is collapsing since step {few}: its embeddings use very few dimensions.",
            f"effective rank of the probe batch's projections {rows[-1][1]['rank']:.1f} of {width}",
        )
    return None


def gradient_signs(first_step: int, series: Mapping[str, Floats]) -> list[Sign]:
    """Instability and spikes of the gradient at the parts' outputs.

    Args:
        first_step: Number of the first recorded step, counted from 1.
        series: Norms a step and part, with all steps of the run.
    """
    length = max((len(values) for values in series.values()), default=0)
    skip = int(START * length)
    late = {
        name: values[skip:] for name, values in series.items() if np.isfinite(values).all() and values.all()
    }
    late = {name: values for name, values in late.items() if len(values) >= FEWEST}
    found = []
    if (unstable := _unstable(late)) is not None:
        part, step, level = unstable
        found.append(
            Sign(
                "unstable",
                f"The training is unstable at {part} since step {first_step + skip + step}.",
                f"gradient at {part} varies by {100 * level:.0f} % around its trend "
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


def _unstable(series: Mapping[str, Floats]) -> tuple[str, int, float] | None:
    """The part that became unstable first (of several at one time the worst), when, and its level at the end."""
    found = []
    for name, values in series.items():
        rolling = rolling_variation(values, min(WINDOW, len(values)))
        above = np.flatnonzero(rolling > UNSTABLE)
        if len(above):
            found.append((int(above[0]), -float(np.nanmax(rolling)), name))
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
    gaps = [reading["gap"][part] for _, reading in readings if part in reading.get("gap", {})]
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
