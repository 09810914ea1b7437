"""Extraction and the scores built on it."""

import pytest
import torch
from torch import Tensor

from tailfin.data.types import ImageSet
from tailfin.judging.features import extract
from tailfin.judging.knn import knn_accuracy
from tailfin.judging.linear import linear_probe
from tailfin.judging.scores import Scores, raw_pixels, score

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(n: int, side: int = 8, *, aspect: Tensor | None = None) -> ImageSet:
    pixels = torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.arange(n) % 3, ("a", "b", "c"), aspect)


def normalised(split: ImageSet) -> Tensor:
    channels = lambda values: torch.tensor(values).view(1, 3, 1, 1)  # noqa: E731
    return (split.images.float() / 255 - channels(MEAN)) / channels(STD)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_extract_keeps_order_and_every_output(batch_size: int) -> None:
    split = images(10)
    flat, means = extract(
        lambda x: (x.flatten(1), x.mean(dim=(2, 3))),
        split,
        size=8,
        mean=MEAN,
        std=STD,
        device="cpu",
        batch_size=batch_size,
    )
    torch.testing.assert_close(flat, normalised(split).flatten(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(means, normalised(split).mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


def test_extract_returns_float32_without_gradients() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(192, 4)
    seen: list[torch.dtype] = []

    def encode(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not seen):
            y: Tensor = layer(x.flatten(1))
        seen.append(y.dtype)
        return y

    options = {"size": 8, "mean": MEAN, "std": STD, "device": "cpu"}
    (half,) = extract(encode, images(6), **options)  # type: ignore[arg-type]
    (full,) = extract(encode, images(6), **options)  # type: ignore[arg-type]
    assert seen == [torch.bfloat16, torch.float32]
    assert half.dtype is full.dtype is torch.float32
    assert not half.requires_grad
    assert not full.requires_grad
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_each_image_is_cropped_by_its_own_aspect() -> None:
    wide = images(4, 16, aspect=torch.tensor([1.0, 2.0, 1.0, 2.0]))
    one = extract(lambda x: x, wide, size=8, mean=MEAN, std=STD, device="cpu", batch_size=3)[0]
    square = extract(lambda x: x, images(4, 16), size=8, mean=MEAN, std=STD, device="cpu")[0]
    same = (one - square).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert same.tolist() == [True, False, True, False]


def test_extracting_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        extract(lambda x: x, images(0), size=8, mean=MEAN, std=STD, device="cpu")


ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def test_raw_pixels_are_the_image_up_to_32_and_area_averages_above() -> None:
    small = images(5)
    torch.testing.assert_close(raw_pixels(small, ZERO, ONE), small.images.float().flatten(1) / 255)
    block = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    doubled = ImageSet(block.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    shrunk = raw_pixels(doubled, ZERO, ONE)
    assert shrunk.shape == (2, 3072)
    torch.testing.assert_close(
        shrunk.mean(dim=1), block.float().flatten(1).mean(dim=1) / 255, atol=2e-3, rtol=0
    )
    assert raw_pixels(ImageSet(torch.zeros(1, 1, 48, 20, dtype=torch.uint8)), ZERO[:1], ONE[:1]).shape == (
        1,
        32 * 20,
    )
    normal = raw_pixels(small, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)).unflatten(1, small.images.shape[1:])
    expected = (small.images[:, 2].float() / 255 - 0.6) / 0.1
    torch.testing.assert_close(normal[:, 2], expected)


def test_scores_are_those_of_the_two_judges() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = torch.randn(120, 6, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, 6)
    sets = x[:90], y[:90], x[90:], y[90:]
    assert score(*sets, seed=4) == Scores(knn_accuracy(*sets), linear_probe(*sets, seed=4).accuracy)
    broken = x[:90].clone()
    broken[5, 2] = torch.inf
    assert score(broken, *sets[1:]) == Scores(None, None)
