"""The generated set: reproducible, balanced, hard for raw pixels, and readable from its outlines."""

import pytest
import torch
from torch.nn import functional

import tailfin.data.shapes as shapes
from tailfin.data import load


@pytest.fixture(scope="module")
def data():
    return load("shapes")


def test_sizes_classes_and_balance(data):
    assert tuple(data.train.images.shape) == (6000, 3, 32, 32)
    assert tuple(data.test.images.shape) == (2000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [600] * 10
    assert data.test.labels.bincount().tolist() == [200] * 10
    assert data.train.classes == shapes.CLASSES


def test_a_seed_gives_the_same_images_and_another_gives_others():
    first, labels = shapes.draw(20, 3)
    again, _ = shapes.draw(20, 3)
    other, _ = shapes.draw(20, 4)
    assert torch.equal(first, again)
    assert (first != other).float().mean() > 0.5
    assert labels.tolist() == list(range(10)) * 2


def test_images_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = shapes.draw(40, 0)
        torch.set_num_threads(3)
        three, _ = shapes.draw(40, 0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_every_kind_covers_the_same_area():
    axis = torch.linspace(-1.5, 1.5, 400)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    cell = (3 / 399) ** 2
    for outline, scale in zip(shapes._KINDS.values(), shapes._SCALE, strict=True):
        area = (outline(u / scale, v / scale) < 0).sum().item() * cell
        assert area == pytest.approx(1.75, rel=0.02)


def test_brightness_does_not_betray_the_kind(data):
    values = data.train.images.float().div(255).mean(dim=(1, 2, 3))
    means = torch.stack([values[data.train.labels == k].mean() for k in range(10)])
    # Each mean of 600 images has a standard error of about values.std() / 24.
    assert (means - values.mean()).abs().max() < 5 * values.std() / 600**0.5


def test_raw_pixels_do_not_find_the_kind(data):
    train = functional.normalize(data.train.images.float().flatten(1).sub_(127), dim=1)
    test = functional.normalize(data.test.images[:500].float().flatten(1).sub_(127), dim=1)
    weight, index = (test @ train.T).topk(20)
    votes = torch.zeros(500, 10).scatter_add_(1, data.train.labels[index], (weight / 0.07).exp())
    accuracy = (votes.argmax(1) == data.test.labels[:500]).float().mean().item()
    assert accuracy < 0.2
