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
    original, so that crops and resizes are drawn in the original's geometry (boxes are fractions of the
    image).

    Attributes:
        images: uint8 [N, C, H, W], C 1 or 3; may be a memory-mapped file.
        labels: int64 [N], -1 where an image has none; None where the source has none.
        classes: Class names, indexed by label; None without labels.
        aspect: float32 [N], width / height of each original; None where the stored images are the originals.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    aspect: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def labelled(self) -> "ImageSet":
        """The images that have a label, which may be none."""
        if self.labels is None:
            return self.subset(torch.zeros(0, dtype=torch.int64))
        has = self.labels >= 0
        return self if bool(has.all()) else self.subset(has.nonzero().flatten())

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
    """Per-channel mean and standard deviation in [0, 1] of a sample of images, uint8 [N, C, H, W].

    The sample is evenly spaced: up to `most` images, and up to 134 million values (about a second). For these the
    result is exact, because they are counted into 256 bins a channel, a few at a time.
    """
    count, channels = images.shape[:2]
    size = max(1, images[0].numel())
    looked = torch.linspace(0, count - 1, min(count, most, max(1, 2**27 // size)), dtype=torch.float64)
    # A chunk takes up to 16 MB, and eight times as much while it is counted.
    chunk = max(1, 2**24 // size)
    bins = torch.zeros(channels, 256, dtype=torch.float64)
    for index in looked.round_().to(torch.int64).split(chunk):
        some = images[index]
        for channel in range(channels):
            bins[channel] += torch.bincount(some[:, channel].reshape(-1), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    total = bins.sum(dim=1)
    mean = bins @ values / total
    variance = bins @ values.square() / total - mean.square()
    # A constant channel would divide by zero when normalised.
    std = variance.clamp_min(0).sqrt().clamp_min(1e-3)
    return tuple(mean.tolist()), tuple(std.tolist())
