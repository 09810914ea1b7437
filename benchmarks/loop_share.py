"""The bare step (views already made, on the device) against the whole training loop, in turn, as many steps of each.

python benchmarks/loop_share.py                                 # narrow ResNet and ResNet-18 at 32 px
python benchmarks/loop_share.py --device cuda --batch-size 512  # ResNet-18, and ResNet-50 at 224 px from 256 px

Images are random, of 50 steps an epoch at most. The loop's last checkpoint, of which a run of any length has one, is
timed apart.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import in_turn, ratio, save, spread, wait, words

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.data.types import Dataset, ImageSet, channel_statistics
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.training.checkpoints import Checkpoints
from tailfin.training.feed import Batch
from tailfin.training.listeners import Progress
from tailfin.training.setup import Setup, prepare
from tailfin.training.start import start

STEPS_PER_EPOCH = 50
LARGE = ("resnet50",)
"""Backbones that see views of 224 px, drawn from images of 256 px; the others views of 32 px from as many."""
WARM_STEPS = 5


def main() -> None:
    """Measure and print one row a backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, help="a quarter of it at 224 px")
    parser.add_argument(
        "--steps", type=int, default=100, help="of each arm; every 50 the monitors' probe looks"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbones", nargs="*")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    usual = ["resnet18", "resnet50"] if device.type == "cuda" else ["resnet10w16", "resnet18"]
    chosen = asked.backbones or usual
    figures = {}
    for backbone in chosen:
        size = 224 if backbone in LARGE else 32
        batch = asked.batch_size // (4 if size == 224 else 1)
        figures[backbone] = row = measure(backbone, size, batch, asked.steps, asked.rounds, device)
        print(
            f"{backbone} at {size} px, batch {batch}, {asked.steps} steps: bare step "
            f"{row['bare_images_per_second']['median']:,.0f} images/s, whole loop "
            f"{words(row['loop_over_bare'], '.3f')} of it, n = {asked.rounds}; its last checkpoint "
            f"{row['last_checkpoint_seconds']['median']:.2f} s",
            flush=True,
        )
    save(f"loop-share-{'-'.join(chosen)}", device, figures, asked.out)


def measure(
    backbone: str, size: int, batch: int, steps: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Images a second of the bare step, and the loop's share of it, in rounds taken in turn."""
    epochs = -(-steps // STEPS_PER_EPOCH)
    config = Config(
        data="random",
        backbone=backbone,
        batch_size=batch,
        image_size=size,
        epochs=epochs,
        momentum="projector",
        device=str(device),
        precision="bf16" if device.type == "cuda" else "fp32",
        memory_format="channels_last",
        knn_evaluations=0,
    )
    setup = prepare(config, random_images(steps // epochs * batch, 256 if size == 224 else size))
    if setup.total_steps != steps:
        sys.exit(f"--steps {steps} is no multiple of its {epochs} epochs; {steps - steps % epochs} is")
    # On a GPU the first look at the probe batch, after 50 steps, chooses kernels of its own: warm up on the whole.
    warm = setup if device.type == "cuda" else shortened(setup, min(WARM_STEPS, steps))
    bare_of(warm)()
    loop(warm, [])
    saves: list[float] = []
    times = in_turn({"bare": bare_of(setup), "loop": partial(loop, setup, saves)}, rounds, device, warm=0)
    images = setup.total_steps * batch
    return {
        "steps": setup.total_steps,
        "bare_images_per_second": spread([images / seconds for seconds in times["bare"]]),
        "loop_images_per_second": spread([images / seconds for seconds in times["loop"]]),
        "loop_over_bare": ratio(times["bare"], times["loop"]),
        "last_checkpoint_seconds": spread(saves),
    }


def random_images(count: int, side: int) -> Dataset:
    """`count` images of noise."""
    pixels = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Dataset("random", ImageSet(pixels), None, *channel_statistics(pixels))


def shortened(setup: Setup, steps: int) -> Setup:
    """The same with so many steps in all."""
    return replace(setup, config=replace(setup.config, epochs=1), steps_per_epoch=steps)


def bare_of(setup: Setup) -> Callable[[], float]:
    """Seconds of a run's steps on one batch and its views, made before."""
    device, count = setup.execution.device, setup.config.batch_size
    images = setup.data.train.images[:count].to(device)
    views = setup.augment(images, torch.Generator().manual_seed(0), None)
    views = [setup.execution.images(view) for view in views]
    batch = Batch(images, torch.arange(count), None, 0.0)
    given = replace(setup, augment=lambda *_: list(views))  # type: ignore[arg-type]

    def run() -> float:
        step = given.step()
        wait(device)
        start = time.perf_counter()
        for number in range(setup.total_steps):
            step(batch, number)
        wait(device)
        return time.perf_counter() - start

    return run


def loop(setup: Setup, saves: list[float]) -> float:
    """Seconds of a whole run up to its last checkpoint, whose own seconds `saves` gets."""
    with tempfile.TemporaryDirectory() as folder:
        running = start(setup, RunFolder(Path(folder)), None, Progress())
        saved: list[float] = []
        checkpoints = running.listeners[-1]
        assert isinstance(checkpoints, Checkpoints)
        save = checkpoints.save

        def timed(step: int) -> None:
            wait(setup.execution.device)
            saved.append(time.perf_counter())
            save(step)

        checkpoints.save = timed  # type: ignore[method-assign]
        wait(setup.execution.device)
        began = time.perf_counter()
        running.run()
        saves.append(time.perf_counter() - saved[-1])
    return saved[-1] - began


if __name__ == "__main__":
    main()
