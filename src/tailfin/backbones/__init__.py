"""Backbones by name, split into parts, and the encoder files of runs."""

from tailfin.backbones.file import encoder_metadata, load_encoder
from tailfin.backbones.named import FAMILIES, create, create_parts, feature_width, normalises_batches
from tailfin.backbones.narrow import NARROW, narrow_resnet, small_images

__all__ = [
    "FAMILIES",
    "NARROW",
    "create",
    "create_parts",
    "encoder_metadata",
    "feature_width",
    "load_encoder",
    "narrow_resnet",
    "normalises_batches",
    "small_images",
]
