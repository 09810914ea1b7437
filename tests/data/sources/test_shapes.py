"""The generated set: reproducible, balanced, hard for raw pixels, and readable from its outlines."""

import pytest
import torch
from torch.nn import functional

import tailfin.data.sources.shapes as shapes
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


def test_the_first_images_stay_what_they_were():
    images, _ = shapes.draw(10, 0)
    golden = torch.tensor([123.42, 123.0, 128.97, 113.89, 122.35, 127.75, 133.69, 142.5, 131.03, 130.64])
    torch.testing.assert_close(
        images.float().mean(dim=(1, 2, 3)), golden, atol=0.2, rtol=0, msg="images drifted"
    )


def test_the_ground_says_nothing_of_the_image(data):
    # A ground that differed from image to image would be learnt instead of the kind.
    ground = (data.train.images[:1000].float().sub(127.5).abs() < 3 * 0.02 * 255).all(dim=1)
    assert ground.float().mean(dim=(1, 2)).min() > 0.25
    values = data.train.images[:1000, 0].float()
    means = (values * ground).sum(dim=(1, 2)) / ground.sum(dim=(1, 2))
    assert (means - 127.5).abs().max() < 2


def test_raw_pixels_do_not_find_the_kind(data):
    train = functional.normalize(data.train.images.float().flatten(1).sub_(127), dim=1)
    test = functional.normalize(data.test.images[:500].float().flatten(1).sub_(127), dim=1)
    weight, index = (test @ train.T).topk(20)
    votes = torch.zeros(500, 10).scatter_add_(1, data.train.labels[index], (weight / 0.07).exp())
    accuracy = (votes.argmax(1) == data.test.labels[:500]).float().mean().item()
    assert accuracy < 0.2
