"""solo-learn's own SimCLR recipe for CIFAR-10, timed: an arm of peers.py."""

from collections.abc import Callable
from typing import Any

import torch
from lightning_trainer import Labelled, trainer
from omegaconf import OmegaConf
from solo.args.pretrain import parse_cfg
from solo.data.pretrain_dataloader import (
    FullTransformPipeline,
    NCropAugmentation,
    build_transform_pipeline,
    dataset_with_index,
    prepare_dataloader,
)
from solo.methods import METHODS
from solo.utils.misc import make_contiguous
from torch.utils.data import Dataset


def recipe(batch: int, workers: int) -> Any:
    """What scripts/pretrain/cifar/simclr.yaml and its symmetric augmentations ask for, with another batch size."""
    views = {
        "rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
        "color_jitter": {"prob": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5},
        "solarization": {"prob": 0.0},
        "equalization": {"prob": 0.0},
        "horizontal_flip": {"prob": 0.5},
        "crop_size": 32,
        "num_crops": 2,
    }
    asked = {
        "name": "simclr-cifar10",
        "method": "simclr",
        "backbone": {"name": "resnet18"},
        "method_kwargs": {"proj_hidden_dim": 2048, "proj_output_dim": 256, "temperature": 0.2},
        "data": {"dataset": "cifar10", "train_path": "unused", "num_workers": workers},
        "augmentations": [views],
        "optimizer": {
            "name": "lars",
            "batch_size": batch,
            "lr": 0.4,
            "classifier_lr": 0.1,
            "weight_decay": 1e-4,
            "kwargs": {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True},
        },
        "scheduler": {"name": "warmup_cosine"},
        "checkpoint": {"enabled": False},
        "auto_resume": {"enabled": False},
        "max_epochs": 1000,
        "devices": [0],
    }
    return parse_cfg(OmegaConf.create(asked))


def train(
    pictures: Dataset[Any],
    clock: Callable[[], None],
    *,
    batch: int,
    steps: int,
    workers: int,
    device: torch.device,
) -> None:
    """Steps of solo-learn 1.0.6 as its main_pretrain.py takes them: 16-bit mixed precision and channels_last.

    On a CPU Lightning takes bf16 in place of fp16. To its favour its logger, checkpoints, validation and DDP are left
    out; the linear classifier that its training step trains beside the method is not. The learning rate runs through
    its whole schedule within the steps, which takes no other time.

    Args:
        pictures: PIL images by index, enough for all steps.
        clock: Called at the start of each step.
        batch: Images a step.
        steps: In all.
        workers: Of the DataLoader.
        device: Where it trains.
    """
    asked = recipe(batch, workers)
    [augmentation] = asked.augmentations
    views = FullTransformPipeline(
        [NCropAugmentation(build_transform_pipeline("cifar10", augmentation), augmentation.num_crops)]
    )
    loader = prepare_dataloader(dataset_with_index(Labelled)(pictures, views), batch, workers)
    model = METHODS["simclr"](asked)
    make_contiguous(model)
    model = model.to(memory_format=torch.channels_last)

    running = trainer(clock, steps, "16-mixed", device, asked.max_epochs)
    # stable-pretraining, where it is installed, gives its own callbacks to every Trainer
    own = [each for each in running.callbacks if not type(each).__module__.startswith("stable_pretraining.")]
    running.callbacks = own
    running.fit(model, loader)
