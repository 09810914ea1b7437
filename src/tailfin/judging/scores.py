"""One judgement for all: the same scores for an encoder, its momentum twin, an untrained one and raw pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.data.types import ImageSet
from tailfin.judging.knn import knn_classify
from tailfin.judging.linear import linear_probe


@dataclass(frozen=True)
class Scores:
    """Test accuracies in percent; None where there was nothing finite to judge (a run that diverged).

    Attributes:
        knn: Weighted 20-nearest-neighbour vote.
        linear: Linear probe.
    """

    knn: float | None
    linear: float | None

    @classmethod
    def of(cls, answers: "Answers | None") -> "Scores":
        """The accuracies of what was answered."""
        if answers is None:
            return cls(None, None)
        return cls(*(100 * float(right.double().mean()) for right in (answers.knn, answers.linear)))


@dataclass(frozen=True)
class Answers:
    """Which of M test images were classified rightly, by which features are compared on the same images.

    Attributes:
        knn, linear: bool [M] on the CPU, by judge.
    """

    knn: Tensor
    linear: Tensor


def score(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Scores:
    """Both accuracies of one set of features; the arguments are those of `answer`."""
    return Scores.of(answer(train_x, train_y, test_x, test_y, seed, device=device))


def answer(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Answers | None:
    """What both judges make of one set of features; None where some are not finite.

    Args:
        train_x, train_y: [N, D] and int64 [N].
        test_x, test_y: [M, D] and int64 [M]; looked at once by each judge.
        seed: Seed of the probe's validation split.
        device: Where to compute.
    """
    if not (train_x.isfinite().all() and test_x.isfinite().all()):
        return None
    train_x, train_y, test_x, test_y = (each.to(device) for each in (train_x, train_y, test_x, test_y))
    found = (
        knn_classify(train_x, train_y, test_x),
        linear_probe(train_x, train_y, test_x, test_y, seed=seed).predicted,
    )
    return Answers(*((labels == test_y).cpu() for labels in found))


def raw_pixels(images: ImageSet, mean: Sequence[float], std: Sequence[float], most: int = 32) -> Tensor:
    """The images themselves as features, normalised as an encoder sees them: what any encoder has to beat.

    With the mean left in, all pixels are positive and cosines say less: with 5,000 CIFAR-10 images kNN was 32.2 %,
    normalised 37.0 %.

    Args:
        images: uint8 [N, C, H, W].
        mean, std: Per-channel statistics of the training images, in [0, 1].
        most: Pixels a side; larger sides are scaled down (antialiased), smaller ones stay.

    Returns:
        float32 [N, C * min(H, most) * min(W, most)].
    """
    channels, height, width = images.images.shape[1:]
    side = (min(height, most), min(width, most))
    pixels = torch.empty(len(images), channels * side[0] * side[1])
    shift, scale = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
    for start in range(0, len(images), 512):
        batch = images.images[start : start + 512].to(torch.float32) / 255
        if side != (height, width):
            batch = F.interpolate(batch, side, mode="bilinear", antialias=True, align_corners=False)
        pixels[start : start + 512] = ((batch - shift) / scale).flatten(1)
    return pixels
