"""Decodes many images in parallel into one array: in memory, or memory-mapped and kept for the next run."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tailfin.data import entries
from tailfin.data.decode import decode, quiet, read_header
from tailfin.data.entries import Entry
from tailfin.data.source import Blob, Decoded, Encoded, Progress, Unreadable
from tailfin.data.types import Skipped
from tailfin.errors import printable

SMALL_SIDE: Final = 96
_DEFAULT_IMAGE_SIZE: Final = 224
_CHUNK: Final = 32
_MOST_WAITING: Final = 2**28
"""Bytes of encoded images that wait for a thread."""


@dataclass(frozen=True)
class _Canvas:
    width: int
    height: int
    channels: int
    squashed: bool


def decode_all(
    encoded: Encoded,
    index: Sequence[int],
    *,
    image_size: int | None,
    cache: Path,
    workers: int,
    progress: Progress | None = None,
    words: str = "images",
    say: Callable[[str], object] = lambda _: None,
) -> Decoded:
    """Decodes the images at `index` (distinct) into one uint8 array.

    Originals of one size, no larger than 96 px or 1.5 times `image_size` on the long side, are stored as they
    are; others are squashed to a square of 1.5 times `image_size` (224 if None), rounded up to a multiple of
    16. One channel if every image is grey, else three. The array is in memory if it takes less than a third
    of what is free, else in a file under `cache`, which the next call with the same request maps without
    decoding; `words` say what they are when the cache is listed. `say` gets a line for what a user should
    know of the cache.

    Raises:
        UserError: If no image can be read, or the disk under `cache` is too small.
    """
    side = canvas_side(image_size or _DEFAULT_IMAGE_SIZE)
    room = free_memory() // 3
    if 3 * len(index) * max(side, SMALL_SIDE) ** 2 <= room:
        return _decoded(_fill(encoded, index, image_size, room, workers, progress), encoded, index)
    entry = cache / "decoded" / _key(encoded, index, image_size)
    if freed := entries.remove_leftovers(entry.parent):
        say(f"removed {freed / 1e6:.1f} MB of decoded images that a killed run had left in {entry.parent}")
    held = _kept(entry, len(index), say)
    if held is None:
        waits = f"waits for another process, which decodes the same images into {entry.parent}"
        with entries.writing(entry, lambda: say(waits)):
            # Another process may have finished it a moment ago.
            held = _kept(entry, len(index), lambda _: None)
            if held is None:
                held = _fill(encoded, index, image_size, room, workers, progress, entry, words)
    return _decoded(held, encoded, index)


def _kept(entry: Path, count: int, say: Callable[[str], object]) -> Entry | None:
    """The images of an entry; one that is damaged is named, and made again."""
    try:
        return entries.read(entry, count)
    except entries.Damaged as reason:
        say(f"the decoded images in {entry} are made again: {reason}")
        return None


def _fill(
    encoded: Encoded,
    index: Sequence[int],
    image_size: int | None,
    room: int,
    workers: int,
    progress: Progress | None,
    entry: Path | None = None,
    words: str = "",
) -> Entry:
    """Decodes into memory, or into an entry of the cache where that is too little."""
    order = np.argsort(np.asarray(index, dtype=np.int64))
    ordered = [index[position] for position in order.tolist()]
    with quiet():
        canvas = _choose_canvas(
            encoded.stream(ordered), image_size, canvas_side(image_size or _DEFAULT_IMAGE_SIZE)
        )
        shape = (len(index), canvas.channels, canvas.height, canvas.width)
        fill = _Filler(encoded, ordered, order, canvas, workers, progress)
        if entry is None or math.prod(shape) <= room:
            images = np.empty(shape, dtype=np.uint8)
            aspect, reasons = fill(images)
            if reasons:
                kept = np.ones(len(images), dtype=np.bool_)
                kept[list(reasons)] = False
                entries.compact(images, kept)
                images, aspect = images[: int(kept.sum())], aspect[kept]
            return Entry(images, aspect, canvas.squashed, reasons)
        text = f"{words}: {len(index)} images, {canvas.width} x {canvas.height}"
        entries.write(entry, shape, fill, squashed=canvas.squashed, words=text)
    held = entries.read(entry, len(index))
    assert held is not None
    return held


def canvas_side(image_size: int) -> int:
    """Side of the square on which images of differing sizes are stored, in pixels."""
    return -(-round(1.5 * image_size) // 16) * 16


def free_memory() -> int:
    """Bytes of memory that can be had: what the kernel calls available, within the control group's limit."""
    room = [8 * 2**30]
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        room = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or room
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        room.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(room))


