"""What listens to a training: logs, validation, what is told on the way.

Monitors and checkpoints are listeners too, and have files of their own.
A loop tells its listeners after each step, one after another; their order is the list in `start.py`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tailfin.errors import Diverged
from tailfin.momentum import MomentumEncoder
from tailfin.run.folder import Log
from tailfin.training.optimizers import Schedule

ADVICE = "Lower --lr or set --clip-grad"
State = Mapping[str, Tensor | float | None]
"""Tensors and plain numbers by name."""


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        step: Steps taken so far, this one included.
        loss: Its loss, a detached scalar on the device.
        waited: Seconds that it waited for its images.
        began: When it asked for them, as `time.perf_counter()` tells it.
        epoch_ends: Whether it is the last one of an epoch.
        logged: Whether a row of the logs is due.
        last: Whether it is the run's last one.
        stopping: Whether the run should stop after this step; the first call decides, later calls repeat it.
    """

    step: int
    loss: Tensor
    waited: float
    began: float
    epoch_ends: bool
    logged: bool
    last: bool
    stopping: Callable[[], bool] = lambda: False


class Listener(Protocol):
    """What a loop tells after each step, and what a checkpoint keeps of it."""

    def after_step(self, taken: Taken) -> None:
        """A step was taken."""

    def state(self) -> State:
        """What a resumed run needs to go on as if it had never stopped, under names that no other listener has."""

    def restore(self, state: State) -> None:
        """Go on from what `state` gave before; what other listeners gave is among it.

        Raises:
            ValueError, KeyError: It is not of this run.
        """

    def close(self) -> None:
        """Let go of what is held, such as files: the training has ended, one way or another."""


class Progress:
    """What a person or a program is told on the way; this one tells nobody."""

    def begin(self, first: int, total: int) -> None:
        """The training begins after `first` of `total` steps."""

    def step(
        self, step: int, loss: float, images_per_second: float, data_wait: float, knn: float | None
    ) -> None:
        """After each log row."""

    def close(self) -> None:
        """The training has ended, one way or another."""


