"""One pass over all images of a source, by threads, in order."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Final, TypeVar

from PIL import Image
from torch import Tensor

from tailfin.data.source import Blob, Encoded, Listing, Progress
from tailfin.errors import UserError

T = TypeVar("T")
_MOST_WAITING: Final = 2**28
"""Bytes of encoded images that wait for a thread, or whose results wait to be taken."""


def as_encoded(listing: Listing) -> Encoded:
    """A source's images as encoded ones: those that it has as pixels (uint8 [N, C, H, W]) become PNG."""
    if isinstance(listing.images, Encoded):
        return listing.images
    pixels = listing.images

    def digest() -> str:
        found = hashlib.sha256(str(tuple(pixels.shape)).encode())
        for some in pixels.split(4096):
            found.update(some.contiguous().numpy().tobytes())
        return found.hexdigest()

    def stream(index: Sequence[int]) -> Iterator[Blob]:
        return (to_png(pixels[i]) for i in index)

    return Encoded(len(pixels), lambda i: f"{listing.name}[{i}]", stream, digest)


def to_png(pixels: Tensor) -> bytes:
    """A PNG file of an image, uint8 [C, H, W], C 1 or 3."""
    values = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    buffer = BytesIO()
    Image.fromarray(values.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def mapped(
    encoded: Encoded,
    index: Sequence[int],
    work: Callable[[int, Blob], T],
    workers: int,
    progress: Progress | None = None,
) -> Iterator[T]:
    """What `work` makes of each image, in order; the caller keeps the libraries quiet (`decode.quiet`).

    Args:
        encoded: The images.
        index: Which, strictly increasing.
        work: Takes an index and its image, in any thread.
        workers: Threads.
        progress: Called with the number of images done and their total.
    """
    pending: deque[tuple[Future[T], int]] = deque()
    done = waiting = 0
    pool = ThreadPoolExecutor(workers)

    def first() -> T:
        nonlocal done, waiting
        future, size = pending.popleft()
        result = future.result()
        done, waiting = done + 1, waiting - size
        if progress is not None:
            progress(done, len(index))
        return result

    try:
        for i, blob in zip(index, encoded.stream(index), strict=True):
            size = len(blob) if isinstance(blob, bytes) else 0
            pending.append((pool.submit(work, i, blob), size))
            waiting += size
            while pending and (len(pending) > 4 * workers or waiting > _MOST_WAITING):
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def check_workers(workers: int | None) -> None:
    """Refuse a number of threads that cannot be.

    Raises:
        UserError: It is less than 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; it must be at least 1")


def processors() -> int:
    """Threads that are worth while here: one a processor, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, usable)
