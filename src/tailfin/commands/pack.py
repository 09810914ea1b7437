"""`pack` as a function: any source into tar shards, by threads, and resumable."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tailfin.data.load import list_source
from tailfin.data.packing.card import written
from tailfin.data.packing.shards import Packer, Packing
from tailfin.data.passes import as_encoded, check_workers, processors
from tailfin.data.source import Encoded, Listing, Progress
from tailfin.data.sources.manifest import NAME, Manifest, Shard, read_manifest
from tailfin.errors import UserError, printable
from tailfin.files import lock, make_folder, remove_unfinished, write_atomically

SKIPPED, CARD, _LOCK = "skipped.tsv", "README.md", ".lock"


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
    check_workers(workers)
    source = Path(data).expanduser()
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {data}, and would become a part of it; choose another folder")
    listing = list_source(data, follow_links=follow_links)
    for note in listing.notes:
        tell(note)
    encoded = as_encoded(listing)
    order = torch.cat([(~listing.test).nonzero().flatten(), listing.test.nonzero().flatten()]).numpy()
    with _alone(out):
        before = _begun(out, _fingerprint(encoded, listing), how, listing.classes, len(order))
        if not before.complete:
            packer = Packer(
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


def _begun(out: Path, source: str, how: Packing, classes: tuple[str, ...] | None, count: int) -> Manifest:
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
    places = [*(each[0] for each in manifest.skipped), *(shard.stop - 1 for shard in manifest.shards)]
    if not all(0 <= place < count for place in places):
        raise UserError(f"{out / NAME} is damaged: it tells of more than the {count} images that there are")
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
