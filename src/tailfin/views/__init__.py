"""Batched augmentation on the device: uint8 in, normalised float out, own parameters per sample."""

from tailfin.views.augment import Augment, denormalise, evaluate_view
from tailfin.views.recipes import ViewRecipe, byol, mocov2, simclr

__all__ = ["Augment", "ViewRecipe", "byol", "denormalise", "evaluate_view", "mocov2", "simclr"]
