"""`pack` as a function: any source into tar shards, by threads, and resumable."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tailfin.commands.card import written
from tailfin.data.about import SUFFIX_OF, About, check_pixels, fitted, look, read_whole
from tailfin.data.decode import decode, quiet
from tailfin.data.load import list_source
from tailfin.data.passes import as_encoded, mapped, processors
from tailfin.data.source import Blob, Encoded, Listing, Progress, Unreadable
from tailfin.data.sources.manifest import NAME, Manifest, Shard, read_manifest, write_manifest
from tailfin.errors import UserError, printable
from tailfin.files import lock, make_folder, remove_unfinished, write_atomically
from tailfin.files.tar_writing import TarWriter

QUALITY: Final = 90
"""Of the JPEG that shrunk images become, where nothing else is asked."""
SKIPPED, CARD, _LOCK = "skipped.tsv", "README.md", ".lock"
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
class Packed:
    """What was packed.

    Attributes:
        out: The folder.
        images: Images in all shards.
        shards: Their number.
        bytes: Their size.
        skipped: Images that could not be read.
        kept: Shards that an earlier run had finished.
    """

    out: Path
    images: int
    shards: int
    bytes: int
    skipped: int
    kept: int


@dataclass(frozen=True)
class _Ready:
    """An image as it is written; `lost` says what its recompression took from it, empty if nothing."""

    content: bytes
    suffix: str
    size: tuple[int, int]
    lost: str


def pack(
    data: str,
    out: Path,
    how: Packing,
    *,
    follow_links: bool = False,
    workers: int | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Progress | None = None,
) -> Packed:
    """Write the images of a source as tar shards that `--data` and WebDataset read.

    Every image is decoded once, and those that cannot be read are left out and listed. Finished shards of an
    earlier run are kept where the source and `how` are the same.

    Args:
        data: The source, as `tailfin.data.load` takes it.
        out: A folder that is new, empty, or of an earlier run.
        how: How they are packed.
        follow_links: See `load`.
        workers: Threads; one a processor, up to 16, if None.
        tell: Takes each line that a user should read.
        progress: Called with the number of images done and their total.

    Raises:
        UserError: For the source, as `load`; if no image can be read; if `out` holds something else, lies in
            `data`, or cannot be written.
    """
    how.check()
    source = Path(data).expanduser()
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {data}, and would become a part of it; choose another folder")
    listing = list_source(data, follow_links=follow_links)
    for note in listing.notes:
        tell(note)
    encoded = as_encoded(listing)
    order = torch.cat([(~listing.test).nonzero().flatten(), listing.test.nonzero().flatten()]).numpy()
    with _alone(out):
        before = _begun(out, _fingerprint(encoded, listing), how, listing.classes)
        if not before.complete:
            packer = _Packer(
                listing, encoded, order, out, how, before, workers or processors(), tell, progress
            )
            manifest = packer.run()
            if not manifest.shards:
                _, name, reason = manifest.skipped[0]
                raise UserError(f"{data}: none of {len(order)} images can be read: {name}: {reason}")
        else:
            manifest = before
        # Written where all is done too: who has lost them gets them back.
        rows = "".join(f"{name}\t{reason}\n" for _, name, reason in manifest.skipped)
        if rows:
            write_atomically(out / SKIPPED, rows.encode(errors="backslashreplace"))
        write_atomically(out / CARD, written(listing, manifest, order).encode(errors="backslashreplace"))
    return Packed(
        out,
        sum(shard.images for shard in manifest.shards),
        len(manifest.shards),
        sum(shard.bytes for shard in manifest.shards),
        len(manifest.skipped),
        len(before.shards),
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Be the only process that packs into a folder."""
    make_folder(out)
    others = [] if (out / NAME).is_file() else sorted(each.name for each in out.glob("[!.]*"))
    if others:
        raise UserError(f"{out} holds {printable(others[0])} and no {NAME}; choose a new or empty folder")
    try:
        handle = lock.acquire(out / _LOCK)
    except OSError as error:
        raise UserError(f"cannot write {out / _LOCK}: {error.strerror}") from None
    if handle is None:
        raise UserError(f"another process packs into {out} now")
    try:
        remove_unfinished(out / hidden.name[1:-9] for hidden in list(out.glob(".*.????????")))
        yield
    finally:
        (out / _LOCK).unlink(missing_ok=True)
        lock.release(handle)


def _begun(out: Path, source: str, how: Packing, classes: tuple[str, ...] | None) -> Manifest:
    """What an earlier run has finished, up to the first shard that is not as it left it."""
    manifest = read_manifest(out)
    if manifest is None:
        if (out / NAME).exists():
            raise UserError(f"{out / NAME} is another program's; choose another folder")
        return Manifest(source, asdict(how), classes, (), (), complete=False)
    if not manifest.shards:
        return Manifest(source, asdict(how), classes, (), (), complete=False)
    if manifest.settings != asdict(how):
        was = ", ".join(f"{name} {value}" for name, value in manifest.settings.items() if value is not None)
        raise UserError(f"{out} was packed with other settings ({printable(was)}); choose another folder")
    if manifest.source != source:
        raise UserError(
            f"{out} was packed from other images, or they have changed since; choose another folder"
        )
    whole: list[Shard] = []
    for shard in manifest.shards:
        file = out / Path(shard.name).name
        if not file.is_file() or file.stat().st_size != shard.bytes:
            break
        whole.append(shard)
    if len(whole) == len(manifest.shards):
        return manifest
    reached = whole[-1].stop if whole else 0
    skipped = tuple(each for each in manifest.skipped if each[0] < reached)
    return Manifest(source, asdict(how), classes, tuple(whole), skipped, complete=False)


def _fingerprint(encoded: Encoded, listing: Listing) -> str:
    labels = b"" if listing.labels is None else listing.labels.numpy().tobytes()
    digest = hashlib.sha256(encoded.fingerprint().encode() + labels + listing.test.numpy().tobytes())
    return digest.hexdigest()


@dataclass
class _Packer:
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
        self.lost: set[str] = set()
        training = int((~self.listing.test).sum())
        with quiet():
            for split, first, stop in (("train", 0, training), ("test", training, len(self.order))):
                done = max([first, *(shard.stop for shard in self.shards if shard.name.startswith(split))])
                if done < stop:
                    self._write(split, done, stop)
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
                if image.lost and image.lost not in self.lost:
                    self.lost.add(image.lost)
                    self.tell(
                        f"{printable(self.encoded.name(int(self.order[place])))}: {image.lost}; and others"
                    )
                yield place, image
            else:
                name = printable(self.encoded.name(int(self.order[place])))
                self.skipped.append((place, name, printable(image)))

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
