"""Whole training, images a second: ours against lightly's own recipe, the same backbone, images and batch, in turn.

python benchmarks/peers.py                                  # ResNet-18, SimCLR and BYOL; some minutes on 2 cores
python benchmarks/peers.py --device cuda --batch-size 512 --workers 16

lightly (pip install lightly) runs its CIFAR-10 benchmark from its own pieces: torchvision transforms a sample in a
DataLoader's workers, fp32; and the same with bf16 and channels_last turned on by hand. stable-pretraining (pip
install stable-pretraining), where it is installed, runs SimCLR as in the complete example of its README, in fp32
and in the bf16 that its Trainer offers. solo-learn, where version 1.0.6 is installed from its repository (what PyPI
has of it, 1.0.2, is tied to torch 1.9.1), runs its SimCLR for CIFAR-10 in mixed precision and channels_last, as it
comes. Heads, views and optimizers are each one's own.

A DataLoader's workers make 2 batches each ahead: the clock starts once these are used up and 2 more, in every arm,
and by default runs for three times as many batches, so that what was made before it is no part of the rate.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import in_turn, ratio, save, spread, wait, words
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.data.types import Dataset, ImageSet
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.training.listeners import Progress
from tailfin.training.setup import load_data, prepare
from tailfin.training.start import start

PLACEMENTS = {
    "simclr": ("none", "projector", "all"),
    "byol": ("projector", "all"),
    "mocov2plus": ("projector", "all"),
}
BASE = "lightly, its recipe"
AHEAD = 2
"""Batches that each worker of a DataLoader makes ahead: its `prefetch_factor`."""


@dataclass(frozen=True)
class Asked:
    """What every arm shares.

    Attributes:
        data: Images for every step of a run, repeated where there are fewer.
        batch: Images a step.
        first: Steps before the clock.
        steps: Steps on the clock.
        workers: Of a DataLoader.
        device: Where it trains.
    """

    data: Dataset
    batch: int
    first: int
    steps: int
    workers: int
    device: torch.device


def main() -> None:
    """Measure and print one row a method and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="shapes", help="what the images are: cifar10, a folder, shapes")
    parser.add_argument("--methods", nargs="*", default=["simclr", "byol"], choices=list(PLACEMENTS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, help="on the clock; 3 times what the workers make ahead if open")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not find_spec("lightly"):
        sys.exit("lightly is not installed: pip install lightly")
    device = find_device(given.device)
    keep_freed_memory()
    ahead = AHEAD * given.workers
    steps = given.steps or 3 * max(1, ahead)
    first = ahead + 2
    count = (first + steps + 1) * given.batch_size
    data = enough(load_data(Config(data=given.data, limit=count, image_size=32), device), count)
    asked = Asked(data, given.batch_size, first, steps, given.workers, device)
    for method in given.methods:
        arms = arms_of(method, asked)
        times = in_turn(arms, given.rounds, device, warm=0)
        figures: dict[str, Any] = {"steps_before_the_clock": first, "steps": steps}
        for name, seconds in times.items():
            rates, over = (
                spread([steps * given.batch_size / each for each in seconds]),
                ratio(times[BASE], seconds),
            )
            figures[name] = {"images_per_second": rates, "over_lightly": over}
            arm, chose = arms[name], ""
            if isinstance(arm, Ours):
                figures[name]["chose"] = [arm.config.precision, arm.config.memory_format]
                chose = f"; {arm.config.precision}, {arm.config.memory_format}"
            print(
                f"{method:<12}{name:<34}{rates['median']:>9,.1f} images/s, {words(over)} of lightly's recipe, "
                f"n = {given.rounds}{chose}",
                flush=True,
            )
        save(f"peers-{method}-batch{given.batch_size}-workers{given.workers}", device, figures, given.out)


def enough(data: Dataset, count: int) -> Dataset:
    """`count` training images, over and over where there are fewer, without labels."""
    index = torch.arange(count) % len(data.train)
    return replace(data, train=ImageSet(data.train.images[index]), test=None)


def arms_of(method: str, asked: Asked) -> dict[str, Callable[[], float]]:
    """Seconds of the steps on the clock, by arm."""
    arms: dict[str, Callable[[], float]] = {
        BASE: partial(peer, "lightly_arm", asked, method=method, fast=False),
        "lightly, bf16 and channels_last": partial(peer, "lightly_arm", asked, method=method, fast=True),
    }
    if method == "simclr" and find_spec("stable_pretraining"):
        for said, precision in (("its recipe", "32-true"), ("bf16-mixed", "bf16-mixed")):
            arms[f"stable-pretraining, {said}"] = partial(
                peer, "stable_pretraining_arm", asked, precision=precision
            )
    if method == "simclr" and find_spec("solo"):
        arms["solo-learn, its recipe"] = partial(peer, "solo_learn_arm", asked)
    for placement in PLACEMENTS[method]:
        arms[f"ours, {placement}"] = Ours(method, placement, asked)
    return arms


class Ours:
    """The whole loop, monitors and logs included, at its own choices, which are made once."""

    def __init__(self, method: str, placement: str, asked: Asked) -> None:
        self.asked = asked
        self.config = Config(
            data="given",
            method=method,
            momentum=placement,
            backbone="resnet18",
            image_size=32,
            batch_size=asked.batch,
            epochs=1,
            device=str(asked.device),
            knn_evaluations=0,
        )

    def __call__(self) -> float:
        """Seconds of the steps on the clock; the run's end, which saves it, comes after."""
        setup = prepare(self.config, self.asked.data)
        chosen = (setup.config.precision, setup.config.memory_format)
        self.config = replace(self.config, precision=chosen[0], memory_format=chosen[1])
        clock = Clock(self.asked)
        with tempfile.TemporaryDirectory() as folder:
            loop = start(setup, RunFolder(Path(folder)), None, Progress())

            @contextmanager
            def mark(phase: str) -> Iterator[None]:
                if phase == "views":
                    clock()
                yield

            loop.step.phase = mark
            loop.run()
        return clock.measured("ours")


class Clock:
    """Called at the start of each step; waits for the device at the first and the last on the clock alone."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.step = asked, 0
        self.start = self.seconds = float("nan")

    def __call__(self) -> None:
        """A step starts."""
        if self.step == self.asked.first:
            wait(self.asked.device)
            self.start = time.perf_counter()
        elif self.step == self.asked.first + self.asked.steps:
            wait(self.asked.device)
            self.seconds = time.perf_counter() - self.start
        self.step += 1

    def measured(self, arm: str) -> float:
        """Seconds of the steps on the clock; an arm that did not take them all ends the command."""
        if math.isnan(self.seconds):
            sys.exit(f"{arm} took {self.step} steps, too few for the clock")
        return self.seconds


class Pictures(TorchDataset[Any]):
    """uint8 images as PIL pictures, as a CIFAR-10 dataset gives them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        from PIL import Image

        return Image.fromarray(self.images[place])


def peer(arm: str, asked: Asked, **more: Any) -> float:
    """Seconds of the steps on the clock of the arm in the module of this name, which takes `more` of its own."""
    clock = Clock(asked)
    import_module(arm).train(
        Pictures(asked.data.train.images),
        clock,
        batch=asked.batch,
        steps=asked.first + asked.steps + 1,
        workers=asked.workers,
        device=asked.device,
        **more,
    )
    return clock.measured(arm)


if __name__ == "__main__":
    main()
