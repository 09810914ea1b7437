"""`load`: from what the user wrote after `--data` to decoded training and test images."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tailfin.data.source import Decoded, Listing, Progress
from tailfin.data.split import random_subset, validation_split
from tailfin.data.types import Dataset, ImageSet, Skipped, channel_statistics
from tailfin.errors import UserError, printable, unknown
from tailfin.files import cache_folder

NAMED: Final = ("cifar10", "cifar100", "stl10", "fashion_mnist")
NAMES: Final = ("shapes", *NAMED)
HELD_OUT: Final = 0.15


def load(
    spec: str,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    tolerate: float = 0.01,
    follow_links: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Dataset:
    """Images of `spec`, decoded once, as uint8.

    Args:
        spec: `shapes` (generated), `cifar10`, `cifar100`, `stl10`, `fashion_mnist`, or the path of a folder
            of images or class folders, of Parquet files (Hugging Face layout), of tar shards (WebDataset
            layout) or of IDX files, or of one such file.
        image_size: Side of the views to be drawn, in pixels; decides the stored size of originals that differ
            in size.
        limit: At most so many training images, drawn by seed and with the source's class shares, before any
            is decoded. The test split is never limited.
        seed: Draws the generated images, the limited subset, and the held-out test images.
        tolerate: Share of images that may be unreadable, in [0, 1].
        follow_links: Whether links that lead out of the folder `spec` are followed.
        cache: Folder for downloads and for decoded images that do not fit in memory; `cache_folder()` if None.
        workers: Decoding threads; one a processor, up to 16, if None.
        progress: Called now and then with the number of images decoded and their total.
        say: Called with each line that a user should read.

    Where a source has labels but no test split, a stratified 15 % is held out. Without labels there is no
    test split.

    Raises:
        UserError: For an unknown or empty source, damaged files, or too many unreadable images.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1")
    if not 0 <= tolerate <= 1:
        raise UserError(f"--tolerate is {tolerate}; it must lie between 0 and 1")
    cache = cache or cache_folder()
    listing = list_source(spec, cache=cache, seed=seed, follow_links=follow_links)
    for note in listing.notes:
        say(note)
    if listing.labels is not None and (lost := int((listing.labels[listing.test] < 0).sum())):
        say(f"{lost} images of the test split have no label to judge with, and are passed over")
    train, test = _partition(listing, limit, seed)
    index = torch.cat([train, test])
    if isinstance(listing.images, Tensor):
        whole = torch.ones(len(index), dtype=torch.bool)
        decoded = Decoded(listing.images[index], whole, aspect=None, skipped=())
    else:
        from tailfin.data.passes import processors
        from tailfin.data.store import decode_all

        decoded = decode_all(
            listing.images,
            index.tolist(),
            image_size=image_size,
            cache=cache,
            workers=workers or processors(),
            progress=progress,
            words=spec,
            say=say,
        )
    images, kept, aspect, skipped = decoded.images, decoded.kept, decoded.aspect, decoded.skipped
    cut = int(kept[: len(train)].sum())
    if cut == 0:
        raise UserError(f"{spec}: none of {len(index)} images can be read: {_first(skipped)}")
    _check(skipped, len(index), tolerate, spec)
    labels = None if listing.labels is None else listing.labels[index][kept]

    def part(start: int, stop: int) -> ImageSet:
        pick = lambda values: None if values is None else values[start:stop]  # noqa: E731
        return ImageSet(images[start:stop], pick(labels), listing.classes, pick(aspect))

    fit = part(0, cut)
    if fit.labels is not None and (without := int((fit.labels < 0).sum())):
        say(
            f"{without} of {len(fit)} training images have no label: trained on, and left out where labels judge"
        )
    held = part(cut, len(images)) if len(images) > cut else None
    return Dataset(listing.name, fit, held, *channel_statistics(fit.images), skipped)


