"""stable-pretraining's own SimCLR recipe for CIFAR-10, timed: an arm of peers.py."""

from collections.abc import Callable
from typing import Any

import stable_pretraining as spt
import torch
from lightning_trainer import Labelled, trainer
from stable_pretraining import forward
from stable_pretraining.data import transforms
from torch import nn
from torch.utils.data import DataLoader, Dataset


def train(
    pictures: Dataset[Any],
    clock: Callable[[], None],
    *,
    batch: int,
    steps: int,
    workers: int,
    device: torch.device,
    precision: str,
) -> None:
    """Steps of the complete example in the README of stable-pretraining 0.1.8.

    Its online probes are left out, which is to its favour, and so are checkpoints and loggers of Lightning. The
    callbacks that it gives to every Trainer stay.

    Args:
        pictures: PIL images by index, enough for all steps.
        clock: Called at the start of each step.
        batch: Images a step.
        steps: In all.
        workers: Of the DataLoader.
        device: Where it trains.
        precision: As Lightning's Trainer takes it.
    """
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}
    views = [
        transforms.Compose(
            transforms.RGB(),
            transforms.RandomResizedCrop((32, 32), scale=(smallest, 1.0)),
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.ColorJitter(**jitter),
            transforms.RandomGrayscale(p=0.2),
            *more,
            transforms.ToImage(**spt.data.static.CIFAR10),
        )
        for smallest, more in ((0.2, []), (0.08, [transforms.RandomSolarize(threshold=0.5, p=0.2)]))
    ]
    images = spt.data.FromTorchDataset(
        Labelled(pictures), names=["image", "label"], transform=transforms.MultiViewTransform(views)
    )
    loader = DataLoader(images, batch_size=batch, num_workers=workers, drop_last=True, shuffle=True)
    backbone = spt.backbone.from_torchvision("resnet18", low_resolution=True)
    backbone.fc = nn.Identity()
    projector = nn.Sequential(
        nn.Linear(512, 2048),
        nn.BatchNorm1d(2048),
        nn.ReLU(inplace=True),
        nn.Linear(2048, 2048),
        nn.BatchNorm1d(2048),
        nn.ReLU(inplace=True),
        nn.Linear(2048, 256),
    )
    module = spt.Module(
        backbone=backbone,
        projector=projector,
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={
            "optimizer": {"type": "LARS", "lr": 5, "weight_decay": 1e-6},
            "scheduler": {"type": "LinearWarmupCosineAnnealing"},
            "interval": "epoch",
        },
    )

    trainer(clock, steps, precision, device).fit(module, train_dataloaders=loader)
