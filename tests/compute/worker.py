"""Trains tiny runs as one of several processes: `python worker.py OUT [NAME ...]`, started as torchrun would."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tailfin import methods
from tailfin.compute.several import joined
from tailfin.compute.world import World
from tailfin.data.types import Dataset, ImageSet
from tailfin.run.config import Config
from tailfin.training.setup import prepare

STEPS = 20
COMMON: dict[str, Any] = {
    "backbone": "resnet10w2",
    "batch_size": 16,
    "epochs": 5,
    "optimizer": "sgd",
    "lr": 5e-4,
    "precision": "fp32",
    "memory_format": "contiguous",
    "device": "cpu",
    "method_options": {"hidden": 16.0, "out": 8.0},
    "monitors": "gradient",
}
STEEP = {"vicreg": 5e-5, "vibcreg": 5e-5, "all4one": 5e-5}
"""Learning rates of losses that are steep at the start. In 20 steps at rates that learn, rounding of 1e-7 grows:
at .02 to .07 (VIbCReg), at .005 to 2e-3 (MoCo v3)."""
VARIANTS: dict[str, dict[str, Any]] = {
    "accumulated": {"method": "byol", "momentum": "all", "accumulate": 2},
    "multi-crop": {"method": "dino", "momentum": "all", "local_views": 2},
    "gap": {"method": "byol", "momentum": "projector", "gap": 0.1},
    "clipped": {"method": "simclr", "momentum": "layer3:", "clip_grad": 0.1},
    "averaged statistics": {"method": "mocov2plus", "momentum": "layer4:", "buffers": "ema"},
    "copied statistics": {"method": "mocov2plus", "momentum": "layer4:", "buffers": "copy"},
    "stem alone": {"method": "simclr", "momentum": "stem,layer2"},
    "squashed": {"method": "simclr", "momentum": "projector"},
    "local": {"method": "simclr", "momentum": "projector", "batch_norm": "local"},
}


def cases() -> dict[str, dict[str, Any]]:
    """Settings of all runs by name."""
    found = {}
    for name in methods.names():
        for momentum in ("published", "projector"):
            found[f"{name} {momentum}"] = {
                "method": name,
                "momentum": momentum,
                "lr": STEEP.get(name, COMMON["lr"]),
            }
    return found | VARIANTS


def images(name: str) -> Dataset:
    """64 images of two classes; "squashed" ones have sides of their own."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = torch.randint(0, 160, (64, 3, 12, 12), generator=draws, dtype=torch.uint8)
    pixels[labels == 1, :, 3:9, 3:9] += 90
    aspect = 0.5 + torch.rand(64, generator=draws) if name == "squashed" else None
    train = ImageSet(pixels, labels, ("plain", "square"), aspect)
    return Dataset("tiny", train, train, (0.4,) * 3, (0.2,) * 3)


def train(name: str, world: World) -> dict[str, Tensor]:
    """The weights after 20 steps, the losses, and the gradient's size at each part."""
    config = Config(**{**COMMON, **cases()[name]})
    setup = prepare(config, images(name), world=world)
    step, heard, losses = setup.step(), setup.gradient_monitor(), []
    for number, batch in enumerate(setup.feed().batches(0, STEPS)):
        losses.append(step(batch, number))
        heard.step(1.0 / config.accumulate, world.mean)
    found = {f"encoder.{key}": value for key, value in setup.encoder.state_dict().items()}
    found |= {f"method.{key}": value for key, value in setup.method.state_dict().items()}
    found |= {"losses": torch.stack(losses), "gradient": heard.flush()}
    heard.remove()
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def main(out: Path, *names: str) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as world:
        for name in names or cases():
            found = train(name, world)
            if world.leads:
                save_file(found, out / f"{name}.part")
                os.replace(out / f"{name}.part", out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
