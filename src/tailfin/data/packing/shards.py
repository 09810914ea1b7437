"""What `tailfin pack` does for each image and each shard."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tailfin.data.about import SUFFIX_OF, About, check_pixels, fitted, look, read_whole
from tailfin.data.decode import decode, quiet
from tailfin.data.passes import mapped
from tailfin.data.source import Blob, Encoded, Listing, Progress, Unreadable
from tailfin.data.sources.manifest import Manifest, Shard, read_manifest, write_manifest
from tailfin.errors import UserError, printable
from tailfin.files.tar_writing import TarWriter

QUALITY: Final = 90
"""Of the JPEG that shrunk images become, where nothing else is asked."""
_HEADERS: Final = 4096
"""Bytes that an image takes in a tar beyond its own: two headers, a label, padding, and the mark at the end."""


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        shard_mb: Most megabytes (10^6 bytes) of a shard; one that a single image fills may be larger.
        longest: Longest side in pixels; larger images are shrunk, and become JPEG. None: as they are.
        quality: JPEG quality to which all images are recompressed, 1 to 100. None: bytes as they are.
    """

    shard_mb: int = 500
    longest: int | None = None
    quality: int | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: With the option and what is allowed.
        """
        if self.shard_mb < 1:
            raise UserError(f"--shard-mb is {self.shard_mb}; it must be at least 1")
        if self.longest is not None and self.longest < 1:
            raise UserError(f"--longest is {self.longest}; it must be at least 1")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}; it must lie between 1 and 100")


@dataclass(frozen=True)
class _Ready:
    """An image as it is written; `lost` says what its recompression took from it, empty if nothing."""

    content: bytes
    suffix: str
    size: tuple[int, int]
    lost: str


@dataclass
class Packer:
    """Writes the shards that are not there yet."""

    listing: Listing
    encoded: Encoded
    order: NDArray[np.int64]
    out: Path
    how: Packing
    before: Manifest
    workers: int
    tell: Callable[[str], object]
    progress: Progress | None

    def run(self) -> Manifest:
        """All shards, in order."""
        self.shards, self.skipped = list(self.before.shards), list(self.before.skipped)
        lost: dict[str, list[str]] = {}
        self.lost = lost
        training = int((~self.listing.test).sum())
        with quiet():
            for split, first, stop in (("train", 0, training), ("test", training, len(self.order))):
                done = max([first, *(shard.stop for shard in self.shards if shard.name.startswith(split))])
                if done < stop:
                    self._write(split, done, stop)
        for what, names in self.lost.items():
            count = f"{len(names):,} image{'s' if len(names) > 1 else ''}"
            self.tell(f"{count} ({names[0]}{', ...' if len(names) > 1 else ''}): {what}")
        self._save(complete=bool(self.shards))
        return read_manifest(self.out) or self.before

    def _write(self, split: str, first: int, stop: int) -> None:
        """The shards of one split from place `first` to `stop`."""
        index: Sequence[int] = self.order[first:stop].tolist()
        report = self.progress and (
            lambda done, _: self.progress and self.progress(first + done, len(self.order))
        )
        results = mapped(self.encoded, index, self._prepare, self.workers, report)
        ready = self._readable(enumerate(results, start=first))
        number = sum(shard.name.startswith(split) for shard in self.shards)
        current = next(ready, None)
        while current is not None:
            name, begin, images, sides = f"{split}-{number:06}.tar", first, 0, list[int]()
            with TarWriter(self.out / name) as tar:
                while current is not None:
                    place, image = current
                    if images and tar.size + len(image.content) + _HEADERS > self.how.shard_mb * 10**6:
                        break
                    self._add(tar, int(self.order[place]), image)
                    images, sides = images + 1, [min(*sides, *image.size), max(*sides, *image.size)]
                    current = next(ready, None)
                first = stop if current is None else current[0]
                sha256 = tar.finish()
            self.shards.append(Shard(name, tar.size, sha256, begin, first, images, (sides[0], sides[1])))
            self._save(complete=False)
            number += 1

    def _readable(self, results: Iterator[tuple[int, _Ready | str]]) -> Iterator[tuple[int, _Ready]]:
        """Place and image of those that can be read; others are noted."""
        for place, image in results:
            if isinstance(image, _Ready):
                if image.lost:
                    self.lost.setdefault(image.lost, []).append(self._name(place))
                yield place, image
            else:
                self.skipped.append((place, self._name(place), printable(image)))

    def _name(self, place: int) -> str:
        return printable(self.encoded.name(int(self.order[place])))

    def _add(self, tar: TarWriter, i: int, image: _Ready) -> None:
        tar.add(f"{i:09}.{image.suffix}", image.content)
        if self.listing.labels is not None and (label := int(self.listing.labels[i])) >= 0:
            tar.add(f"{i:09}.cls", str(label).encode())

    def _save(self, *, complete: bool) -> None:
        reached = len(self.order) if complete or not self.shards else self.shards[-1].stop
        skipped = tuple(each for each in self.skipped if each[0] < reached)
        classes, settings = self.listing.classes, asdict(self.how)
        write_manifest(
            self.out, Manifest(self.before.source, settings, classes, tuple(self.shards), skipped, complete)
        )

    def _prepare(self, _: int, blob: Blob) -> _Ready | str:
        """An image as it is written, or the reason why it cannot be."""
        try:
            content = read_whole(blob)
            about = look(content)
            size = fitted(about, self.how.longest or max(about.width, about.height))
            if self.how.quality is None and size == (about.width, about.height):
                check_pixels(content, about)
                return _Ready(content, SUFFIX_OF[about.kind], size, "")
            pixels, _aspect = decode(content, size, 1 if about.grey else 3)
        except Unreadable as reason:
            return str(reason)
        buffer = BytesIO()
        image = Image.fromarray(pixels[0] if about.grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        image.save(buffer, "JPEG", quality=self.how.quality or QUALITY)
        return _Ready(buffer.getvalue(), "jpg", size, _lost(about))


def _lost(about: About) -> str:
    """What JPEG takes from an image beyond what it always does."""
    if about.bits > 8:
        return f"{about.bits} bits a channel become 8"
    if about.dropped:
        return f"{about.dropped} of {3 + about.dropped} bands dropped, for JPEG holds three"
    return "transparency is put on white" if about.transparent else ""
