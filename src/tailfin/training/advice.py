"""Where to put momentum, from a short measured phase: which parts' outputs move most while the encoder trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch

from tailfin.data.types import Dataset
from tailfin.errors import UserError
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.stability.fluctuation import fluctuation
from tailfin.stability.gradient import GradientMonitor
from tailfin.training.config import Config
from tailfin.training.feed import Feed
from tailfin.training.monitoring import probe_of
from tailfin.training.setup import Setup, prepare
from tailfin.training.step import Step

PHASE_STEPS = 100
"""Steps of the phase, and at most a tenth of the run."""
READINGS = 10
FEWEST_STEPS = 4
UNSTABLE_DRIFT = 1.25
"""A part whose output moves this many times as far as the median part's is where a slow target steadies most."""


@dataclass(frozen=True)
class PartAdvice:
    """One part as the phase saw it.

    Attributes:
        name: The part.
        share: Of the forward FLOPs, in [0, 1].
        drift: How far its output for a fixed batch moves in a tenth of the phase, relative to its norm.
        variation: Of the loss's gradient at its output around the trend; None where the phase was too short.
        unstable: Whether its drift stands out.
    """

    name: str
    share: float
    drift: float
    variation: float | None
    unstable: bool


@dataclass(frozen=True)
class Advice:
    """A placement, and why.

    Attributes:
        placement: As `--momentum` takes it.
        cost: Share of the forward FLOPs that its target path repeats.
        words: One sentence.
        parts: What was seen, in forward order.
        steps: Length of the phase in optimizer steps.
    """

    placement: str
    cost: float
    words: str
    parts: list[PartAdvice]
    steps: int


def advise(config: Config, data: Dataset) -> Advice:
    """Train `stopgrad` for a short phase, measure each part, and choose the smallest tail with the unstable ones.

    The phase has the run's own schedule, seed and data, no averaging (which would hide what it is to steady), and is
    thrown away: a run with `auto` equals, to the bit, a run with the placement that it chose.

    Args:
        config: The run's settings.
        data: Its images.

    Raises:
        UserError: As `prepare`, or a run too short to measure anything.
    """
    setup = prepare(replace(config, momentum="stopgrad", through=False), data)
    steps = min(max(READINGS, min(PHASE_STEPS, setup.total_steps // 10)), setup.total_steps)
    if steps < FEWEST_STEPS:
        raise UserError(
            f"the run has {steps} steps, and measuring where to put momentum takes {FEWEST_STEPS} or more: "
            "raise --epochs"
        )
    drift, variation = _measure(setup, steps)
    channels, size = setup.data.train.images.shape[1], setup.augment.size
    example = torch.zeros(1, channels, size, size, device=setup.execution.device)
    flops = part_flops(setup.encoder, setup.execution.images(example))
    return choose(drift, variation, flops, steps)


def choose(
    drift: Mapping[str, float], variation: Mapping[str, float | None], flops: Mapping[str, int], steps: int
) -> Advice:
    """The advice that follows from what was measured.

    Args:
        drift: By part, in forward order.
        variation: By part.
        flops: Of a forward pass, by part.
        steps: Length of the phase.
    """
    names = list(flops)
    usual = median(drift.values())
    unstable = [name for name in names if drift[name] > UNSTABLE_DRIFT * usual]
    total = sum(flops.values())
    first = unstable[0] if unstable else names[-1]
    placement = _tail(names, first)
    cost = Placement.parse(placement, tuple(names)).cost(flops)
    if unstable:
        said = ", ".join(f"{name} ({drift[name] / usual:.1f}x)" for name in unstable)
        words = (
            f"In {steps} steps the outputs of {said} moved further than the median part's; "
            f"the smallest tail that covers them is {placement}, at {100 * cost:.1f} % of a forward."
        )
    else:
        words = (
            f"In {steps} steps no part's output moved {UNSTABLE_DRIFT:g} times as far as the median part's; "
            f"{placement} is the cheapest tail, at {100 * cost:.1f} % of a forward."
        )
    parts = [
        PartAdvice(name, flops[name] / total, drift[name], variation.get(name), name in unstable)
        for name in names
    ]
    return Advice(placement, cost, words, parts, steps)


def _tail(names: list[str], first: str) -> str:
    if first == names[0]:
        return "all"
    return PROJECTOR if first == PROJECTOR else f"{first}:"


def _measure(setup: Setup, steps: int) -> tuple[dict[str, float], dict[str, float | None]]:
    """Drift and gradient variation of each part over the later half of the phase."""
    train_step = Step(setup)
    gradient = GradientMonitor(setup.encoder.online_parts())
    probe = probe_of(setup)
    feed = Feed(
        setup.data.train,
        batch_size=setup.config.batch_size,
        seed=setup.config.seed,
        device=setup.execution.device,
    )
    readings: list[dict[str, float]] = []
    for step, batch in enumerate(feed.batches(0, steps)):
        train_step(batch, step)
        gradient.step(1.0 / setup.config.accumulate)
        if (step + 1) % max(1, steps // READINGS) == 0:
            with gradient.pause():
                found = probe.read()
            readings.append(found.get("online_drift", {}))
    late = [reading for reading in readings[len(readings) // 2 :] if reading]
    columns = gradient.flush().double().T.numpy()
    gradient.remove()
    drift = {name: sum(r[name] for r in late) / len(late) for name in setup.encoder.names}
    stats = {name: fluctuation(column) for name, column in zip(setup.encoder.names, columns, strict=True)}
    return drift, {name: None if s is None else s.variation for name, s in stats.items()}
