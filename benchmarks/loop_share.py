"""The bare step (views already made, on the device) against the whole training loop, in turn.

python benchmarks/loop_share.py                                            # narrow ResNet and ResNet-18 at 32 px
python benchmarks/loop_share.py --device cuda --batch-size 512 --steps 50  # adds ResNet-50 at 224 px
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import ratio, save, wait

from tailfin.training.config import Config
from tailfin.training.device import find_device, keep_freed_memory
from tailfin.training.folder import RunFolder
from tailfin.training.loop import Loop
from tailfin.training.setup import Setup, load_data, prepare
from tailfin.training.step import Step


class Silent:
    """Tells nobody."""

    def step(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    """Measure and print one row a backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbones", nargs="*", help="of resnet10w16, resnet18, resnet50")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    chosen = asked.backbones or (
        ["resnet18", "resnet50"] if device.type == "cuda" else ["resnet10w16", "resnet18"]
    )
    figures = {}
    for backbone in chosen:
        size = 224 if backbone == "resnet50" else 32
        batch = asked.batch_size // (4 if size == 224 else 1)
        figures[backbone] = row = measure(backbone, size, batch, asked.steps, asked.rounds, device)
        share = row["loop_over_bare"]
        print(
            f"{backbone} at {size} px, batch {batch}: bare step {row['bare']:,.0f} images/s, whole loop "
            f"{share['median']:.3f} ({share['low']:.3f} to {share['high']:.3f}) of it, n = {share['n']}",
            flush=True,
        )
    save("loop-share", device, figures, asked.out)


def measure(
    backbone: str, size: int, batch: int, steps: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Images a second of the bare step, and the loop's share of it, in rounds taken in turn."""
    config = Config(
        backbone=backbone,
        batch_size=batch,
        limit=steps * batch,
        image_size=size,
        epochs=1,
        momentum="projector",
        device=str(device),
        precision="bf16" if device.type == "cuda" else "fp32",
        memory_format="channels_last",
        knn_evaluations=0,
    )
    data = load_data(config, device)
    setup = prepare(config, data)
    views = made_views(setup)
    step = Step(replace(setup, augment=lambda *_: list(views)))  # type: ignore[arg-type]
    bare, loop = [], []
    for turn in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        for number in range(steps):
            step(first_batch(setup), number)
        wait(device)
        if turn:
            bare.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            running = Loop(setup, RunFolder(Path(folder)), None)
            wait(device)
            start = time.perf_counter()
            running.run(Silent())
            wait(device)
            if turn:
                loop.append(time.perf_counter() - start)
    return {"bare": steps * batch / median(bare), "loop_over_bare": ratio(bare, loop)}


def made_views(setup: Setup) -> list[torch.Tensor]:
    """The views of one batch, on the device, in the memory format."""
    images = first_batch(setup).images
    views = setup.augment(images, torch.Generator().manual_seed(0), None)
    return [setup.execution.images(view) for view in views]


def first_batch(setup: Setup) -> Any:
    """The first images, on the device."""
    from tailfin.training.feed import Batch

    count = setup.config.batch_size
    return Batch(setup.data.train.images[:count].to(setup.execution.device), torch.arange(count), None, 0.0)


if __name__ == "__main__":
    main()
