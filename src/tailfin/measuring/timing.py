"""Where a step's time goes on this machine, what each placement costs on it, and what to change."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from tailfin.compute.device import Execution
from tailfin.data.types import Dataset
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import PROJECTOR
from tailfin.run.config import Config
from tailfin.training.feed import Batch, Feed
from tailfin.training.setup import Setup, prepare

PHASES = ("data", "views", "forward online", "forward target", "loss", "backward", "optimizer", "momentum")
SECONDS = 15.0
"""Each of the three measurements, and of what compiling gains, stops after so long, once it has its fewest rounds."""
FEWEST, MOST = 3, 20
WARM_UP = 2
LOADER_BOUND, VIEWS_BOUND = 0.1, 0.25
"""Shares of a step from which waiting for images, or making views, is worth a word."""
FASTER = 1.1
"""A larger batch has to be so much faster an image to be advised: it changes the training."""
LARGER = 4
WINDOW = {"cpu": 1, "cuda": 5}
"""Steps between two waits for the device where steps are compared: a GPU that is waited for after each one stands
idle while the host launches the first kernels of the next, which in a run happens while it works."""
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        execution: Device, precision and memory format.
        batch_size: Images a step.
        images_per_second: Of whole steps, with the device waited for at their ends alone.
        phases: Median seconds a step of each phase, with the device waited for between phases.
        peak: FLOP/s of a large matrix product at the same precision.
        used: FLOP/s of forward (online and target) and backward, by the whole step's time.
        placements: Seconds a step over those of `stopgrad`, by placement; the median of rounds taken in turn.
        larger: Batch size and images a second at a batch `LARGER` times as large; None where it did not fit.
        compiled: What compiling gains, where the settings ask for it.
        advice: What to change, one sentence each.
    """

    execution: Execution
    batch_size: int
    images_per_second: float
    phases: Mapping[str, float]
    peak: float
    used: float
    placements: Mapping[str, float]
    larger: tuple[int, float] | None
    compiled: "Compiled | None"
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """What compiling the parts gains and costs.

    Attributes:
        faster: Time of a step without over that with it; the median of rounds taken in turn.
        seconds: That the first steps took longer than others: the time of compiling, but for what the probe and
            validation add in a run.
        pays_after: Steps after which the time is won back; None where it never is.
    """

    faster: float
    seconds: float
    pays_after: int | None


class Stopwatch:
    """Seconds of each phase of a step; the device is waited for at both ends of a phase.

    The parts' hooks tell the target branch's forward from the online one's: the target runs momentum parts, or online
    ones without gradient.
    """

    def __init__(self, setup: Setup) -> None:
        self._device = setup.execution.device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._hooks: list[Any] = []
        self._since = 0.0
        encoder = setup.encoder
        for name in encoder.names:
            self._listen(encoder.part(name), lambda: not torch.is_grad_enabled())
        for name in encoder.placement.placed:
            self._listen(encoder.momentum_part(name), lambda: True)

    def _listen(self, module: nn.Module, is_target: Callable[[], bool]) -> None:
        def before(*_: object) -> None:
            self._since = self._now()

        def after(*_: object) -> None:
            if is_target():
                self.seconds["forward target"] += self._now() - self._since

        self._hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the body to `phase`; a forward's is what the target branch leaves of it."""
        start, target = self._now(), self.seconds["forward target"]
        yield
        spent = self._now() - start
        if phase == "forward":
            phase, spent = "forward online", spent - (self.seconds["forward target"] - target)
        self.seconds[phase] += spent

    def _now(self) -> float:
        _wait(self._device)
        return time.perf_counter()

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def bench(config: Config, data: Dataset, *, seconds: float = SECONDS) -> Bench:
    """Measure a run's first steps; nothing is kept.

    Args:
        config: The run's settings.
        data: Its images.
        seconds: See `SECONDS`.

    Raises:
        UserError: As `prepare`.
    """
    setup = prepare(replace(config, compile=False), data)
    phases = _phases(setup, seconds)
    arms = {name: prepare(replace(setup.config, momentum=name), data) for name in _placements(setup)}
    times = _in_turn({"this": setup, **arms}, seconds)
    whole = median(times["this"])
    rate = setup.config.batch_size / whole
    base = times["stopgrad"]
    placements = {
        name: median(one / other for one, other in zip(times[name], base, strict=True)) for name in arms
    }
    peak = _peak(setup.execution)
    used = _flops(setup) / whole
    larger = _larger(setup, data, seconds)
    compiled = _compiled(setup, data, seconds) if config.compile else None
    return Bench(
        setup.execution,
        setup.config.batch_size,
        rate,
        phases,
        peak,
        used,
        placements,
        larger,
        compiled,
        tuple(advice(phases, rate, larger)),
    )


