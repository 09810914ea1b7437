"""Batches: every image once an epoch, the same from any step on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailfin.data.types import Dataset
from tailfin.run.config import Config
from tailfin.training import setup
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists a process's threads")
def test_the_feed_takes_one_thread_and_no_team_of_them() -> None:
    """OpenMP threads of its own would slow each of the model's operations."""
    code = """
import os, torch
from tailfin.data.types import ImageSet
from tailfin.training.feed import Feed
torch.set_num_threads(4)
images = ImageSet(torch.zeros(600, 3, 64, 64, dtype=torch.uint8))
feed = Feed(images, batch_size=300, seed=0, device=torch.device("cpu"))
torch.rand(2**22).exp()
before = len(os.listdir("/proc/self/task"))
counts = [len(os.listdir("/proc/self/task")) - before for _ in feed.batches(0, 6)]
print(max(counts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


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