class Metrics:
    """Writes the mean loss since the previous row to metrics.jsonl; its rows follow from the settings alone.

    Args:
        log: The file.
        encoder: Both branches, whose decay is logged, and whose parts are looked at where a loss is not finite.
        schedule: The learning rate.
        steps_per_epoch: Optimizer steps an epoch.
        device: Where the losses are.
    """

    def __init__(
        self,
        log: Log,
        encoder: MomentumEncoder,
        schedule: Schedule,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.log, self.encoder, self.schedule = log, encoder, schedule
        self.steps_per_epoch, self.device = steps_per_epoch, device
        self.losses: list[Tensor] = []
        self.step, self.loss = 0, 0.0

    def after_step(self, taken: Taken) -> None:
        """Keep the loss; on a log row, wait for the device and write the mean.

        Raises:
            Diverged: A loss is not finite.
        """
        self.losses.append(taken.loss)
        self.step = taken.step
        if not taken.logged:
            return
        losses = self._finite()
        self.losses.clear()
        self.loss = float(losses.mean())
        row: dict[str, Any] = {
            "step": taken.step,
            "epoch": round(taken.step / self.steps_per_epoch, 4),
            "loss": self.loss,
            "lr": self.schedule(taken.step - 1),
        }
        if placed := self.encoder.placement.placed:
            row["decay"] = self.encoder.decays[placed[-1]](taken.step - 1)
        self.log.write(row)

    def state(self) -> State:
        """The losses since the last row.

        Raises:
            Diverged: One of them is not finite.
        """
        self._finite()
        return {"losses": torch.stack(self.losses).cpu() if self.losses else torch.empty(0)}

    def restore(self, state: State) -> None:
        """Take up the losses since the last row."""
        losses = state["losses"]
        if not isinstance(losses, Tensor):
            raise ValueError("losses that are no tensor")
        self.losses = list(losses.float().to(self.device))

    def close(self) -> None:
        """Close the file."""
        self.log.close()

    def _finite(self) -> Tensor:
        losses = (torch.stack(self.losses) if self.losses else torch.empty(0)).double().cpu()
        bad = (~losses.isfinite()).nonzero().flatten()
        if not len(bad):
            return losses
        first = self.step - len(losses) + int(bad[0])
        parts = {name: self.encoder.part(name) for name in self.encoder.names}
        broken = [name for name, part in parts.items() if not_finite(dict(part.named_parameters()))]
        where = f"weights that are not finite: {', '.join(broken)}" if broken else "all weights are finite"
        before = losses[losses.isfinite()]
        if len(before):
            last = f"last finite loss {float(before[-1]):.4g}"
        else:
            last = "last finite loss in metrics.jsonl" if first else "no loss was finite"
        raise Diverged(
            f"the loss is {float(losses[int(bad[0])])} since step {first + 1} (epoch "
            f"{first / self.steps_per_epoch:.2f}) at learning rate {self.schedule(first):.4g}; {where}; "
            f"{last}. {ADVICE}"
        )


class Timing:
    """Images a second, and the share of the time that waits for them, in timing.jsonl.

    What other listeners do after a log row is not counted.
    """

    def __init__(self, log: Log, batch_size: int) -> None:
        self.log, self.batch_size = log, batch_size
        self.since: float | None = None
        self.steps, self.waited = 0, 0.0
        self.rate = self.wait = 0.0

    def after_step(self, taken: Taken) -> None:
        """Count; write a row where one is due."""
        self.since = taken.began if self.since is None else self.since
        self.steps, self.waited = self.steps + 1, self.waited + taken.waited
        if not taken.logged:
            return
        seconds = time.perf_counter() - self.since
        self.rate, self.wait = self.steps * self.batch_size / seconds, self.waited / seconds
        self.log.write({"step": taken.step, "images_per_second": self.rate, "data_wait": self.wait})
        self.since, self.steps, self.waited = None, 0, 0.0

    def state(self) -> State:
        """Nothing: a resumed run measures anew."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing."""

    def close(self) -> None:
        """Close the file."""
        self.log.close()


class Validation:
    """The validation accuracy after some epochs, a row of metrics.jsonl.

    Args:
        log: The file, which `Metrics` closes.
        validate: Gives the accuracy in percent; None where there are no labels.
        epochs: After which to look, counted from 1.
        steps_per_epoch: Optimizer steps an epoch.

    Attributes:
        knn: The latest accuracy.
    """

    def __init__(
        self, log: Log, validate: Callable[[], float] | None, epochs: frozenset[int], steps_per_epoch: int
    ) -> None:
        self.log, self.validate, self.epochs, self.steps_per_epoch = log, validate, epochs, steps_per_epoch
        self.knn: float | None = None

    def after_step(self, taken: Taken) -> None:
        """At the end of one of the epochs, look."""
        epoch = taken.step // self.steps_per_epoch
        if self.validate is None or not taken.epoch_ends or epoch not in self.epochs:
            return
        self.knn = self.validate()
        self.log.write({"step": taken.step, "epoch": epoch, "knn": self.knn})

    def state(self) -> State:
        """The latest accuracy."""
        return {"knn": self.knn}

    def restore(self, state: State) -> None:
        """Take up the latest accuracy."""
        knn = state["knn"]
        self.knn = None if knn is None else float(knn)

    def close(self) -> None:
        """The file is another's to close."""


class Telling:
    """Tells a `Progress` what the logs were told."""

    def __init__(self, progress: Progress, metrics: Metrics, timing: Timing, validation: Validation) -> None:
        self.progress, self.metrics, self.timing, self.validation = progress, metrics, timing, validation

    def after_step(self, taken: Taken) -> None:
        """On a log row, tell."""
        if taken.logged:
            timing = self.timing
            self.progress.step(taken.step, self.metrics.loss, timing.rate, timing.wait, self.validation.knn)

    def state(self) -> State:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not finite, in order; each device is waited for once, not once a tensor."""
    asked: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        asked.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    finite: dict[str, bool] = {}
    for flags in asked.values():
        finite |= zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
    return [name for name in tensors if not finite[name]]
