"""Batches: every image once an epoch, the same from any step on."""

from collections.abc import Callable
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
import torch

from tailfin.data.types import Dataset
from tailfin.training import setup
from tailfin.training.config import Config
from tailfin.training.feed import Feed, Place, order, place_for
from tailfin.training.setup import prepare


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


def test_a_thread_fetches_ahead_what_the_caller_would(data: Dataset) -> None:
    feed = Feed(data.train, batch_size=12, seed=3, device=torch.device("cpu"))
    ahead = [images for images, _, _ in feed._ahead(range(2, 9))]
    assert all(torch.equal(a, b.images) for a, b in zip(ahead, feed.batches(2, 9), strict=True))
    assert list(feed._ahead(range(3, 3))) == []


def test_no_thread_works_beside_the_model_on_a_cpu(data: Dataset) -> None:
    """Its OpenMP threads would slow each of the model's operations."""
    feed = Feed(data.train, batch_size=12, seed=3, device=torch.device("cpu"))
    for _ in feed.batches(0, 3):
        assert not [thread for thread in enumerate_threads() if thread.name.startswith("feed")]
    fetched = feed._ahead(range(3))
    next(fetched)
    assert [thread for thread in enumerate_threads() if thread.name.startswith("feed")]


@pytest.mark.parametrize(
    ("device", "asked", "free", "place"),
    [
        ("cpu", None, 2.0, "host"),
        ("cpu", "device", 100.0, "host"),
        ("cuda", None, 4.1, "device"),
        ("cuda", None, 3.9, "host"),
        ("cuda", "host", 100.0, "host"),
        ("cuda", "device", 1.4, "device"),
        ("cuda", "device", 1.3, "host"),
    ],
)
def test_images_are_kept_on_a_gpu_where_they_fit(
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    asked: Place | None,
    free: float,
    place: Place,
) -> None:
    size = data.train.images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * size), 0))
    assert place_for(data.train, torch.device(device), asked) == place


def test_a_run_feeds_from_the_place_that_was_found(
    settings: Callable[..., Config], data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.device] = []
    whole = data.train.images.shape
    move = torch.Tensor.to

    def spy(tensor: torch.Tensor, *where: Any, **options: Any) -> torch.Tensor:
        if tensor.shape == whole and where and isinstance(where[0], torch.device):
            moved.append(where[0])
        return move(tensor, *where, **options)

    host = prepare(settings(), data)
    monkeypatch.setattr(setup, "place_for", lambda *_: "device")
    device = prepare(settings(), data)
    monkeypatch.setattr(torch.Tensor, "to", spy)
    host.feed()
    assert not moved
    device.feed()
    assert moved == [torch.device("cpu")]