def _partition(listing: Listing, limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test images."""
    train, test = (~listing.test).nonzero().flatten(), listing.test.nonzero().flatten()
    if listing.labels is None:
        # Without labels there is nothing to judge with.
        test = test[:0]
    elif len(test) == 0:
        # Before the limit, so that runs of different limits are judged on the same images.
        fit, held = validation_split(listing.labels[train], HELD_OUT, seed)
        train, test = train[fit], train[held]
    else:
        test = test[listing.labels[test] >= 0]
    if limit is not None and limit < len(train):
        labels = None if listing.labels is None else listing.labels[train]
        train = train[random_subset(len(train), limit, seed, labels)]
    return train, test


def _first(skipped: tuple[Skipped, ...], most: int = 3) -> str:
    some = "; ".join(f"{each.name}: {each.reason}" for each in skipped[:most])
    return some + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")


def _check(skipped: tuple[Skipped, ...], count: int, tolerate: float, spec: str) -> None:
    # The slack keeps "1 % of 2,000" at 20 whatever the rounding of the product.
    if len(skipped) > tolerate * count + 1e-9:
        share = len(skipped) / count
        allow = f"; to go on without them: --tolerate {min(1.0, math.ceil(share * 100) / 100):g}"
        raise UserError(
            f"{spec}: {len(skipped)} of {count} images cannot be read, more than --tolerate {tolerate:g}:"
            f" {_first(skipped)}{allow}"
        )


def list_source(
    spec: str, *, cache: Path | None = None, seed: int = 0, follow_links: bool = False
) -> Listing:
    """What `spec` holds, before anything is decoded; each kind of source is imported only when it is used.

    Args:
        spec: See `load`.
        cache: See `load`.
        seed: Draws the generated images.
        follow_links: See `load`.

    Raises:
        UserError: For an unknown or empty source, or damaged files.
    """
    if spec == "shapes":
        from tailfin.data.sources.shapes import list_shapes

        return list_shapes(seed)
    if spec in NAMED:
        from tailfin.data.sources.named import list_named

        return list_named(spec, (cache or cache_folder()) / "downloads")
    try:
        path = Path(spec).expanduser()
    except RuntimeError as error:  # ~ of a user whom nobody knows
        raise UserError(f"{spec}: {error}") from None
    try:
        if not spec or not path.exists():
            raise _missing(spec, path)
        return _list_path(path, follow_links)
    except (OSError, ValueError) as error:  # a name that holds NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{printable(spec)}: cannot be read: {reason or error}") from error


def _list_path(path: Path, follow_links: bool) -> Listing:
    from tailfin.data.sources import folder, idx, parquet, tar

    if path.is_file():
        if path.suffix == ".parquet":
            return parquet.list_parquet(path)
        if path.suffix == ".tar":
            return tar.list_tar(path)
        if path.name.lower().endswith(tar.COMPRESSED):
            raise UserError(
                f"{path}: compressed; unpack it: images are read from folders and plain tar files"
            )
        if idx.is_idx(path):
            return idx.list_idx(path)
        if path.suffix.lower() in folder.SUFFIXES:
            raise UserError(f"{path} is one image; name the folder that it is in: {path.parent}")
        raise UserError(
            f"{path}: neither a Parquet nor a tar nor an IDX file; allowed: a folder of images, *.parquet, *.tar, "
            "*-ubyte[.gz]"
        )
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder")
    if parquet.find_files(path):
        return parquet.list_parquet(path, follow_links=follow_links)
    if idx.find_files(path):
        return idx.list_idx(path, follow_links=follow_links)
    tars = tar.find_files(path)
    # An archive often still lies beside what was unpacked from it.
    if tars and not folder.holds_images(path, follow_links=follow_links):
        return tar.list_tar(path, follow_links=follow_links)
    packed = sorted(each.name for each in path.iterdir() if each.name.lower().endswith(tar.COMPRESSED))
    if packed and not folder.holds_images(path, follow_links=follow_links):
        raise UserError(f"{path}: no images, and {printable(packed[0])} is compressed; unpack it")
    listing = folder.list_folder(path, follow_links=follow_links)
    if tars:
        some = f"{printable(tars[0].name)}{f' and {len(tars) - 1} more' if len(tars) > 1 else ''}"
        note = f"{some} beside the images passed over; to read a tar, name it or a folder of tars alone"
        return replace(listing, notes=(*listing.notes, note))
    return listing


def _missing(spec: str, path: Path) -> UserError:
    """For a path that does not exist: names the nearest beside it, or the nearest named set."""
    if len(Path(spec).parts) < 2 and difflib.get_close_matches(spec, NAMES, n=1, cutoff=0.6):
        return unknown("data set", spec, NAMES, "--data")
    parent = path.parent
    if spec and parent.is_dir():
        siblings = [each.name for each in parent.iterdir() if not each.name.startswith(".")]
        near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
        hint = f"; did you mean {str(parent / near[0])!r}?" if near else ""
    else:
        hint = f"; the folder {parent} does not exist either" if spec else ""
    return UserError(f"no such path {spec!r} in --data; allowed: a path, or one of {', '.join(NAMES)}{hint}")
