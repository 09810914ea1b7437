import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from tailfin.views import geometry
from tailfin.views.geometry import gaussian_blur, resize_weights, resized_crop

LEVEL = 1 / 255


def crop_by_torchvision(images, box, size, flip):
    crops = [
        tv.resized_crop(image.float() / 255, *map(int, b), [size, size], antialias=True)
        for image, b in zip(images, box, strict=True)
    ]
    return torch.stack([tv.horizontal_flip(c) if f else c for c, f in zip(crops, flip, strict=True)])


def random_boxes(count, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    h = 1 + (share[:, 0] * height).floor().clamp_max(height - 1)
    w = 1 + (share[:, 1] * width).floor().clamp_max(width - 1)
    top, left = (share[:, 2] * (height - h + 1)).floor(), (share[:, 3] * (width - w + 1)).floor()
    return torch.stack((top, left, h, w), dim=1)


def test_crops_of_cifar_equal_torchvision_s(cifar):
    box = random_boxes(16, 32, 32, seed=1)
    flip = torch.arange(16) % 2 == 0
    ours = resized_crop(cifar, torch.arange(16), box, 32, flip)
    assert (ours - crop_by_torchvision(cifar, box, 32, flip)).abs().max() < 0.01 * LEVEL
    # torchvision's own uint8 path rounds, so it may differ by one level
    rounded = [
        tv.resized_crop(x, *map(int, b), [32, 32], antialias=True) for x, b in zip(cifar, box, strict=True)
    ]
    unflipped = resized_crop(cifar, torch.arange(16), box, 32)
    assert (unflipped - torch.stack(rounded) / 255).abs().max() <= 1.01 * LEVEL


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 256, 224), (256, 192, 64), (50, 61, 160), (64, 64, 8), (9, 200, 33), (1, 1, 4)],
)
def test_crops_up_and_down_equal_torchvision_s(photo, height, width, size):
    images = photo(5, 3, height, width)
    box = random_boxes(5, height, width, seed=size)
    box[0] = torch.tensor([0, 0, height, width])
    flip = torch.tensor([True, False, True, True, False])
    ours = resized_crop(images, torch.arange(5), box, size, flip)
    assert (ours - crop_by_torchvision(images, box, size, flip)).abs().max() < 0.05 * LEVEL


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**16))
def test_any_crop_equals_torchvision_s(size, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 1, height, width), generator=generator, dtype=torch.uint8)
    box, flip = random_boxes(2, height, width, seed), torch.tensor([True, False])
    ours = resized_crop(images, torch.arange(2), box, size, flip)
    assert (ours - crop_by_torchvision(images, box, size, flip)).abs().max() < 0.1 * LEVEL


def test_reading_windows_equals_reading_whole_images(photo, monkeypatch):
    images = photo(6, 3, 90, 120)
    index = torch.tensor([4, 0, 2])
    box = random_boxes(3, 89, 118, seed=3) + torch.tensor([0.3, 0.6, 0.4, 0.9], dtype=torch.float64)
    windows = resized_crop(images, index, box, 48)
    monkeypatch.setattr(geometry, "_WHOLE", 10**9)
    torch.testing.assert_close(windows, resized_crop(images, index, box, 48), atol=1e-5, rtol=0)


def test_tiles_leave_the_products_as_they_are(photo, monkeypatch):
    images = photo(2, 3, 200, 150)
    box = random_boxes(2, 200, 150, seed=9)
    flip = torch.tensor([True, False])
    sigma = torch.tensor([0.2, 2.0])
    tiled = resized_crop(images, torch.arange(2), box, 160, flip)
    blurred = gaussian_blur(tiled, sigma, 17)
    monkeypatch.setattr(geometry, "_TILE", 10**9)
    whole = resized_crop(images, torch.arange(2), box, 160, flip)
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(blurred, gaussian_blur(whole, sigma, 17), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.9), st.floats(0.001, 1), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_weights_are_an_average_of_the_box_s_pixels(start, share, source, size, flip):
    low = start * source
    high = low + share * (source - low)
    weights = resize_weights(
        torch.tensor([low]), torch.tensor([high - low]), source, size, torch.tensor([flip])
    )[0]
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size), atol=1e-5, rtol=0)
    pixel = torch.arange(source)
    outside = (pixel + 1 <= low - 1e-4) | (pixel >= high + 1e-4)
    assert weights[:, outside].sum() == 0


def test_a_ramp_stays_a_ramp_between_pixels():
    # Linear interpolation of x reproduces x wherever both neighbours are in the box
    start, extent, size = 10.25, 8.5, 17
    weights = resize_weights(torch.tensor([start]), torch.tensor([extent]), 40, size)[0]
    position = start + (torch.arange(size) + 0.5) * extent / size
    ramp = weights @ (torch.arange(40) + 0.5)
    torch.testing.assert_close(ramp[3:-3], position[3:-3], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (32, 23), (5, 9), (6, 1), (224, 23), (96, 9)])
def test_blur_equals_torchvision_s_for_each_sigma(photo, size, kernel):
    images = photo(4, 3, size, size).float() / 255
    sigma = torch.tensor([0.1, 0.35, 1.0, 2.0])
    ours = gaussian_blur(images, sigma, kernel)
    for image, s, mine in zip(images, sigma.tolist(), ours, strict=True):
        assert (mine - tv.gaussian_blur(image, [kernel, kernel], [s, s])).abs().max() < 0.01 * LEVEL
