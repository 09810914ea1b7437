"""Settings with nothing left open: what the images, the device and the method's recipe choose."""

from dataclasses import replace
from pathlib import Path

import torch

from tailfin import backbones
from tailfin.data.store import SMALL_SIDE
from tailfin.data.types import ImageSet
from tailfin.errors import UserError
from tailfin.methods.base import Method
from tailfin.run.config import Config, OptimizerName

WITHOUT_BATCH_NORM: tuple[OptimizerName, float, float] = ("adamw", 1.5e-4, 0.1)
"""Optimizer, learning rate at batch 256 and weight decay of backbones such as ViT and ConvNeXt, whatever the method:
MoCo v3's for ViT (arXiv 2104.02057, section 5). The methods' rows are for ResNets; on ViT LARS collapses."""


def resolved(config: Config, method_type: type[Method], images: ImageSet, device: torch.device) -> Config:
    """The settings with what was left open chosen for these images and this device, but precision and memory format.

    Raises:
        UserError: An optimizer that is not the usual one without a learning rate.
    """
    height, width = images.images.shape[-2:]
    own = images.aspect is None and max(height, width) <= SMALL_SIDE
    size = config.image_size or (min(height, width) if own else usual_size(device))
    recipe = method_type.recipe_at(size)
    decay = recipe.decay if config.decay is None else config.decay
    published_end = recipe.decay_end if config.decay is None else decay
    warmup = min(recipe.warmup_epochs, config.epochs / 10)
    backbone = config.backbone or ("resnet18" if device.type == "cuda" else backbones.NARROW)
    usual: tuple[OptimizerName, float, float] = (recipe.optimizer, recipe.lr, recipe.weight_decay)
    if not backbones.normalises_batches(backbone, size):
        usual = WITHOUT_BATCH_NORM
    if config.lr is None and config.optimizer not in (None, usual[0]):
        raise UserError(
            f"--optimizer {config.optimizer} is not the usual one here ({usual[0]}), whose learning rate does not "
            "fit it: give --lr"
        )
    return replace(
        config,
        data=str(Path(config.data).expanduser().resolve()) if Path(config.data).exists() else config.data,
        momentum=recipe.placement if config.momentum == "published" else config.momentum,
        decay=decay,
        decay_end=published_end if config.decay_end is None else config.decay_end,
        backbone=backbone,
        image_size=size,
        local_size=_local_size(size)
        if config.local_views and config.local_size is None
        else config.local_size,
        optimizer=config.optimizer or usual[0],
        lr=usual[1] if config.lr is None else config.lr,
        weight_decay=usual[2] if config.weight_decay is None else config.weight_decay,
        warmup_epochs=warmup if config.warmup_epochs is None else config.warmup_epochs,
        device=str(device),
    )


def _local_size(size: int) -> int:
    """Side of small crops beside views of `size` pixels: 96 beside 224 (arXiv 2006.09882), even."""
    return max(8, round(size * 3 / 14) * 2)


def usual_size(device: torch.device) -> int:
    """Side of the views, in pixels, of images that are not small and of one size."""
    return 224 if device.type == "cuda" else 64