def _choose_canvas(blobs: Iterator[Blob], image_size: int | None, side: int) -> _Canvas:
    """Reads headers until they decide the stored size and the channels."""
    bound = max(SMALL_SIDE, 1.5 * (image_size or 0))
    size: tuple[int, int] | None = None
    squashed, grey = False, True
    for blob in blobs:
        if isinstance(blob, Unreadable):
            continue
        try:
            header = read_header(blob)
        except Unreadable:
            continue
        grey = grey and header.grey
        size = size or (header.width, header.height)
        squashed = squashed or size != (header.width, header.height) or max(size) > bound
        if squashed and not grey:
            break
    if size is None or squashed:
        return _Canvas(side, side, 1 if grey else 3, squashed=True)
    return _Canvas(*size, 1 if grey else 3, squashed=False)


class _Filler:
    """Fills an array with decoded images by threads (Pillow decodes outside the interpreter lock)."""

    def __init__(
        self,
        encoded: Encoded,
        ordered: Sequence[int],
        order: NDArray[np.int64],
        canvas: _Canvas,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.encoded, self.ordered, self.order = encoded, ordered, order
        self.canvas, self.workers, self.progress = canvas, workers, progress

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Aspects of the originals, and the reasons for the positions that could not be read."""
        canvas = self.canvas
        aspect = np.ones(len(images), dtype=np.float32)
        reasons: dict[int, str] = {}

        def work(chunk: list[tuple[int, Blob]]) -> int:
            for position, blob in chunk:
                try:
                    if isinstance(blob, Unreadable):
                        raise blob
                    pixels, aspect[position] = decode(blob, (canvas.width, canvas.height), canvas.channels)
                    images[position] = pixels
                except Unreadable as error:
                    reasons[position] = str(error)
            return len(chunk)

        items = zip(self.order.tolist(), self.encoded.stream(self.ordered), strict=True)
        pending: deque[tuple[Future[int], int]] = deque()
        done = waiting = 0
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for chunk, size in _chunks(items):
                    pending.append((pool.submit(work, chunk), size))
                    waiting += size
                    # Bounded, so that the bytes of a large Parquet file are not all in memory at once.
                    while len(pending) > 4 * self.workers or waiting > _MOST_WAITING:
                        future, gone = pending.popleft()
                        done, waiting = self._report(done + future.result()), waiting - gone
                while pending:
                    done = self._report(done + pending.popleft()[0].result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return aspect, reasons

    def _report(self, done: int) -> int:
        if self.progress is not None:
            self.progress(done, len(self.ordered))
        return done


def _chunks(items: Iterable[tuple[int, Blob]]) -> Iterator[tuple[list[tuple[int, Blob]], int]]:
    """Positions and images by up to `_CHUNK`, and the bytes that they hold."""
    chunk: list[tuple[int, Blob]] = []
    size = 0
    for position, blob in items:
        chunk.append((position, blob))
        size += len(blob) if isinstance(blob, bytes) else 0
        if len(chunk) == _CHUNK or size > _MOST_WAITING // 8:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


def _decoded(held: Entry, encoded: Encoded, index: Sequence[int]) -> Decoded:
    kept = torch.ones(len(index), dtype=torch.bool)
    kept[list(held.reasons)] = False
    skipped = tuple(
        Skipped(printable(encoded.name(index[n])), printable(held.reasons[n])) for n in sorted(held.reasons)
    )
    aspect = torch.from_numpy(held.aspect) if held.squashed else None
    return Decoded(torch.from_numpy(held.images), kept, aspect, skipped)


def _key(encoded: Encoded, index: Sequence[int], image_size: int | None) -> str:
    digest = hashlib.sha256(f"{entries.LAYOUT} {encoded.fingerprint()} {image_size}\n".encode())
    digest.update(np.asarray(index, dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]
