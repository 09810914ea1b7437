"""When a run is saved, and how it goes on from what was saved."""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tailfin.data.types import Dataset, ImageSet
from tailfin.errors import Diverged, UserError
from tailfin.files.reading import understand
from tailfin.run import checkpoint
from tailfin.run import config as settings
from tailfin.run.config import Config
from tailfin.run.folder import Log
from tailfin.training.listeners import ADVICE, Listener, State, Taken, not_finite
from tailfin.training.step import Step

EPOCH_SECONDS = 60.0
"""An epoch's end is worth a checkpoint only so long after the last one: on a GPU an epoch can take a second, and a
save took .44 to .57 s (ResNet-18) and 1.3 s (ResNet-50) on a CPU, up to 13 % of 10 s."""
LOGS = ("metrics", "timing", "stability")


@dataclass(frozen=True)
class Held:
    """What a run goes on from.

    Attributes:
        step: Steps taken.
        lengths: Bytes of each log that are kept; the rest belongs to steps that are taken again.
        state: Of the listeners, among others; None where the run begins.
    """

    step: int = 0
    lengths: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(LOGS, 0))
    state: State | None = None


class Checkpoints:
    """Saves the run now and then, at its end, and where a stop was asked for.

    Args:
        file: The checkpoint.
        step: Whose encoder, method and optimizer are saved.
        listeners: Whose state is saved.
        logs: The run's logs, each up to the length that it has then.
        about: What else the file says, see `identity`.
        minutes: Longest time between two saves.
    """

    def __init__(
        self,
        file: Path,
        step: Step,
        listeners: Sequence[Listener],
        logs: Mapping[str, Log],
        about: Mapping[str, Any],
        minutes: float,
    ) -> None:
        self.file, self.step, self.listeners, self.logs = file, step, listeners, logs
        self.about, self.seconds = about, 60 * minutes
        self.saved = time.perf_counter()

    def after_step(self, taken: Taken) -> None:
        """Save where it is time.

        Raises:
            Diverged: Something to save is not finite.
        """
        elapsed = time.perf_counter() - self.saved
        due = elapsed > self.seconds or (taken.epoch_ends and elapsed > EPOCH_SECONDS)
        if taken.stopping() or taken.last or due:
            self.save(taken.step)
            self.saved = time.perf_counter()

    def state(self) -> State:
        """Nothing of its own."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing: see the function below."""

    def close(self) -> None:
        """Nothing."""

    def save(self, step: int) -> None:
        """Write the checkpoint of the run after `step` steps, and all logs to the disk.

        Raises:
            Diverged: Something to save is not finite.
        """
        states: dict[str, Tensor | float | None] = {}
        for listener in self.listeners:
            own = listener.state()
            if taken := own.keys() & (states.keys() | self.about.keys() | {"step", "lengths"}):
                raise ValueError(f"two listeners keep {sorted(taken)[0]!r}")
            states |= own
        tensors = {
            **{name: value for name, value in states.items() if isinstance(value, Tensor)},
            **checkpoint.module_tensors("encoder", self.step.encoder),
            **checkpoint.module_tensors("method", self.step.method),
            **checkpoint.optimizer_tensors(self.step.optimizer),
        }
        # What the monitors heard is theirs to judge: a part that is never heard is NaN there by design.
        weighed = {name: tensor for name, tensor in tensors.items() if not name.startswith("monitored.")}
        if broken := not_finite(weighed):
            raise Diverged(
                f"{broken[0]} is not finite after step {step} (epoch "
                f"{step / self.step.steps_per_epoch:.2f}) at learning rate {self.step.schedule(step - 1):.4g}, "
                f"though the loss still was. {ADVICE}"
            )
        progress = {
            "step": step,
            **{name: value for name, value in states.items() if not isinstance(value, Tensor)},
            "lengths": {name: self.logs[name].sync() if name in self.logs else 0 for name in LOGS},
            **self.about,
        }
        checkpoint.save(self.file, tensors, progress)


def identity(config: Config, data: Dataset) -> dict[str, Any]:
    """What a checkpoint says of the run that it belongs to."""
    return {
        "config": settings.as_dict(config),
        "data": fingerprint(data.train),
        "images": len(data.train),
        "channels": data.train.images.shape[1],
        "mean": data.mean,
        "std": data.std,
    }


def restore(file: Path, step: Step, config: Config, images: ImageSet) -> Held:
    """Have a step go on from a checkpoint; where there is none yet, from its start.

    Raises:
        UserError: The checkpoint is damaged, or belongs to other settings or other images.
    """
    if not file.exists():
        return Held()
    held = checkpoint.load(file)
    return understand(f"checkpoint {file}", lambda: _take(held, step, config, images, str(file)))


def _take(held: checkpoint.Checkpoint, step: Step, config: Config, images: ImageSet, where: str) -> Held:
    changed = settings.differences(settings.from_dict(held.progress["config"], where), config)
    if changed:
        raise UserError(f"{where} belongs to other settings: {'; '.join(changed)}")
    if held.progress["data"] != fingerprint(images):
        raise UserError(f"{where} was trained on other images than {config.data!r} holds now")
    checkpoint.load_module("encoder", step.encoder, held.tensors)
    checkpoint.load_module("method", step.method, held.tensors)
    checkpoint.load_optimizer(step.optimizer, held.tensors)
    done = held.progress["step"]
    if type(done) is not int or not 0 <= done <= step.schedule.total:
        raise ValueError(f"step {done!r} of {step.schedule.total}")
    lengths: dict[str, int] = {name: held.progress["lengths"][name] for name in LOGS}
    if any(type(length) is not int or length < 0 for length in lengths.values()):
        raise ValueError(f"lengths of logs {lengths}")
    return Held(done, lengths, {**held.progress, **held.tensors})


def fingerprint(images: ImageSet) -> str:
    """Tells one training set from another: shape, and a checksum of 256 images spread over it."""
    step = max(1, len(images) // 256)
    content = images.images[::step][:256].contiguous().numpy().tobytes()
    return f"{'x'.join(map(str, images.images.shape))}-{zlib.crc32(content):08x}"
