"""Decodes many images in parallel into one array: in memory, or memory-mapped and kept for the next run."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tailfin.data.decode import decode, quiet, read_header
from tailfin.data.source import Blob, Decoded, Encoded, Progress, Unreadable
from tailfin.data.types import Skipped
from tailfin.errors import UserError
from tailfin.files import make_folder

SMALL_SIDE: Final = 96
_DEFAULT_IMAGE_SIZE: Final = 224
_CHUNK: Final = 32
_LAYOUT: Final = 1


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
) -> Decoded:
    """Decodes the images at `index` (distinct) into one uint8 array.

    Originals of one size, no larger than 96 px or 1.5 times `image_size` on the long side, are stored as they
    are; others are squashed to a square of 1.5 times `image_size` (224 if None), rounded up to a multiple of
    16. One channel if every image is grey, else three. The array is in memory if it takes less than a third
    of what is free, else in a file under `cache`, which the next call with the same request maps without
    decoding.

    Raises:
        UserError: If no image can be read, or the disk under `cache` is too small.
    """
    side = canvas_side(image_size or _DEFAULT_IMAGE_SIZE)
    room = free_memory() // 3
    entry: Path | None = None
    if 3 * len(index) * max(side, SMALL_SIDE) ** 2 > room:
        entry = cache / "decoded" / _key(encoded, index, image_size)
        if (entry / "index.json").exists():
            return _map(entry, encoded, index)
    order = np.argsort(np.asarray(index, dtype=np.int64))
    ordered = [index[position] for position in order.tolist()]
    with quiet():
        canvas = _choose_canvas(encoded.stream(ordered), image_size, side)
        shape = (len(index), canvas.channels, canvas.height, canvas.width)
        fill = _Filler(encoded, ordered, order, canvas, workers, progress)
        if entry is None or math.prod(shape) <= room:
            images = np.empty(shape, dtype=np.uint8)
            aspect, reasons = fill(images)
            return _decoded(images, aspect, reasons, encoded, index, squashed=canvas.squashed)
        _write(entry, shape, fill, squashed=canvas.squashed)
    return _map(entry, encoded, index)


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
        pending: deque[Future[int]] = deque()
        done = 0
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                # Bounded, so that the bytes of a large Parquet file are not all in memory at once.
                while chunk := list(islice(items, _CHUNK)):
                    pending.append(pool.submit(work, chunk))
                    if len(pending) > 4 * self.workers:
                        done = self._report(done + pending.popleft().result())
                while pending:
                    done = self._report(done + pending.popleft().result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return aspect, reasons

    def _report(self, done: int) -> int:
        if self.progress is not None:
            self.progress(done, len(self.ordered))
        return done


def _compact(values: NDArray[Any], kept: NDArray[np.bool_]) -> None:
    """Moves the kept rows to the front in their order, without a second array."""
    target = 0
    for start, stop in _runs(kept):
        if target != start:
            # Row by row, because the source of a shift may overlap its target.
            for row in range(start, stop):
                values[target + row - start] = values[row]
        target += stop - start


def _runs(kept: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _kept(count: int, reasons: dict[int, str]) -> NDArray[np.bool_]:
    kept = np.ones(count, dtype=np.bool_)
    kept[list(reasons)] = False
    return kept


def _decoded(
    images: NDArray[np.uint8],
    aspect: NDArray[np.float32],
    reasons: dict[int, str],
    encoded: Encoded,
    index: Sequence[int],
    *,
    squashed: bool,
) -> Decoded:
    kept = _kept(len(index), reasons)
    if reasons:
        _compact(images, kept)
        aspect = aspect[kept]
    skipped = tuple(Skipped(encoded.name(index[position]), reasons[position]) for position in sorted(reasons))
    return Decoded(
        torch.from_numpy(images[: int(kept.sum())]),
        torch.from_numpy(kept),
        torch.from_numpy(aspect) if squashed else None,
        skipped,
    )


def _key(encoded: Encoded, index: Sequence[int], image_size: int | None) -> str:
    digest = hashlib.sha256(f"{_LAYOUT} {encoded.fingerprint()} {image_size}\n".encode())
    digest.update(np.asarray(index, dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def _write(entry: Path, shape: tuple[int, ...], fill: _Filler, *, squashed: bool) -> None:
    """Decodes into a new entry of the cache, which appears under its name only when it is whole."""
    make_folder(entry.parent)
    need, free = math.prod(shape), shutil.disk_usage(entry.parent).free
    # A memory-mapped write to a full disk kills the process without a word.
    if need > free - 2**28:
        raise UserError(
            f"the decoded images need {need / 1e9:.1f} GB, too much for memory, and {entry.parent} has"
            f" {free / 1e9:.1f} GB free; use a smaller image size, --limit, or another cache folder"
        )
    with tempfile.TemporaryDirectory(
        prefix=".unfinished-", dir=entry.parent, ignore_cleanup_errors=True
    ) as name:
        work = Path(name) / "entry"
        work.mkdir()
        images = np.lib.format.open_memmap(work / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        aspect, reasons = fill(images)
        kept = _kept(len(images), reasons)
        _compact(images, kept)
        images.flush()
        del images
        np.save(work / "aspect.npy", aspect[kept])
        (work / "index.json").write_text(
            json.dumps(
                {
                    "squashed": squashed,
                    "skipped": [[position, reasons[position]] for position in sorted(reasons)],
                }
            )
        )
        # Another process may have finished the same entry meanwhile: then its copy is as good.
        with suppress(OSError):
            os.rename(work, entry)


def _map(entry: Path, encoded: Encoded, index: Sequence[int]) -> Decoded:
    told = json.loads((entry / "index.json").read_text())
    reasons = {int(position): str(reason) for position, reason in told["skipped"]}
    kept = _kept(len(index), reasons)
    # Copy-on-write: a caller who writes into the tensor changes neither the file nor crashes.
    images = np.load(entry / "images.npy", mmap_mode="c")[: int(kept.sum())]
    return Decoded(
        torch.from_numpy(images),
        torch.from_numpy(kept),
        torch.from_numpy(np.load(entry / "aspect.npy")) if told["squashed"] else None,
        tuple(Skipped(encoded.name(index[position]), reason) for position, reason in reasons.items()),
    )
