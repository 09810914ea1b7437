"""What the arms of peers.py that train with Lightning share."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from common import Transformed
from lightning.pytorch import Callback, Trainer


class Starts(Callback):  # type: ignore[misc]
    """Tells the clock when a step starts."""

    def __init__(self, clock: Callable[[], None]) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        """A step starts."""
        self.clock()


def trainer(
    clock: Callable[[], None], steps: int, precision: str, device: torch.device, max_epochs: int | None = None
) -> Any:
    """A Trainer on one device without logs, checkpoints and progress."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(
        max_epochs=max_epochs,
        max_steps=steps,
        precision=precision,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=[Starts(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Labelled(Transformed):
    """The same with a label, which the libraries' own data sets have."""

    def __getitem__(self, place: int) -> tuple[Any, int]:
        return super().__getitem__(place), 0
