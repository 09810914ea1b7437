"""Whole training, images a second: ours against lightly's own recipe, the same backbone, images and batch, in turn.

python benchmarks/peers.py                                  # ResNet-18, SimCLR and BYOL; some minutes on 2 cores
python benchmarks/peers.py --device cuda --batch-size 512 --steps 40 --workers 16

lightly (pip install lightly) runs as in its CIFAR-10 benchmark: torchvision transforms a sample in a DataLoader's
workers, fp32; and the same with bf16 and channels_last turned on by hand. stable-pretraining (pip install
stable-pretraining), where it is installed, runs SimCLR as in the complete example of its README, in fp32 and in the
bf16 that its Trainer offers.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import ratio, save, wait
from loop_share import Silent
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tailfin.training.config import Config
from tailfin.training.device import find_device, keep_freed_memory
from tailfin.training.folder import RunFolder
from tailfin.training.loop import Loop
from tailfin.training.setup import load_data, prepare

PLACEMENTS = {
    "simclr": ("none", "projector", "all"),
    "byol": ("projector", "all"),
    "mocov2plus": ("projector", "all"),
}


@dataclass(frozen=True)
class Asked:
    """What every arm shares."""

    images: Tensor
    data: str
    batch: int
    steps: int
    workers: int
    device: torch.device


def main() -> None:
    """Measure and print one row a method and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="shapes", help="what the images are: cifar10, a folder, shapes")
    parser.add_argument("--methods", nargs="*", default=["simclr", "byol"], choices=list(PLACEMENTS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = find_device(given.device)
    keep_freed_memory()
    count = (given.steps + 2) * given.batch_size
    images = load_data(Config(data=given.data, limit=count, image_size=32), device).train.images
    asked = Asked(images, given.data, given.batch_size, given.steps, given.workers, device)
    figures: dict[str, Any] = {}
    for method in given.methods:
        arms = arms_of(method, asked)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(given.rounds):
            for name, run in arms.items():
                rates[name].append(given.steps * given.batch_size / run())
        for name, arm in arms.items():
            if isinstance(arm, Ours):
                print(f"{name} chose {arm.config.precision}, {arm.config.memory_format}")
        base = rates["lightly, its recipe"]
        for name, found in rates.items():
            over = ratio(found, base)
            figures[f"{method}, {name}"] = {"images_per_second": median(found), "over_lightly": over}
            print(
                f"{method:<12}{name:<34}{median(found):>9,.1f} images/s, {over['median']:.2f} "
                f"({over['low']:.2f} to {over['high']:.2f}) of lightly's recipe",
                flush=True,
            )
    save("peers", device, figures, given.out)


def arms_of(method: str, asked: Asked) -> dict[str, Callable[[], float]]:
    """Seconds of `steps` steps after the first, by arm."""
    arms: dict[str, Callable[[], float]] = {
        "lightly, its recipe": lambda: lightly(method, asked, fast=False),
        "lightly, bf16 and channels_last": lambda: lightly(method, asked, fast=True),
    }
    if method == "simclr" and find_spec("stable_pretraining"):
        for said, precision in (("its recipe", "32-true"), ("bf16-mixed", "bf16-mixed")):
            arms[f"stable-pretraining, {said}"] = partial(stable_pretraining, asked, precision)
    for placement in PLACEMENTS[method]:
        arms[f"ours, {placement}"] = Ours(method, placement, asked)
    return arms


class Ours:
    """The whole loop, monitors and logs included, at its own choices, which are made once."""

    def __init__(self, method: str, placement: str, asked: Asked) -> None:
        self.asked = asked
        self.config = Config(
            data=asked.data,
            method=method,
            momentum=placement,
            backbone="resnet18",
            image_size=32,
            limit=len(asked.images),
            batch_size=asked.batch,
            epochs=1,
            device=str(asked.device),
            knn_evaluations=0,
        )
        self.data = load_data(self.config, asked.device)

    def __call__(self) -> float:
        """Seconds of `steps` steps after the first; the run's end, which saves it, comes after the clock."""
        setup = prepare(self.config, self.data)
        chosen = (setup.config.precision, setup.config.memory_format)
        self.config = replace(self.config, precision=chosen[0], memory_format=chosen[1])
        marks = []
        with tempfile.TemporaryDirectory() as folder:
            loop = Loop(setup, RunFolder(Path(folder)), None)

            @contextmanager
            def mark(phase: str) -> Iterator[None]:
                if phase == "views":
                    wait(self.asked.device)
                    marks.append(time.perf_counter())
                yield

            loop.train_step.phase = mark
            loop.run(Silent())
        return marks[1 + self.asked.steps] - marks[1]


class Pictures(Dataset[Any]):
    """uint8 images as PIL pictures, as a CIFAR-10 dataset gives them."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images.permute(0, 2, 3, 1).contiguous().numpy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[place]))


def lightly(method: str, asked: Asked, *, fast: bool) -> float:
    """lightly's CIFAR-10 benchmark, step for step; `fast` adds bf16 and channels_last."""
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    loader = DataLoader(
        Pictures(asked.images, transform),
        batch_size=asked.batch,
        shuffle=True,
        drop_last=True,
        num_workers=asked.workers,
        pin_memory=asked.device.type == "cuda",
    )
    model = LightlyModel(method).to(asked.device)
    if fast:
        model = model.to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=5e-4)
    autocast = torch.autocast(asked.device.type, torch.bfloat16, enabled=fast)

    def batches() -> Iterator[list[Tensor]]:
        for views in loader:
            yield [view.to(asked.device, non_blocking=True) for view in views]

    start = 0.0
    for number, views in enumerate(batches()):
        if fast:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        with autocast:
            loss = model(*views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(asked.device)
        if number == 0:
            start = time.perf_counter()
        if number == asked.steps:
            break
    return time.perf_counter() - start


def stable_pretraining(asked: Asked, precision: str) -> float:
    """The arm of stable_pretraining_arm.py."""
    from stable_pretraining_arm import simclr

    pictures = Pictures(asked.images, lambda image: image)
    return simclr(pictures, asked.batch, asked.steps, asked.workers, asked.device, precision)


class LightlyModel(nn.Module):
    """The three models of lightly's CIFAR-10 benchmark, from lightly's own pieces."""

    def __init__(self, method: str) -> None:
        super().__init__()
        import copy

        from lightly.loss import NegativeCosineSimilarity, NTXentLoss
        from lightly.models import ResNetGenerator
        from lightly.models.modules import heads
        from lightly.models.utils import deactivate_requires_grad

        resnet = ResNetGenerator("resnet-18")
        self.method = method
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.predictor: nn.Module = nn.Identity()
        if method == "simclr":
            self.head: nn.Module = heads.SimCLRProjectionHead(512, 512, 128)
            self.criterion: nn.Module = NTXentLoss()
            return
        if method == "byol":
            self.head = heads.BYOLProjectionHead(512, 1024, 256)
            self.predictor = heads.BYOLPredictionHead(256, 1024, 256)
            self.criterion = NegativeCosineSimilarity()
        else:
            self.head = heads.MoCoProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views, the momentum update before it as in lightly's training step."""
        if self.method == "simclr":
            return self.criterion(self.online(first), self.online(second))  # type: ignore[no-any-return]
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.head, self.head_momentum, m=0.99)
        ways = ((first, second), (second, first))
        losses = [self.criterion(self.online(one), self.target(other)) for one, other in ways]
        return torch.stack(losses).mean()

    def online(self, view: Tensor) -> Tensor:
        """Backbone, head and predictor."""
        return self.predictor(self.head(self.backbone(view).flatten(start_dim=1)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """The momentum backbone and head."""
        return self.head_momentum(self.backbone_momentum(view).flatten(start_dim=1))  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
