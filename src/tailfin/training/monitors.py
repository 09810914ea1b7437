"""The monitors of a run: what they hear and when they look, kept in stability.jsonl and in the checkpoint."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.compute.device import Execution
from tailfin.data.split import random_subset
from tailfin.data.types import ImageSet
from tailfin.methods.base import Method, Moment
from tailfin.momentum import MomentumEncoder
from tailfin.run.folder import Log
from tailfin.run.seeds import derive, generator
from tailfin.stability.fluctuation import Floats, Fluctuation, Lag, fluctuation, lags
from tailfin.stability.gradient import GradientMonitor
from tailfin.stability.probe import Probe, Reading
from tailfin.stability.signs import START, Sign, find_signs
from tailfin.training.listeners import State, Taken
from tailfin.views.augment import Augment

PROBE_STEPS = 50
"""Steps between two looks at the probe batch. 64 images forward and backward are a quarter of a step of 256, and so
half a per cent of 50 of them."""
PROBE_IMAGES = 64


class Monitors:
    """Listens to a training, and looks at its probe batch now and then; rows of stability.jsonl.

    Args:
        log: The file; None where nothing is kept, as with all but the first process of a run.
        gradient: The gradient's size at each part's output; None where it is not watched.
        probe: The fixed batch; None where it is not watched.
        accumulate: Micro-batches a step, each of whose losses is divided by as many.
        device: Where the training is.
        mean: See `GradientMonitor.step`.
    """

    def __init__(
        self,
        log: Log | None,
        gradient: GradientMonitor | None,
        probe: Probe | None,
        accumulate: int,
        device: torch.device,
        mean: Callable[[Tensor], Tensor] = lambda squares: squares,
    ) -> None:
        self.log, self.gradient, self.probe = log, gradient, probe
        self.accumulate, self.device, self.mean = accumulate, device, mean

    def restore(self, state: State) -> None:
        """Go on from what `state` gave, among others.

        Raises:
            ValueError: They are of other parts.
        """
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if not isinstance(tensor, Tensor):
                continue
            if kind == "monitored" and self.gradient is not None:
                self.gradient.restore(tensor.to(self.device))
            elif kind == "probed" and self.probe is not None:
                self.probe.before[name] = tensor.to(self.device)

    def after_step(self, taken: Taken) -> None:
        """Close an optimizer step; only a log row waits for the device."""
        if self.gradient is not None:
            self.gradient.step(1.0 / self.accumulate, self.mean)
        if taken.logged:
            self.write(taken.step)

    def write(self, step: int) -> None:
        """Write what was heard up to `step`, and look at the probe batch where it is due."""
        if self.gradient is not None:
            columns = self.gradient.flush().T.tolist()
            series = {
                name: [_number(value) for value in column]
                for name, column in zip(self.gradient.names, columns, strict=True)
            }
            self._row({"step": step, "gradient": series})
        if self.probe is not None and step % PROBE_STEPS == 0:
            with self.gradient.pause() if self.gradient is not None else nullcontext():
                reading = self.probe.read()
            self._row(
                {
                    "step": step,
                    "probe": {
                        key: {name: _finite(value) for name, value in values.items()}
                        for key, values in reading.items()
                    },
                }
            )

    def _row(self, row: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write(row)

    def state(self) -> State:
        """What a resumed run needs to go on with the same rows."""
        found: dict[str, Tensor | float | None] = {}
        if self.gradient is not None:
            found["monitored.gradient"] = self.gradient.pending()
        if self.probe is not None:
            found |= {f"probed.{name}": tensor.cpu() for name, tensor in self.probe.before.items()}
        return found

    def close(self) -> None:
        """Stop listening."""
        if self.gradient is not None:
            self.gradient.remove()
        if self.log is not None:
            self.log.close()


def probe_of(
    encoder: MomentumEncoder,
    method: Method,
    *,
    augment: Augment,
    execution: Execution,
    images: ImageSet,
    seed: int,
    total_steps: int,
    steps_per_epoch: int,
) -> Probe:
    """The probe of a run: some of its training images in fixed views, drawn by its seed.

    Args:
        encoder: Both branches.
        method: Loss and heads.
        augment: The views.
        execution: Device, precision, memory format.
        images: The training images.
        seed: Of the run.
        total_steps, steps_per_epoch: Of the run, for methods whose loss follows a schedule.
    """
    chosen = random_subset(len(images), PROBE_IMAGES, derive(seed, "probe") % 2**31)
    some = images.subset(chosen)
    draws = generator(seed, "probe views")
    views = augment(some.images.to(execution.device), draws, some.aspect)

    def loss(online: Branch, target: Branch) -> Tensor:
        moment = method.moment
        step = 0 if moment is None else moment.step
        method.begin(Moment(step, total_steps, steps_per_epoch, chosen, some.labels))
        value = method.loss(online, target)
        method.after_step(taken=False)
        method.begin(moment)
        return value

    placed = [execution.images(view) for view in views]
    return Probe(encoder, loss, placed, heads=method, autocast=execution.autocast)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float) -> float | str | None:
    """As JSON, which has no word for them, null for NaN (a part that was not heard) and "inf" (not finite)."""
    return "inf" if math.isinf(value) else _finite(value)


@dataclass(frozen=True)
class Summary:
    """What the monitors of a finished run saw.

    Attributes:
        signs: Of trouble, the worst first.
        fluctuation: Of the gradient at each part, the warm-up left out.
        lags: How each part follows the last one.
    """

    signs: list[Sign]
    fluctuation: dict[str, Fluctuation]
    lags: dict[str, Lag]


def summarise(
    rows: Sequence[Mapping[str, Any]], encoder: MomentumEncoder, *, total_steps: int, width: int
) -> Summary:
    """The summary of the rows of stability.jsonl.

    Args:
        rows: All of the run's.
        encoder: Both branches.
        total_steps: Of the run.
        width: Of the method's outputs.
    """
    series = gradient_series(rows)
    late = {name: values[int(START * len(values)) :] for name, values in series.items()}
    found = {name: stats for name, values in late.items() if (stats := fluctuation(values)) is not None}
    readings = [(int(row["step"]), _reading(row["probe"])) for row in rows if "probe" in row]
    signs = find_signs(
        series,
        readings,
        encoder=encoder,
        steps=total_steps,
        width=min(width, PROBE_IMAGES),
    )
    return Summary(signs, found, lags({name: late[name] for name in found}, next(reversed(found), "")))


def _reading(row: Mapping[str, Mapping[str, float | None]]) -> Reading:
    return {
        key: {name: math.nan if value is None else value for name, value in values.items()}
        for key, values in row.items()
    }


def gradient_series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """Each part's gradient norms, float64 [steps], from the rows of stability.jsonl.

    NaN where the part was not heard, inf where its gradient was not finite.
    """
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, values in row.get("gradient", {}).items():
            columns.setdefault(name, []).extend(math.nan if v is None else float(v) for v in values)
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