def advice(phases: Mapping[str, float], rate: float, larger: tuple[int, float] | None) -> list[str]:
    """What to change, one sentence each.

    Args:
        phases: Seconds of each.
        rate: Images a second.
        larger: Batch size and images a second of a larger batch; None where there is none.
    """
    total = sum(phases.values())
    share = {name: seconds / total for name, seconds in phases.items()}
    found = []
    if share["data"] > LOADER_BOUND:
        found.append(
            f"Loader-bound: {100 * share['data']:.0f} % of a step waits for images; put --cache on a faster disk, or "
            "lower --image-size or --limit so that the decoded images fit in memory."
        )
    if share["views"] > VIEWS_BOUND:
        found.append(
            f"Making views takes {100 * share['views']:.0f} % of a step; fewer --local-views cost less."
        )
    if larger is not None and larger[1] > FASTER * rate:
        found.append(
            f"--batch-size {larger[0]} is {larger[1] / rate:.2f} times as fast an image; the learning rate "
            "scales with it by itself."
        )
    if not found:
        busy = max(share, key=lambda name: share[name])
        found.append(
            f"Nothing waits: most of a step ({100 * share[busy]:.0f} %) is {busy}, the model's own work. What is "
            "left is a smaller --backbone or --image-size, or a cheaper --momentum."
        )
    return found


def _placements(setup: Setup) -> list[str]:
    """Those worth a comparison: the controls, the projector, the last part of the backbone on, and everything."""
    last = [name for name in setup.encoder.names if name != PROJECTOR][-1]
    return ["none", "stopgrad", PROJECTOR, f"{last}:", "all"]


def _phases(setup: Setup, seconds: float) -> dict[str, float]:
    """Median seconds of each phase."""
    watch = Stopwatch(setup)
    step = setup.step(watch)
    rows = []
    end = None
    batches = _batches(setup, setup.feed())
    for number in range(WARM_UP + MOST):
        watch.seconds = dict.fromkeys(PHASES, 0.0)
        with watch("data"):
            batch = next(batches)
        step(batch, number)
        if number >= WARM_UP:
            end = end or time.perf_counter() + seconds
            rows.append(watch.seconds)
            if len(rows) >= FEWEST and time.perf_counter() > end:
                break
    watch.remove()
    return {name: median(row[name] for row in rows) for name in PHASES}


def _batches(setup: Setup, feed: Feed) -> Iterator[Batch]:
    """Batches without end, in the run's order."""
    while True:
        yield from feed.batches(0, setup.total_steps)


def _in_turn(setups: Mapping[str, Setup], seconds: float) -> dict[str, list[float]]:
    """Seconds of a step of each, in turn: what slows the machine for a while slows all of them alike.

    Each turn is the mean of a window of steps, see `WINDOW`.
    """
    steps = {name: setup.step() for name, setup in setups.items()}
    # One feed for all: each keeps the images on a GPU where they fit.
    feed = next(iter(setups.values())).feed()
    batches = {name: _batches(setup, feed) for name, setup in setups.items()}
    times: dict[str, list[float]] = {name: [] for name in setups}
    end = None
    for turn in range(WARM_UP + MOST):
        if turn == WARM_UP:
            end = time.perf_counter() + seconds
        for name, setup in setups.items():
            device = setup.execution.device
            window = WINDOW[device.type]
            _wait(device)
            start = time.perf_counter()
            for number in range(turn * window, (turn + 1) * window):
                steps[name](next(batches[name]), number)
            _wait(device)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) / window)
        if end is not None and turn + 1 >= WARM_UP + FEWEST and time.perf_counter() > end:
            break
    return times


def _larger(setup: Setup, data: Dataset, seconds: float) -> tuple[int, float] | None:
    size = LARGER * setup.config.batch_size
    if size > len(data.train):
        return None
    try:
        other = prepare(replace(setup.config, batch_size=size), data)
        times = _in_turn({"larger": other}, seconds / LARGER)["larger"]
    except torch.OutOfMemoryError:
        return None
    return size, size / median(times)


def _compiled(setup: Setup, data: Dataset, seconds: float) -> Compiled:
    other = prepare(replace(setup.config, compile=True), data)
    start = time.perf_counter()
    step, batches = other.step(), _batches(other, other.feed())
    for number in range(WARM_UP):
        step(next(batches), number)
    _wait(other.execution.device)
    spent = time.perf_counter() - start
    times = _in_turn({"plain": setup, "compiled": other}, seconds)
    faster = median(a / b for a, b in zip(times["plain"], times["compiled"], strict=True))
    cost = max(0.0, spent - WARM_UP * median(times["compiled"]))
    won = median(times["plain"]) * (1 - 1 / faster)
    return Compiled(faster, cost, math.ceil(cost / won) if won > 0 else None)


def _flops(setup: Setup) -> float:
    """FLOPs of a step: forward, backward at twice the forward, and the target path."""
    size, channels = setup.augment.size, setup.data.train.images.shape[1]
    example = torch.zeros(1, channels, size, size, device=setup.execution.device)
    flops = part_flops(setup.encoder, setup.execution.images(example))
    views = setup.config.batch_size * len(setup.augment.recipes)
    return views * sum(flops.values()) * (3 + setup.encoder.placement.cost(flops))


def _peak(execution: Execution) -> float:
    """FLOP/s of a large square matrix product, the best of some."""
    side = GEMM_SIDE[execution.device.type]
    dtype = torch.bfloat16 if execution.precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=execution.device, dtype=dtype)
    times = []
    for _ in range(10):
        _wait(execution.device)
        start = time.perf_counter()
        a @ a
        _wait(execution.device)
        times.append(time.perf_counter() - start)
    return float(2 * side**3 / min(times))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
