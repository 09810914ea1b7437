"""Batches: every image once an epoch, the same from any step on."""

import torch

from tailfin.data.types import Dataset
from tailfin.training.feed import Feed, order


def test_each_epoch_is_its_own_permutation() -> None:
    first, second = order(50, 0, 0), order(50, 0, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(first, order(50, 0, 0))
    assert not torch.equal(first, order(50, 1, 0))


def test_batches_follow_the_order_and_resume_anywhere(data: Dataset) -> None:
    feed = Feed(data.train, batch_size=12, seed=3, device=torch.device("cpu"))
    whole = [batch.images for batch in feed.batches(0, 9)]
    for step, images in enumerate(whole):
        epoch, place = divmod(step, 3)
        index = order(40, 3, epoch)[12 * place : 12 * place + 12]
        assert torch.equal(images, data.train.images[index])
    later = [batch.images for batch in feed.batches(4, 9)]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))
    assert list(feed.batches(3, 3)) == []
