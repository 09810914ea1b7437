import math
from dataclasses import fields, replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from tailfin.errors import UserError
from tailfin.views.parameters import draw
from tailfin.views.recipes import ViewRecipe, byol, local, mocov2, simclr

COUNT = 20_000
FULL = replace(byol(224)[1], blur=0.3, contrast=0.6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn():
    return draw(FULL, COUNT, 64, 48, seeded())


def is_uniform(values, low, high):
    """Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) once in a thousand samples."""
    expected = (values.sort().values - low) / (high - low)
    steps = torch.arange(1, len(values) + 1) / len(values)
    return (expected - steps).abs().max() < 1.95 / math.sqrt(len(values))


def test_probabilities_and_intervals_are_the_recipe_s(drawn):
    for name in ("flip", "jitter", "greyscale", "blur", "solarise"):
        p = getattr(FULL, name)
        share = getattr(drawn, name).double().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / COUNT), name
    for k, strength in enumerate((FULL.brightness, FULL.contrast, FULL.saturation)):
        assert is_uniform(drawn.factors[:, k], 1 - strength, 1 + strength)
    assert is_uniform(drawn.factors[:, 3], -FULL.hue, FULL.hue)
    assert is_uniform(drawn.sigma, *FULL.blur_sigma)


def test_a_factor_is_never_negative():
    factors = draw(ViewRecipe(brightness=2.5, jitter=1.0), COUNT, 8, 8, seeded()).factors[:, 0]
    assert is_uniform(factors, 0.0, 3.5)


def test_every_order_is_equally_likely(drawn):
    orders, counts = drawn.order.unique(dim=0, return_counts=True)
    assert set(map(tuple, orders.tolist())) == set(permutations(range(4)))
    expected = COUNT / 24
    # chi-squared with 23 degrees of freedom stays below 49.7 in 999 of 1000 samples
    assert ((counts - expected) ** 2 / expected).sum() < 49.7


def test_parameters_are_independent_of_each_other_and_between_samples(drawn):
    columns = [getattr(drawn, f.name).double() for f in fields(drawn)]
    columns = [c if c.ndim == 2 else c.unsqueeze(1) for c in columns]
    # The box's own four numbers depend on each other, as do the order's: one of each
    columns = [columns[0][:, :1], *columns[1:3], columns[3], columns[4][:, :1], *columns[5:]]
    table = torch.cat(columns, dim=1)
    correlation = torch.corrcoef(table.t()) - torch.eye(table.shape[1])
    assert correlation.abs().max() < 4.5 / math.sqrt(COUNT)
    neighbours = torch.corrcoef(torch.cat((table[1:], table[:-1]), dim=1).t())
    width = table.shape[1]
    assert neighbours[:width, width:].abs().max() < 4.5 / math.sqrt(COUNT)
    assert len(drawn.factors.unique(dim=0)) == COUNT


@pytest.mark.parametrize(("height", "width", "scale"), [(32, 32, (0.08, 1.0)), (20, 60, (0.5, 1.0))])
def test_boxes_are_distributed_as_torchvision_s(height, width, scale):
    recipe = ViewRecipe(scale=scale)
    ours = draw(recipe, COUNT, height, width, seeded()).box
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=scale)
    image = [torch.empty(3, height, width)]
    theirs = [crop.make_params(image) for _ in range(2500)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in theirs]).double()
    for k in range(4):
        grid = torch.arange(61).unsqueeze(1)
        distance = ((ours[:, k] <= grid).double().mean(1) - (theirs[:, k] <= grid).double().mean(1)).abs()
        assert distance.max() < 1.95 * math.sqrt(1 / 2500 + 1 / COUNT)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0.01, 1), st.floats(0.2, 3), st.integers(0, 1000))
def test_pixel_boxes_are_whole_and_inside(height, width, scale, ratio, seed):
    recipe = ViewRecipe(scale=(scale * 0.5, scale), ratio=(ratio, ratio * 1.5))
    top, left, h, w = draw(recipe, 50, height, width, seeded(seed)).box.unbind(1)
    for value in (top, left, h, w):
        assert torch.equal(value, value.round())
    assert top.min() >= 0
    assert left.min() >= 0
    assert h.min() >= 1
    assert w.min() >= 1
    assert (top + h).max() <= height
    assert (left + w).max() <= width


