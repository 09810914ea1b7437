"""`cache` as functions: what the cache holds, whether it is whole, and how to be rid of it."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tailfin.data import entries
from tailfin.errors import UserError
from tailfin.files import cache_folder, cannot_write, size_on_disk


@dataclass(frozen=True)
class Contents:
    """What a cache holds; sizes in bytes.

    Attributes:
        downloads: Size of the downloaded files.
        decoded: Size and words of each set of decoded images.
        trials: Words of each trial of precisions and memory formats.
    """

    downloads: int
    decoded: list[tuple[int, str]]
    trials: list[str]


@dataclass(frozen=True)
class Leftovers:
    """The bytes that killed runs had left, and that were removed."""

    size: int


@dataclass(frozen=True)
class DamagedEntry:
    """A set of decoded images, and what is wrong with it."""

    entry: Path
    reason: str


@dataclass(frozen=True)
class Checked:
    """How many sets of decoded images were read through, and the damaged ones."""

    entries: int
    damaged: list[DamagedEntry]


@dataclass(frozen=True)
class Cleared:
    """The bytes that were removed, and how many entries stay because they are being written."""

    size: int
    busy: int


def find_cache(folder: str | None) -> Path:
    """The cache's folder.

    Raises:
        UserError: `folder` is not there.
    """
    cache = cache_folder(folder)
    if folder is not None and not cache.is_dir():
        raise UserError(f"no cache at {cache}: no such folder")
    return cache


def remove_leftovers(cache: Path) -> Leftovers:
    """Remove what killed runs had left."""
    return Leftovers(entries.remove_leftovers(cache / "decoded"))


def contents(cache: Path) -> Contents:
    """What the cache holds."""
    return Contents(
        size_on_disk(cache / "downloads"),
        [(size_on_disk(entry), entries.words_of(entry)) for entry in _decoded(cache)],
        [_words(trial) for trial in _trials(cache)],
    )


def check(cache: Path, tell: Callable[[DamagedEntry], object] = lambda _: None) -> Checked:
    """Read every set of decoded images through for its checksums.

    Args:
        cache: See `find_cache`.
        tell: Takes each damaged one when it is found.
    """
    found, damaged = _decoded(cache), list[DamagedEntry]()
    for entry in found:
        try:
            entries.read(entry, -1, thorough=True)
        except entries.Damaged as reason:
            damaged.append(DamagedEntry(entry, str(reason)))
            tell(damaged[-1])
    return Checked(len(found), damaged)


def clear(cache: Path) -> Cleared:
    """Remove all but the downloads, and what other processes are writing.

    Raises:
        UserError: Something cannot be removed.
    """
    freed, busy = 0, 0
    for entry in _decoded(cache):
        size = size_on_disk(entry)
        if entries.remove(entry):
            freed += size
        else:
            busy += 1
    for trial in _trials(cache):
        freed += size_on_disk(trial)
        try:
            trial.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(trial, error) from None
    return Cleared(freed, busy)


def _decoded(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "decoded").glob("*") if not path.name.startswith("."))


def _trials(cache: Path) -> list[Path]:
    return sorted((cache / "trials").glob("*.json"))


def _words(trial: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(trial.read_text(encoding="utf-8"))["words"])
    return f"{trial.name}: not readable; it is made again when it is asked for"
