"""`data` as a function: what a source holds, found in one pass over all of its images."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tailfin.data.about import About, check_pixels, fitted, look, read_whole
from tailfin.data.decode import decode, quiet
from tailfin.data.load import list_source
from tailfin.data.passes import as_encoded, check_workers, mapped, processors
from tailfin.data.source import Blob, Encoded, Listing, Progress, Unreadable
from tailfin.data.sources.manifest import Manifest, read_manifest
from tailfin.data.types import Skipped
from tailfin.errors import UserError, printable

SAMPLE: Final = 1000
SAMPLE_SIDE: Final = 336
"""Longest side at which the sample's statistics are taken, as large as images are stored by default."""


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of a number."""

    least: int
    median: int
    most: int


@dataclass(frozen=True)
class Duplicates:
    """Images whose files are the same byte for byte.

    Attributes:
        count: Images that repeat an earlier one.
        across: Test images that are training images too.
        contradicting: Those of `count` whose label is another than that of the first.
        groups: Names of the first few groups.
    """

    count: int
    across: int
    contradicting: int
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Inventory:
    """What a source holds.

    Attributes:
        name: Its name.
        images: Images that can be read, by split: `train`, and `test` where the source has one.
        classes: Name of each class, and its readable images by split; None without labels.
        unlabelled: Readable images without a label, where others have one.
        bytes: Size of the encoded images; None for a source of pixels.
        width, height: In pixels, as displayed.
        kinds: Images of each format, mode and bits a channel, the most frequent first.
        deep: Images of more than 8 bits a channel, of which training sees 8.
        dropped: Images with bands beyond the third, which training does not see.
        transparent: Images with transparency, which is put on white.
        duplicates: Images that are there more than once.
        mean, std: Per channel in [0, 1], of `sampled` images of equal weight; one channel if every image is grey.
        sampled: How many.
        skipped: Images that cannot be read.
        shards: Shards whose checksum was compared; None where there are no checksums.
        damaged: Those whose content is not what `tailfin pack` wrote.
    """

    name: str
    images: dict[str, int]
    classes: tuple[tuple[str, dict[str, int]], ...] | None
    unlabelled: int
    bytes: int | None
    width: Spread
    height: Spread
    kinds: tuple[tuple[str, int], ...]
    deep: int
    dropped: int
    transparent: int
    duplicates: Duplicates
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampled: int
    skipped: tuple[Skipped, ...]
    shards: int | None
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """One image: what it is, the hash of its bytes, their number, and moments [2, 3] where it is in the sample."""

    about: About
    digest: bytes
    size: int
    moments: NDArray[np.float64] | None


def look_through(
    data: str,
    *,
    follow_links: bool = False,
    workers: int | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Progress | None = None,
) -> Inventory:
    """Decode every image of a source once, and say what is in it.

    Args:
        data: The source, as `tailfin.data.load` takes it.
        follow_links: See `load`.
        workers: Threads; one a processor, up to 16, if None.
        tell: Takes each line that a user should read.
        progress: Called with the number of images done and their total.

    Raises:
        UserError: For the source, as `load`, or if no image can be read.
    """
    check_workers(workers)
    listing = list_source(data, follow_links=follow_links)
    for note in listing.notes:
        tell(note)
    manifest = read_manifest(Path(data)) if Path(data).is_dir() else None
    encoded = as_encoded(listing)
    sample = set(np.linspace(0, encoded.count - 1, min(encoded.count, SAMPLE)).round().astype(int).tolist())

    def work(i: int, blob: Blob) -> _Found | str:
        try:
            content = read_whole(blob)
            about = look(content)
            moments = None
            if i in sample:
                moments = _moments(decode(content, fitted(about, SAMPLE_SIDE), 3)[0])
            else:
                check_pixels(content, about)
        except Unreadable as reason:
            return str(reason)
        return _Found(about, hashlib.sha256(content).digest()[:16], len(content), moments)

    tally = _Tally(listing, encoded)
    with quiet():
        every = range(encoded.count)
        for i, found in enumerate(mapped(encoded, every, work, workers or processors(), progress)):
            tally.add(i, found)
    if not tally.widths:
        lost = tally.skipped[0]
        raise UserError(f"{data}: none of {encoded.count} images can be read: {lost.name}: {lost.reason}")
    damaged = () if manifest is None else _damaged(Path(data), manifest)
    return tally.inventory(None if manifest is None else len(manifest.shards), damaged)


def _moments(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and mean square [2, C] in [0, 1] of an image's channels, uint8 [C, H, W]."""
    values = np.arange(256) / 255
    shares = np.stack([np.bincount(each.ravel(), minlength=256) / each.size for each in pixels])
    return np.stack([shares @ values, shares @ values**2])


