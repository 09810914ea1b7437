"""Data sources: what the user names after `--data`, decoded once to uint8 images with labels and splits."""

from tailfin.data.load import load
from tailfin.data.split import validation_split
from tailfin.data.types import Dataset, ImageSet, Skipped, channel_statistics

__all__ = ["Dataset", "ImageSet", "Skipped", "channel_statistics", "load", "validation_split"]
