from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from tailfin.views.colour import Jitter, greyscale, hue_place, shift_hue_, solarise
from tailfin.views.parameters import draw
from tailfin.views.recipes import ViewRecipe

LEVEL = 1 / 255
OPERATIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
HARD = ViewRecipe(jitter=0.8, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)


def jitter(images, parameters):
    """Ours, in the order of `images`."""
    place, order = hue_place(parameters).sort(stable=True)
    ours = Jitter.of(parameters.at(order), place, images.shape[1], images.device)(images[order])
    return ours[order.argsort()]


def jitter_by_torchvision(images, parameters):
    out = []
    for i, image in enumerate(images):
        if parameters.jitter[i]:
            for k in parameters.order[i].tolist():
                image = OPERATIONS[k](image, parameters.factors[i, k].item())
        out.append(image)
    return torch.stack(out)


def test_jitter_of_cifar_equals_torchvision_s(cifar):
    images = cifar.repeat(12, 1, 1, 1).float() / 255
    parameters = draw(HARD, len(images), 32, 32, torch.Generator().manual_seed(0))
    assert len(parameters.order.unique(dim=0)) == 24
    difference = jitter(images, parameters) - jitter_by_torchvision(images, parameters)
    assert difference.abs().max() < 0.1 * LEVEL


@pytest.mark.parametrize("operation", range(4))
@pytest.mark.parametrize("channels", [1, 3])
def test_each_operation_alone_equals_torchvision_s(photo, operation, channels):
    images = photo(6, channels, 100, 70).float() / 255
    neutral = draw(ViewRecipe(jitter=1.0), 6, 100, 70, torch.Generator().manual_seed(operation))
    values = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.33, 0.5]) if operation == 3 else torch.linspace(0, 1.9, 6)
    neutral.factors[:, operation] = values.double()
    ours = jitter(images, neutral)
    for image, value, mine in zip(images, values.tolist(), ours, strict=True):
        assert (mine - OPERATIONS[operation](image, value)).abs().max() < 0.02 * LEVEL


def test_one_channel_knows_neither_saturation_nor_hue(photo):
    images = photo(4, 1, 20, 20).float() / 255
    recipe = ViewRecipe(jitter=1.0, saturation=0.9, hue=0.5)
    parameters = draw(recipe, 4, 20, 20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(jitter(images, parameters), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(greyscale(images), images, atol=0, rtol=0)


def test_samples_without_jitter_stay_bit_for_bit(cifar):
    images = cifar.float() / 255
    parameters = draw(HARD, 16, 32, 32, torch.Generator().manual_seed(2))
    still = ~parameters.jitter
    assert 0 < still.sum() < 16
    assert torch.equal(jitter(images, parameters)[still], images[still])


@pytest.mark.parametrize("channel_order", permutations((0.0, 0.4, 1.0)))
def test_hue_of_every_sector_and_of_grey_is_exact(channel_order):
    shades = torch.tensor([channel_order, (0.3, 0.3, 0.3), (0, 0, 0), (1, 1, 1), (0.7, 0.7, 0.2)])
    pixels = shades.t().reshape(1, 3, -1)
    for turns in (-0.5, -1 / 3, 0.0, 0.21, 0.5):
        ours = shift_hue_(pixels.clone(), torch.tensor([turns]))
        expected = tv.adjust_hue(pixels.view(1, 3, 1, -1), turns).view(1, 3, -1)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.floats(-0.5, 0.5))
def test_hue_turns_back(seed, turns):
    pixels = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(seed))
    there = shift_hue_(pixels.clone(), torch.full((2,), turns))
    # The largest and least channel are kept: value and chroma do not depend on the hue
    torch.testing.assert_close(there.amax(1), pixels.amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(there.amin(1), pixels.amin(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(shift_hue_(there, torch.full((2,), -turns)), pixels, atol=1e-4, rtol=0)


def test_greyscale_and_solarisation_equal_torchvision_s(cifar):
    images = cifar.float() / 255
    assert (greyscale(images) - tv.rgb_to_grayscale(images, 3)).abs().max() < 0.01 * LEVEL
    for threshold in (0.0, 0.5, 128 / 255, 1.0):
        assert torch.equal(solarise(images, threshold), tv.solarize(images, threshold))