@dataclass
class _Tally:
    """Counts images as they come."""

    listing: Listing
    encoded: Encoded
    widths: "array[int]" = field(default_factory=lambda: array("i"))
    heights: "array[int]" = field(default_factory=lambda: array("i"))
    skipped: list[Skipped] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[bytes, int] = field(default_factory=dict)
    again: dict[int, list[int]] = field(default_factory=dict)
    bytes: int = 0
    deep: int = 0
    dropped: int = 0
    transparent: int = 0
    coloured: bool = False
    moments: list[NDArray[np.float64]] = field(default_factory=list)
    readable: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, i: int, found: _Found | str) -> None:
        """Count an image, or the reason why it cannot be read."""
        if isinstance(found, str):
            self.skipped.append(Skipped(printable(self.encoded.name(i)), printable(found)))
            return
        about = found.about
        self.readable.append(i)
        self.widths.append(about.width)
        self.heights.append(about.height)
        kind = about.kind if isinstance(self.listing.images, Encoded) else "pixels"
        self.kinds[f"{kind} {about.mode} of {about.bits} bit{'s' if about.bits > 1 else ''}"] += 1
        self.bytes += found.size
        self.deep += about.bits > 8
        self.dropped += about.dropped > 0
        self.transparent += about.transparent
        self.coloured = self.coloured or not about.grey
        if found.moments is not None:
            self.moments.append(found.moments)
        if (earlier := self.first.setdefault(found.digest, i)) != i:
            self.again.setdefault(earlier, []).append(i)

    def inventory(self, shards: int | None, damaged: tuple[str, ...]) -> Inventory:
        """All that was counted."""
        listing = self.listing
        index = torch.from_numpy(np.array(self.readable))
        test = listing.test[index]
        images = {"train": int((~test).sum())} | (
            {"test": int(test.sum())} if bool(listing.test.any()) else {}
        )
        classes, unlabelled = None, 0
        if listing.labels is not None and listing.classes is not None:
            labels = listing.labels[index]
            unlabelled = int((labels < 0).sum())
            counts = {
                split: torch.bincount(
                    labels[(labels >= 0) & (test == (split == "test"))], minlength=len(listing.classes)
                )
                for split in images
            }
            classes = tuple(
                (printable(name), {split: int(counts[split][label]) for split in images})
                for label, name in enumerate(listing.classes)
            )
        mean, square = np.mean(self.moments, axis=0) if self.moments else np.zeros((2, 3))
        std = np.sqrt(np.maximum(square - mean**2, 0))
        channels = 3 if self.coloured else 1
        return Inventory(
            listing.name,
            images,
            classes,
            unlabelled,
            self.bytes if isinstance(listing.images, Encoded) else None,
            _spread(self.widths),
            _spread(self.heights),
            tuple(self.kinds.most_common()),
            self.deep,
            self.dropped,
            self.transparent,
            self._duplicates(),
            tuple(mean[:channels].tolist()),
            tuple(std[:channels].tolist()),
            len(self.moments),
            tuple(self.skipped),
            shards,
            damaged,
        )

    def _duplicates(self, most: int = 5) -> Duplicates:
        labels, test = self.listing.labels, self.listing.test
        across = contradicting = 0
        for first, others in self.again.items():
            group = [first, *others]
            if any(not test[i] for i in group):
                across += sum(bool(test[i]) for i in group)
            if labels is not None:
                contradicting += sum(bool(labels[i] != labels[first]) for i in others)
        groups = tuple(
            tuple(printable(self.encoded.name(i)) for i in (first, *others))
            for first, others in list(self.again.items())[:most]
        )
        return Duplicates(sum(map(len, self.again.values())), across, contradicting, groups)


def _spread(values: "array[int]") -> Spread:
    return Spread(min(values), int(np.median(values)), max(values))


def _damaged(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """The shards whose SHA-256 is not the one that is told of them."""
    found = []
    for shard in manifest.shards:
        try:
            with (folder / Path(shard.name).name).open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except OSError:
            right = False
        if not right:
            found.append(printable(shard.name))
    return tuple(found)
