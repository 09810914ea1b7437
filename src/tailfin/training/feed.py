"""Batches of uint8 images for each step, in an order that follows from the seed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tailfin.data.types import ImageSet
from tailfin.run.seeds import generator
from tailfin.views.transfer import send

Place = Literal["device", "host"]
Fetched = tuple[Tensor, Tensor, Tensor | None]
"""Images, index and aspect of a `Batch`, the images perhaps not yet on its device."""


@dataclass(frozen=True)
class Batch:
    """Images of one optimizer step.

    Attributes:
        images: uint8 [N / W, C, H, W] on the device, this process's share of the batch where there are W of them.
        index: int64 [N] on the CPU, the places of the whole batch in the training set.
        aspect: float32 [N] on the CPU, see `ImageSet`; or None.
        waited: Seconds that the step waited for them.
    """

    images: Tensor
    index: Tensor
    aspect: Tensor | None
    waited: float

    def cut(self, count: int) -> Iterator["Batch"]:
        """`count` micro-batches of equal size."""
        size, own = len(self.index) // count, len(self.images) // count
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            images = self.images[number * own : (number + 1) * own]
            aspect = None if self.aspect is None else self.aspect[rows]
            yield Batch(images, self.index[rows], aspect, self.waited)


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in one epoch, int64 [count]."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


USUAL_SHARE, LARGEST_SHARE = 0.25, 0.75
"""Of a GPU's free memory, what the training images may take where nothing is said, and where they are asked to: the
rest is for activations."""


def place_for(images: ImageSet, device: torch.device, asked: Place | None) -> Place:
    """Where to keep the training images: on a GPU where they fit, else on the host."""
    if device.type != "cuda" or asked == "host":
        return "host"
    share = USUAL_SHARE if asked is None else LARGEST_SHARE
    free = torch.cuda.mem_get_info(device)[0]
    return "device" if images.images.nbytes < share * free else "host"


class Feed:
    """Serves batches from step to step; the next one is fetched while this one is worked on.

    Args:
        images: The training images.
        batch_size: Images a step.
        seed: Of the order.
        device: Where the batches are wanted.
        place: Where the images are kept: on that device, or on the host.
        own: int64 [N / W], the rows of a batch that this process needs; None for all.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        place: Place = "host",
        own: Tensor | None = None,
    ) -> None:
        self.own = own
        self.images, self.aspect = images.images, images.aspect
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.steps_per_epoch = len(images) // batch_size
        self._order = (-1, torch.empty(0, dtype=torch.int64))
        if place == "device":
            self.images = self.images.to(device)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the steps `first` to `last` (excluded), counted over the whole run."""
        fetched = self._ahead(range(first, last))
        for _ in range(first, last):
            start = time.perf_counter()
            images, index, aspect = next(fetched)
            waited = time.perf_counter() - start
            # The host does not wait for this copy, but the device does: it is on the stream that computes, behind the
            # step before. A stream of its own would hide it and needs care with the memory's life (record_stream); no
            # figure has shown yet that it would gain, and images that fit on a GPU are kept there.
            yield Batch(images.to(self.device, non_blocking=True), index, aspect, waited)

    def _ahead(self, steps: range) -> Iterator[Fetched]:
        """What `_fetch` gives for each step, the next one being fetched by a thread meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            pending = pool.submit(self._fetch, steps[0]) if steps else None
            for step in steps:
                assert pending is not None
                fetched = pending.result()
                pending = pool.submit(self._fetch, step + 1) if step + 1 in steps else None
                yield fetched

    def _fetch(self, step: int) -> Fetched:
        epoch, place = divmod(step, self.steps_per_epoch)
        known = self._order  # read once: another thread may serve another epoch of the same feed
        if known[0] != epoch:
            known = self._order = (epoch, order(len(self.images), self.seed, epoch))
        index = known[1][place * self.batch_size : (place + 1) * self.batch_size]
        images = self._picked(index if self.own is None else index[self.own])
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()
        return images, index, None if self.aspect is None else self.aspect[index]

    def _picked(self, index: Tensor) -> Tensor:
        if self.images.device.type == "cpu":
            # Not by torch: its parallel copy gives the feed's thread a team of OpenMP threads of its own, and with
            # more of them than processors all sleep, and do not spin, between operations. A step of a ResNet-18 on
            # two cores took 831 ms beside an idle one and 723 without.
            return torch.from_numpy(self.images.numpy().take(index.numpy(), axis=0))
        return self.images.index_select(0, send(index, self.images.device))
