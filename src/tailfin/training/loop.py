"""The loop over steps: logs, validation, checkpoints, and stopping in good order."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from tailfin.errors import UserError
from tailfin.reading import understand
from tailfin.training import checkpoint
from tailfin.training import config as settings
from tailfin.training.folder import Log, RunFolder
from tailfin.training.monitoring import Monitors
from tailfin.training.setup import Setup, fingerprint
from tailfin.training.step import Step

LOG_STEPS = 10
"""Steps between log rows: reading a loss makes the host wait for the device."""
EPOCH_SECONDS = 60.0
"""An epoch's end is worth a checkpoint only so long after the last one: on a GPU an epoch can take a second, and a
save took .44 to .57 s (ResNet-18) and 1.3 s (ResNet-50) on a CPU, up to 13 % of 10 s."""


LOGS = ("metrics", "timing", "stability")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks for a stop in good order: Ctrl-C, a batch system, a closed terminal."""
ADVICE = "Lower --lr or set --clip-grad"


class Progress(Protocol):
    """What the loop tells while it runs."""

    def step(
        self, step: int, loss: float, images_per_second: float, data_wait: float, knn: float | None
    ) -> None:
        """After each log row."""


class Stopped(Exception):
    """The user asked to stop; everything is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


class Diverged(Exception):
    """The loss is not finite: what, where and since when."""


@dataclass
class State:
    """What the loop carries from step to step, beside weights.

    Attributes:
        step: Steps taken.
        losses: Losses since the last log row.
        knn: The latest validation accuracy in percent.
    """

    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    knn: float | None = None


class Loop:
    """Runs a `Setup` to its last step in a run folder, from its checkpoint where there is one.

    Args:
        setup: What to train.
        folder: Where to keep it.
        validate: Gives the validation accuracy, looked at `knn_evaluations` times.

    Raises:
        UserError: The folder's checkpoint is damaged or belongs to other settings or other data.
    """

    def __init__(self, setup: Setup, folder: RunFolder, validate: Callable[[], float] | None) -> None:
        self.setup, self.folder, self.validate = setup, folder, validate
        self.train_step = Step(setup)
        self.state = State()
        lengths, held = self._restore() if folder.checkpoint.exists() else ({}, {})
        self.monitors = Monitors(setup, folder, lengths.get("stability", 0))
        understand(f"checkpoint {folder.checkpoint}", lambda: self.monitors.restore(held))
        self.metrics = Log(folder.metrics, lengths.get("metrics", 0))
        self.timing = Log(folder.timing, lengths.get("timing", 0))
        self._evaluations = (
            _spread(setup.config.epochs, setup.config.knn_evaluations) if validate else frozenset()
        )

    def run(self, progress: Progress) -> None:
        """Train to the end, telling `progress` after each log row.

        Raises:
            Stopped: On one of `STOPS`, after saving.
            Diverged: At a loss that is not finite; the last checkpoint is from before.
        """
        setup, state = self.setup, self.state
        feed = setup.feed()
        saved = since = time.perf_counter()
        waited, counted = 0.0, 0
        with _catch_signals() as caught:
            for batch in feed.batches(state.step, setup.total_steps):
                state.losses.append(self.train_step(batch, state.step))
                state.step += 1
                self.monitors.after_step()
                waited, counted = waited + batch.waited, counted + 1
                epoch_ends = state.step % setup.steps_per_epoch == 0
                logged = state.step % LOG_STEPS == 0 or epoch_ends
                if logged:
                    loss = self._log()
                    now = time.perf_counter()
                    rate, wait = counted * setup.config.batch_size / (now - since), waited / (now - since)
                    self.monitors.write(state.step)
                    self.timing.write({"step": state.step, "images_per_second": rate, "data_wait": wait})
                    if epoch_ends:
                        self._evaluate()
                    progress.step(state.step, loss, rate, wait, state.knn)
                elapsed = time.perf_counter() - saved
                due = elapsed > 60 * setup.config.checkpoint_minutes or (
                    epoch_ends and elapsed > EPOCH_SECONDS
                )
                if due or caught or state.step == setup.total_steps:
                    self._save()
                    saved = time.perf_counter()
                if logged:
                    since, waited, counted = time.perf_counter(), 0.0, 0
                if caught:
                    raise Stopped(state.step, caught[0])
        self.metrics.close()
        self.timing.close()
        self.monitors.close()

    def _log(self) -> float:
        """Write the row of the steps since the last one; returns their mean loss."""
        setup, state = self.setup, self.state
        losses = torch.stack(state.losses).double().cpu()
        self._check_finite(losses)
        state.losses.clear()
        row: dict[str, Any] = {
            "step": state.step,
            "epoch": round(state.step / setup.steps_per_epoch, 4),
            "loss": float(losses.mean()),
            "lr": self.train_step.learning_rate(state.step - 1),
        }
        placed = setup.encoder.placement.placed
        if placed:
            row["decay"] = setup.encoder.decays[placed[-1]](state.step - 1)
        self.metrics.write(row)
        return float(row["loss"])

    def _evaluate(self) -> None:
        setup, state = self.setup, self.state
        epoch = state.step // setup.steps_per_epoch
        if self.validate is None or epoch not in self._evaluations:
            return
        state.knn = self.validate()
        self.metrics.write({"step": state.step, "epoch": epoch, "knn": state.knn})

    def _check_finite(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero().flatten()
        if not len(bad):
            return
        first = self.state.step - len(losses) + int(bad[0])
        setup = self.setup
        broken = [
            name
            for name in setup.encoder.names
            if _not_finite(dict(setup.encoder.part(name).named_parameters()))
        ]
        where = f"weights that are not finite: {', '.join(broken)}" if broken else "all weights are finite"
        before = losses[losses.isfinite()]
        if len(before):
            last = f"last finite loss {float(before[-1]):.4g}"
        else:
            last = "last finite loss in metrics.jsonl" if first else "no loss was finite"
        rate = self.train_step.learning_rate(first)
        raise Diverged(
            f"the loss is {float(losses[int(bad[0])])} since step {first + 1} (epoch "
            f"{first / setup.steps_per_epoch:.2f}) at learning rate {rate:.4g}; {where}; "
            f"{last}. {ADVICE}"
        )

    def _save(self) -> None:
        setup, state = self.setup, self.state
        losses = torch.stack(state.losses).cpu() if state.losses else torch.empty(0)
        self._check_finite(losses.double())
        tensors = {
            **checkpoint.module_tensors("encoder", setup.encoder),
            **checkpoint.module_tensors("method", setup.method),
            **checkpoint.optimizer_tensors(self.train_step.optimizer),
            "losses": losses,
            **self.monitors.tensors(),
        }
        # What the monitors heard is theirs to judge: a part that is never heard is NaN there by design.
        weighed = {name: tensor for name, tensor in tensors.items() if not name.startswith("monitored.")}
        if broken := _not_finite(weighed):
            rate = self.train_step.learning_rate(state.step - 1)
            raise Diverged(
                f"{broken[0]} is not finite after step {state.step} (epoch "
                f"{state.step / setup.steps_per_epoch:.2f}) at learning rate {rate:.4g}, though the loss still was. "
                f"{ADVICE}"
            )
        lengths = {
            "metrics": self.metrics.sync(),
            "timing": self.timing.sync(),
            "stability": self.monitors.sync(),
        }
        progress = {
            "step": state.step,
            "knn": state.knn,
            "lengths": lengths,
            "config": settings.as_dict(setup.config),
            "data": fingerprint(setup.data.train),
            "images": len(setup.data.train),
            "channels": setup.data.train.images.shape[1],
            "mean": setup.data.mean,
            "std": setup.data.std,
        }
        checkpoint.save(self.folder.checkpoint, tensors, progress)

    def _restore(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        held = checkpoint.load(self.folder.checkpoint)
        where = str(self.folder.checkpoint)
        return understand(f"checkpoint {where}", lambda: self._take(held, where)), held.tensors

    def _take(self, held: checkpoint.Checkpoint, where: str) -> dict[str, int]:
        """Go on from a checkpoint; returns the lengths of the logs when it was written."""
        setup = self.setup
        changed = settings.differences(settings.from_dict(held.progress["config"], where), setup.config)
        if changed:
            raise UserError(f"{where} belongs to other settings: {'; '.join(changed)}")
        if held.progress["data"] != fingerprint(setup.data.train):
            raise UserError(f"{where} was trained on other images than {setup.config.data!r} holds now")
        checkpoint.load_module("encoder", setup.encoder, held.tensors)
        checkpoint.load_module("method", setup.method, held.tensors)
        checkpoint.load_optimizer(self.train_step.optimizer, held.tensors)
        step, knn = held.progress["step"], held.progress["knn"]
        if type(step) is not int or not 0 <= step <= setup.total_steps:
            raise ValueError(f"step {step!r} of {setup.total_steps}")
        losses = held.tensors["losses"].float().to(setup.execution.device)
        self.state = State(step, list(losses), None if knn is None else float(knn))
        lengths: dict[str, int] = {name: held.progress["lengths"][name] for name in LOGS}
        if any(type(length) is not int or length < 0 for length in lengths.values()):
            raise ValueError(f"lengths of logs {lengths}")
        return lengths


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not finite, in order; each device is waited for once, not once a tensor."""
    asked: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        asked.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    finite: dict[str, bool] = {}
    for flags in asked.values():
        finite |= zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
    return [name for name in tensors if not finite[name]]


def _spread(epochs: int, times: int) -> frozenset[int]:
    """Epochs, counted from 1, after which to evaluate: evenly spread, the last one included."""
    times = min(times, epochs)
    return frozenset(math.ceil(epochs * (i + 1) / times) for i in range(times))


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Collects `STOPS` instead of dying of them; a second one interrupts at once."""
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt(number)

    try:
        # Who starts a run by nohup has the hang-up ignored.
        numbers = [n for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not in the main thread: signals are the caller's business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
