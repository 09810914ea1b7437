"""The monitors of a run: what they hear and when they look, kept in stability.jsonl and in the checkpoint."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tailfin.branch import Branch
from tailfin.data.split import random_subset
from tailfin.methods.base import Moment
from tailfin.stability.fluctuation import Floats, Fluctuation, Lag, fluctuation, lags
from tailfin.stability.gradient import GradientMonitor
from tailfin.stability.probe import Probe, Reading
from tailfin.stability.signs import START, Sign, find_signs
from tailfin.training.folder import Log, RunFolder
from tailfin.training.seeds import derive, generator
from tailfin.training.setup import Setup

PROBE_STEPS = 50
"""Steps between two looks at the probe batch. 64 images forward and backward are a quarter of a step of 256, and so
half a per cent of 50 of them."""
PROBE_IMAGES = 64


class Monitors:
    """Watches a `Setup` train; `config.monitors` says what is on.

    Args:
        setup: What trains.
        folder: Where stability.jsonl lies.
        length: Bytes of it that are kept, the rest belonging to lost steps.
    """

    def __init__(self, setup: Setup, folder: RunFolder, length: int = 0) -> None:
        self.setup = setup
        wanted = setup.config.monitored()
        self.log = Log(folder.stability, length) if wanted else None
        self.gradient = GradientMonitor(setup.encoder.online_parts()) if "gradient" in wanted else None
        self.probe = probe_of(setup) if "probe" in wanted else None

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from the tensors of a checkpoint, in which `tensors` put its own.

        Raises:
            ValueError: They are of other parts.
        """
        device = self.setup.execution.device
        for key, tensor in held.items():
            kind, _, name = key.partition(".")
            if kind == "monitored" and self.gradient is not None:
                self.gradient.restore(tensor.to(device))
            elif kind == "probed" and self.probe is not None:
                self.probe.before[name] = tensor.to(device)

    def after_step(self) -> None:
        """Close an optimizer step; nothing waits for the device."""
        if self.gradient is not None:
            self.gradient.step(1.0 / self.setup.config.accumulate)

    def write(self, step: int) -> None:
        """Write what was heard up to `step`, and look at the probe batch where it is due."""
        if self.log is None:
            return
        if self.gradient is not None:
            columns = self.gradient.flush().T.tolist()
            series = {
                name: [_number(value) for value in column]
                for name, column in zip(self.gradient.names, columns, strict=True)
            }
            self.log.write({"step": step, "gradient": series})
        if self.probe is not None and step % PROBE_STEPS == 0:
            with self.gradient.pause() if self.gradient is not None else nullcontext():
                reading = self.probe.read()
            self.log.write(
                {
                    "step": step,
                    "probe": {
                        key: {name: _finite(value) for name, value in values.items()}
                        for key, values in reading.items()
                    },
                }
            )

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on with the same rows."""
        found: dict[str, Tensor] = {}
        if self.gradient is not None:
            found["monitored.gradient"] = self.gradient.pending()
        if self.probe is not None:
            found |= {f"probed.{name}": tensor.cpu() for name, tensor in self.probe.before.items()}
        return found

    def sync(self) -> int:
        """Put all rows on the disk; returns the file's length in bytes."""
        return 0 if self.log is None else self.log.sync()

    def close(self) -> None:
        """Stop listening."""
        if self.gradient is not None:
            self.gradient.remove()
        if self.log is not None:
            self.log.close()


def probe_of(setup: Setup) -> Probe:
    """The probe of a run: fixed training images in fixed views, drawn by its seed."""
    train, seed = setup.data.train, setup.config.seed
    chosen = random_subset(len(train), PROBE_IMAGES, derive(seed, "probe") % 2**31)
    images = train.subset(chosen)
    draws = generator(seed, "probe views")
    views = setup.augment(images.images.to(setup.execution.device), draws, images.aspect)

    def loss(online: Branch, target: Branch) -> Tensor:
        moment = setup.method.moment
        step = 0 if moment is None else moment.step
        setup.method.begin(Moment(step, setup.total_steps, setup.steps_per_epoch, chosen, images.labels))
        value = setup.method.loss(online, target)
        setup.method.after_step(taken=False)
        setup.method.begin(moment)
        return value

    return Probe(
        setup.encoder,
        loss,
        [setup.execution.images(view) for view in views],
        heads=setup.method,
        autocast=setup.execution.autocast,
    )


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


def summarise(rows: Sequence[Mapping[str, Any]], setup: Setup) -> Summary:
    """The summary of the rows of stability.jsonl."""
    series = gradient_series(rows)
    late = {name: values[int(START * len(values)) :] for name, values in series.items()}
    found = {name: stats for name, values in late.items() if (stats := fluctuation(values)) is not None}
    readings = [(int(row["step"]), _reading(row["probe"])) for row in rows if "probe" in row]
    signs = find_signs(
        series,
        readings,
        encoder=setup.encoder,
        steps=setup.total_steps,
        width=min(setup.method.out, PROBE_IMAGES),
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
