"""A tiny data set and settings that train in a second."""

from collections.abc import Callable

import pytest
import torch

from tailfin.data.types import Dataset, ImageSet
from tailfin.training.config import Config


def tiny_images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 160, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, 3:9, 3:9] += 90
    return ImageSet(images, labels, ("plain", "square"))


@pytest.fixture
def data() -> Dataset:
    return Dataset("tiny", tiny_images(40, 0), tiny_images(16, 1), (0.4,) * 3, (0.2,) * 3)


@pytest.fixture
def settings() -> Callable[..., Config]:
    """Settings of a tiny run, some of them replaced."""

    def make(**changes: object) -> Config:
        values: dict[str, object] = {
            "backbone": "resnet10w2",
            "batch_size": 8,
            "epochs": 3,
            "optimizer": "sgd",
            "lr": 1.0,
            "precision": "fp32",
            "memory_format": "contiguous",
            "device": "cpu",
            "momentum": "projector",
            "method_options": {"hidden": 16.0, "out": 8.0},
        }
        return Config(**{**values, **changes})  # type: ignore[arg-type]

    return make
