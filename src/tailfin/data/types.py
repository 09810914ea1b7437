"""The plain types that every data source returns."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read: its name (a path, or `file.parquet[row]`) and the reason, in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Images of one split, decoded and of one stored size.

    Originals of differing sizes are stored squashed to one canvas; `aspect` then keeps width / height of each
    original, so that crops and resizes are drawn in the original's geometry (boxes are fractions of the image).

    Attributes:
        images: uint8 [N, C, H, W], C 1 or 3; may be a memory-mapped file.
        labels: int64 [N], or None where the source has none.
        classes: Class names, indexed by label; None without labels.
        aspect: float32 [N], width / height of each original; None where the stored images are the originals.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    aspect: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def subset(self, index: Tensor) -> "ImageSet":
        """The images at `index` (int64 [M]), with their labels and aspects."""
        pick = lambda values: None if values is None else values[index]  # noqa: E731
        return replace(self, images=self.images[index], labels=pick(self.labels), aspect=pick(self.aspect))


@dataclass(frozen=True)
class Dataset:
    """A training split, a test split that is touched once, and what was lost on the way.

    Attributes:
        name: Short name for reports.
        train: Training images.
        test: Held-out images; taken from the training images by seed where the source has no test split, and
            None where there are no labels to judge with.
        skipped: Images that could not be read.
        mean, std: Per-channel statistics of the training images, in [0, 1].
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[Skipped, ...] = field(default=())


def channel_statistics(images: Tensor, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation in [0, 1] of up to `most` images, uint8 [N, C, H, W], evenly spaced."""
    step = max(1, images.shape[0] // most)
    sample = images[::step][:most].to(torch.float32).div_(255)
    mean, std = sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3))
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())
