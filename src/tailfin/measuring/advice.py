"""Where to put momentum, from a short measured phase: which tail would steady the target most for what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from tailfin.data.types import Dataset
from tailfin.errors import UserError
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.run.config import Config
from tailfin.stability.fluctuation import fluctuation
from tailfin.stability.tails import TailDrift
from tailfin.training.setup import Setup, prepare

PHASE_STEPS = 50
"""Steps of the phase, and at most a tenth of a run of 100 steps or more; benchmarks/phase_length.py found the same
choice from 12 steps on."""
READINGS = 10
"""Looks at the probe batch, and the fewest steps of the phase of a run that has as many."""
# Whoever changes what `advise` chooses by raises study.cells.RULE, or old runs of auto count as the new rule's.
FEWEST_STEPS = 4


@dataclass(frozen=True)
class PartAdvice:
    """One part as the phase saw it, and the tail that begins there.

    Attributes:
        name: The part.
        share: Of the forward FLOPs, in [0, 1].
        variation: Of the loss's gradient at its output around the trend; None where the phase was too short.
        cost: Share of the forward FLOPs that momentum on this part and all after it repeats, in [0, 1].
        held_off: Share of the output's movement that this tail holds off, see `TailDrift.read`.
    """

    name: str
    share: float
    variation: float | None
    cost: float
    held_off: float


@dataclass(frozen=True)
class Advice:
    """A placement, and why.

    Attributes:
        placement: As `--momentum` takes it.
        cost: Share of the forward FLOPs that its target path repeats.
        words: Why, in a sentence or two.
        parts: What was seen, in forward order.
        steps: Length of the phase in optimizer steps.
    """

    placement: str
    cost: float
    words: str
    parts: list[PartAdvice]
    steps: int


def advise(config: Config, data: Dataset) -> Advice:
    """Train `stopgrad` for a short phase, measure each tail, and choose the one that gains most over its cost.

    The phase has the run's own schedule, seed and data, no averaging (which would hide what it is to steady), and is
    thrown away: a run with `auto` equals, to the bit, a run with the placement that it chose.

    Args:
        config: The run's settings.
        data: Its images.

    Raises:
        UserError: As `prepare`, or a run too short to measure anything.
    """
    setup = prepare(replace(config, momentum="stopgrad", through=False, gap=0.0), data)
    steps = min(max(READINGS, min(PHASE_STEPS, setup.total_steps // 10)), setup.total_steps)
    if steps < FEWEST_STEPS:
        raise UserError(
            f"the run has {steps} steps, and measuring where to put momentum takes {FEWEST_STEPS} or more: "
            "raise --epochs"
        )
    held_off, variation = _measure(setup, steps)
    channels, size = setup.data.train.images.shape[1], setup.augment.size
    example = torch.zeros(1, channels, size, size, device=setup.execution.device)
    flops = part_flops(setup.encoder, setup.execution.images(example))
    return choose(held_off, variation, flops, steps)


def choose(
    held_off: Mapping[str, float], variation: Mapping[str, float | None], flops: Mapping[str, int], steps: int
) -> Advice:
    """The advice that follows from what was measured: the tail with the largest `held_off - cost`.

    That is the knee of stability against cost, both being shares of what `all` has: it sets a per cent of movement
    against a per cent of a forward, and never chooses `all` where there are smaller tails. Where no tail holds off a
    larger share than it costs it is the cheapest one.

    Args:
        held_off: By the part that a tail begins with, in forward order.
        variation: By part.
        flops: Of a forward pass, by part.
        steps: Length of the phase.
    """
    names = list(flops)
    total = sum(flops.values())
    tails = {name: Placement.parse(_tail(names, name), names) for name in names}
    parts = [
        PartAdvice(
            name, flops[name] / total, variation.get(name), tails[name].cost(flops), held_off.get(name, 0.0)
        )
        for name in names
    ]
    best = max(reversed(parts), key=lambda part: part.held_off - part.cost)
    gains = best.held_off > best.cost
    chosen = best if gains else parts[-1]
    placement = tails[chosen.name].text
    apart = max(1, steps // READINGS)
    often = "after each step" if apart == 1 else f"every {apart} steps"
    words = (
        f"Over {steps} steps, read {often}, {placement} held still from one reading to the next kept "
        f"{100 * chosen.held_off:.0f} % of the output's movement away, at {100 * chosen.cost:.1f} % of a forward"
    )
    larger = parts[1 : parts.index(chosen)]
    if not gains:
        words += "; no tail keeps away a larger share than it costs, and this is the cheapest."
    elif larger:
        following = larger[-1]
        words += (
            f". No tail has a larger difference of the two; the next larger tail, {tails[following.name].text}, "
            f"kept {100 * following.held_off:.0f} % away at {100 * following.cost:.1f} %."
        )
    else:
        words += ". No tail has a larger difference of the two."
    return Advice(placement, chosen.cost, words, parts, steps)


def _tail(names: list[str], first: str) -> str:
    if first == names[0]:
        return "all"
    return PROJECTOR if first == PROJECTOR else f"{first}:"


def _measure(setup: Setup, steps: int) -> tuple[dict[str, float], dict[str, float | None]]:
    """What each tail holds off, a mean over the later half of the phase, and each part's gradient variation."""
    train_step = setup.step()
    gradient = setup.gradient_monitor()
    tails = TailDrift(setup.encoder, setup.probe().views)
    readings = [tails.read()]
    for step, batch in enumerate(setup.feed().batches(0, steps)):
        train_step(batch, step)
        gradient.step(1.0 / setup.config.accumulate)
        if (step + 1) % max(1, steps // READINGS) == 0:
            readings.append(tails.read())
    late = [reading for reading in readings[len(readings) // 2 :] if reading]
    columns = gradient.flush().double().T.numpy()
    gradient.remove()
    held_off = {name: fmean(reading[name] for reading in late) for name in setup.encoder.names if late}
    stats = {name: fluctuation(column) for name, column in zip(setup.encoder.names, columns, strict=True)}
    return held_off, {name: None if s is None else s.variation for name, s in stats.items()}
