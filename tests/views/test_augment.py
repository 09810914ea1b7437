from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from tailfin.views import Augment, ViewRecipe, byol, denormalise, evaluate_view, mocov2, simclr
from tailfin.views import augment as module
from tailfin.views.parameters import draw

LEVEL = 1 / 255
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def torchvision_view(image, recipe, parameters, i, size):
    """The same view by torchvision's operations, float and one sample at a time."""
    x = image.float() / 255
    x = tv.resized_crop(x, *map(int, parameters.box[i]), [size, size], antialias=True)
    if parameters.flip[i]:
        x = tv.horizontal_flip(x)
    if parameters.jitter[i]:
        for k in parameters.order[i].tolist():
            change = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[k]
            x = change(x, parameters.factors[i, k].item())
    if parameters.greyscale[i]:
        x = tv.rgb_to_grayscale(x, x.shape[0])
    if parameters.blur[i]:
        x = tv.gaussian_blur(x, [recipe.blur_kernel] * 2, [parameters.sigma[i].item()] * 2)
    if parameters.solarise[i]:
        x = tv.solarize(x, recipe.threshold)
    return x


@pytest.mark.parametrize(
    ("channels", "height", "width", "size", "count"),
    [(3, 32, 32, 32, 80), (1, 28, 28, 28, 40), (3, 90, 120, 96, 12), (3, 256, 256, 224, 5)],
)
def test_views_equal_torchvision_s_with_the_same_parameters(photo, channels, height, width, size, count):
    images = photo(count, channels, height, width)
    recipe = replace(simclr(224)[0], blur_kernel=2 * (size // 20) + 1, solarise=0.3)
    mean, std = MEAN[:channels], STD[:channels]
    augment = Augment([recipe], size=size, mean=mean, std=std)
    (view,) = augment(images, seeded(4))
    parameters = draw(recipe, count, height, width, seeded(4))
    pixels = view * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    for i in range(count):
        expected = torchvision_view(images[i], recipe, parameters, i, size)
        # Solarised at one half, where x and 1 - x meet: elsewhere a rounding before it could jump
        assert (pixels[i] - expected).abs().max() < 0.25 * LEVEL


def test_cifar_views_equal_torchvision_s(cifar):
    for recipe in (*byol(32), mocov2(32)[0]):
        (view,) = Augment([recipe], size=32, mean=MEAN, std=STD)(cifar, seeded(7))
        parameters = draw(recipe, 16, 32, 32, seeded(7))
        expected = [torchvision_view(x, recipe, parameters, i, 32) for i, x in enumerate(cifar)]
        expected = tv.normalize(torch.stack(expected), list(MEAN), list(STD))
        assert (view - expected).abs().max() < 0.25 * LEVEL / min(STD)


def test_the_seed_decides_and_each_view_and_sample_differs(cifar):
    augment = Augment(simclr(32), size=32, mean=MEAN, std=STD)
    same = cifar[:1].repeat(24, 1, 1, 1)
    one, two = augment(same, seeded(1))
    again, _ = augment(same, seeded(1))
    assert torch.equal(one, again)
    assert not torch.equal(one, augment(same, seeded(2))[0])
    pairs = torch.cat((one, two)).flatten(1)
    assert torch.pdist(pairs).min() > 0


def test_the_images_content_does_not_move_the_generator(cifar):
    augment = Augment(byol(32), size=32, mean=MEAN, std=STD)
    first, second = seeded(), seeded()
    augment(cifar, first)
    augment(torch.zeros_like(cifar), second)
    assert torch.equal(first.get_state(), second.get_state())


def test_the_size_of_chunks_does_not_matter_and_input_stays(cifar, monkeypatch):
    recipe = replace(byol(224)[1], blur=0.5, blur_kernel=5)
    augment = Augment([recipe], size=32, mean=MEAN, std=STD)
    before = cifar.clone()
    whole = augment(cifar, seeded(3))[0]
    monkeypatch.setattr(module, "_CPU_CHUNK", 5 * 3 * 32 * 32)
    torch.testing.assert_close(augment(cifar, seeded(3))[0], whole, atol=1e-4, rtol=0)
    assert torch.equal(cifar, before)


def test_autocast_around_it_changes_nothing(cifar):
    augment = Augment(simclr(32), size=32, mean=MEAN, std=STD)
    plain = augment(cifar, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(cifar, seeded())
        judged = evaluate_view(cifar, size=24, mean=MEAN, std=STD)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert torch.equal(judged, evaluate_view(cifar, size=24, mean=MEAN, std=STD))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_gives_the_same_views_without_waiting(photo):
    images = photo(40, 3, 80, 80)
    augment = Augment(byol(96), size=96, mean=MEAN, std=STD)
    host = augment(images, seeded(5))
    on_device = images.cuda()
    augment(on_device, seeded(5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        device = augment(on_device, seeded(5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(host, device, strict=True):
        torch.testing.assert_close(b.cpu(), a, atol=LEVEL / min(STD), rtol=0)


def test_squashed_images_give_the_views_of_their_originals(photo):
    # A smooth original of 3 : 1, and the same squashed to a square; small crops of both, from the same numbers
    original = photo(1, 3, 24, 24)
    original = tv.resize(original, [120, 360])
    squashed = tv.resize(original, [120, 120])
    recipe = ViewRecipe(scale=(0.05, 0.1))
    augment = Augment([recipe], size=32, mean=MEAN, std=STD)
    (a,) = augment(original.repeat(8, 1, 1, 1), seeded(2))
    (b,) = augment(squashed.repeat(8, 1, 1, 1), seeded(2), aspect=torch.full((8,), 3.0))
    # Boxes of whole pixels against fractions: a shift of a pixel at most
    difference = (denormalise(a, MEAN, STD).float() - denormalise(b, MEAN, STD).float()).abs()
    unrelated = (denormalise(a, MEAN, STD).float() - denormalise(b.roll(1, 0), MEAN, STD).float()).abs()
    assert difference.mean() < 0.1 * unrelated.mean()


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (120, 90, 64), (65, 100, 80)])
def test_the_judging_view_equals_torchvision_s(photo, height, width, size):
    images = photo(70, 3, height, width)
    view = evaluate_view(images, size=size, mean=MEAN, std=STD)
    expected = tv.center_crop(images.float() / 255, [min(height, width)] * 2)
    expected = tv.normalize(tv.resize(expected, [size, size], antialias=True), list(MEAN), list(STD))
    assert (view - expected).abs().max() < 0.1 * LEVEL / min(STD)


def test_the_judging_view_of_a_squashed_image_is_the_original_s_centre(photo):
    images = photo(3, 1, 60, 40)
    view = evaluate_view(images, size=20, mean=[0.0], std=[1.0], aspect=torch.tensor([2.0, 0.5, 1.0]))
    wide = tv.resized_crop(images[0].float() / 255, 0, 10, 60, 20, [20, 20])
    tall = tv.resized_crop(images[1].float() / 255, 15, 0, 30, 40, [20, 20])
    square = tv.resize(images[2].float() / 255, [20, 20])
    assert (view - torch.stack((wide, tall, square))).abs().max() < 0.1 * LEVEL


def test_denormalising_returns_the_pixels(cifar):
    view = evaluate_view(cifar, size=32, mean=MEAN, std=STD)
    assert torch.equal(denormalise(view, MEAN, STD), cifar)
    outside = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1)
    assert denormalise(outside, [0.0], [1.0]).flatten().tolist() == [0, 255]


def test_wrong_arguments_are_refused(cifar):
    with pytest.raises(ValueError, match="size is 0"):
        Augment(simclr(32), size=0, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="3 and 1 values"):
        Augment(simclr(32), size=8, mean=MEAN, std=[0.2])
    with pytest.raises(ValueError, match="blur_kernel is 23"):
        Augment(simclr(224), size=8, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="std is"):
        evaluate_view(cifar, size=8, mean=MEAN, std=(0.1, 0.0, 0.1))
    augment = Augment(simclr(32), size=32, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        augment(cifar.float(), seeded())
    with pytest.raises(ValueError, match="aspect has shape"):
        augment(cifar, seeded(), aspect=torch.ones(3))
    assert [v.shape for v in augment(cifar[:0], seeded())] == [(0, 3, 32, 32)] * 2