def test_boxes_that_never_fit_become_torchvision_s_central_crop():
    # 10 x 200 pixels: a square of the whole area is 45 pixels high
    recipe = ViewRecipe(scale=(0.999, 1.0), ratio=(0.75, 4 / 3))
    ours = draw(recipe, 4, 10, 200, seeded()).box
    theirs = v2.RandomResizedCrop(8, scale=(0.999, 1.0)).make_params([torch.empty(3, 10, 200)])
    expected = [theirs["top"], theirs["left"], theirs["height"], theirs["width"]]
    assert ours.tolist() == [expected] * 4


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 5.0), st.integers(0, 1000))
def test_canvas_boxes_have_the_original_s_geometry(aspect, seed):
    recipe = ViewRecipe(scale=(0.1, 0.15), ratio=(0.75, 4 / 3))
    box = draw(recipe, 200, 64, 32, seeded(seed), torch.full((200,), aspect)).box
    # Back from a canvas of 64 x 32 to an original of height 1 and width `aspect`
    top, left, h, w = (box / torch.tensor([64, 32, 64, 32])).unbind(1)
    assert torch.minimum(top, left).min() >= 0
    assert (top + h).max() <= 1 + 1e-9
    assert (left + w).max() <= 1 + 1e-9
    ratio, area = w * aspect / h, h * w
    assert ratio.min() > 0.75 - 1e-6
    assert ratio.max() < 4 / 3 + 1e-6
    assert area.min() > 0.1 - 1e-6
    assert area.max() < 0.15 + 1e-6


def test_canvas_boxes_that_never_fit_are_the_largest_central_ones():
    recipe = ViewRecipe(scale=(0.999, 1.0))
    box = draw(recipe, 2, 60, 60, seeded(), torch.tensor([0.1, 6.0])).box
    tall, wide = 60 * 0.1 / 0.75, 60 * (4 / 3) / 6.0
    expected = torch.tensor([[30 - tall / 2, 0, tall, 60], [0, 30 - wide / 2, 60, wide]]).double()
    torch.testing.assert_close(box, expected, atol=1e-4, rtol=0)


def test_one_probability_leaves_the_other_parameters_and_the_generator_alone():
    first, second = seeded(), seeded()
    a = draw(FULL, 50, 32, 32, first)
    b = draw(replace(FULL, blur=0.0, greyscale=1.0, brightness=0.0), 50, 32, 32, second)
    assert torch.equal(first.get_state(), second.get_state())
    for name in ("box", "flip", "jitter", "order", "sigma", "solarise"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert torch.equal(a.factors[:, 1:], b.factors[:, 1:])


def test_recipes_are_the_published_ones():
    for view in simclr(32):
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.4, 0.1)
        assert (view.scale, view.jitter, view.greyscale, view.blur) == ((0.08, 1.0), 0.8, 0.2, 0.0)
    assert (simclr(224)[0].brightness, simclr(224)[0].hue, simclr(224)[0].blur) == (0.8, 0.2, 0.5)
    first, second = byol(224)
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)
    assert (first.blur_kernel, first.brightness, first.saturation) == (23, 0.4, 0.2)
    assert [v.blur for v in byol(32)] == [0.0, 0.0]
    assert [v.solarise for v in byol(32)] == [0.0, 0.2]
    assert [local(v, 16).solarise for v in byol(32)] == [0.0, 0.0]
    assert mocov2(224)[0].scale == (0.2, 1.0)
    assert mocov2(32)[0].scale == (0.08, 1.0)
    assert simclr(96)[0].blur_kernel == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.2)},
        {"ratio": (2.0, 1.0)},
        {"jitter": 1.1},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"blur_kernel": 4},
        {"blur_sigma": (0.0, 1.0)},
        {"threshold": 2.0},
    ],
)
def test_impossible_recipes_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ViewRecipe(**wrong)
