"""Decoded images kept on disk: each entry is whole or not there, and is checked before it is used."""

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from tailfin.errors import UserError
from tailfin.files import cannot_write, lock, make_folder, size_on_disk, write_atomically

LAYOUT: Final = 2
"""Raised when entries change, so that an old one is not found and not misread."""
_UNFINISHED: Final = ".unfinished-"
_ARRAYS: Final = ("images.npy", "aspect.npy")

Fill = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], dict[int, str]]]
"""Fills uint8 [N, C, H, W]; gives float32 [N] aspects, and the reasons for the positions that could not be read."""


class Damaged(Exception):
    """An entry that cannot be used; the message says why."""


@dataclass(frozen=True)
class Entry:
    """What an entry holds.

    Attributes:
        images: uint8 [M, C, H, W], mapped copy-on-write: who writes into it changes no file.
        aspect: float32 [M].
        squashed: Whether the images were brought to one size, so that `aspect` is needed.
        reasons: Why each position that is not among the M was not read.
    """

    images: NDArray[np.uint8]
    aspect: NDArray[np.float32]
    squashed: bool
    reasons: dict[int, str]


@contextmanager
def writing(entry: Path, wait: Callable[[], object]) -> Iterator[None]:
    """Be the only process that makes this entry; `wait` is called first where another one is at it.

    What is asked for twice at once, as by a study's runs side by side, is decoded once.
    """
    make_folder(entry.parent)
    path = _lock(entry)
    try:
        handle = lock.acquire(path)
        if handle is None:
            wait()
            handle = lock.acquire(path, wait=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    assert handle is not None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release(handle)


def write(entry: Path, shape: tuple[int, ...], fill: Fill, *, squashed: bool, words: str) -> None:
    """Make an entry, which appears under its name only when it is whole; for who is in `writing`.

    Args:
        entry: Its folder.
        shape: Of the images, [N, C, H, W].
        fill: Decodes them.
        squashed: Whether they are brought to one size.
        words: What they are, for `tailfin cache`.

    Raises:
        UserError: The disk is too small, or cannot be written to. Nothing is left behind.
    """
    work = entry.with_name(f"{_UNFINISHED}{entry.name}")
    try:
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            images = _reserve(work / "images.npy", shape)
        except OSError as error:
            raise _no_room(work, error, shape) from None
        aspect, reasons = fill(images)
        try:
            kept = np.ones(len(images), dtype=np.bool_)
            kept[list(reasons)] = False
            compact(images, kept)
            images.flush()
            del images
            with (work / "aspect.npy").open("wb") as file:
                np.save(file, aspect[kept])
                file.flush()
                os.fsync(file.fileno())
            about = {
                "words": words,
                "squashed": squashed,
                "skipped": [[position, reasons[position]] for position in sorted(reasons)],
                "checksums": {name: _checksum(work / name) for name in _ARRAYS},
            }
            _seal(work, about)
            if entry.exists():
                shutil.rmtree(entry)
            os.rename(work, entry)
        except OSError as error:
            raise cannot_write(entry, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read(entry: Path, count: int, *, thorough: bool = False) -> Entry | None:
    """What an entry holds; None where there is none.

    Its files are read through for their checksums where the system says that something wrote them since they were
    checked last (or another machine did, and they were copied); else they are as they were.

    Args:
        entry: Its folder.
        count: Images that were asked for, N; -1 for any number.
        thorough: Whether to read the files through in any case.

    Raises:
        Damaged: It is cut, changed, or not an entry.
    """
    if not entry.is_dir():
        return None
    try:
        told = json.loads((entry / "index.json").read_text(encoding="utf-8"))
        about, stamps = told["about"], told["stamps"]
        if told["checksum"] != _checksum_of(about):
            raise Damaged("its index was changed")
        if thorough or stamps != _stamps(entry):
            for name in _ARRAYS:
                if about["checksums"][name] != _checksum(entry / name):
                    raise Damaged(f"{name} was cut or changed")
            if not thorough:
                with suppress(UserError):  # where the cache can be read alone, it is read through each time
                    _seal(entry, about)
        # Copy-on-write: a caller who writes into the tensor changes neither the file nor crashes.
        images = np.load(entry / "images.npy", mmap_mode="c", allow_pickle=False)
        aspect = np.load(entry / "aspect.npy", allow_pickle=False)
        reasons = {int(position): str(reason) for position, reason in about["skipped"]}
        whole = len(aspect) + len(reasons)
        if len(images) != whole or count not in (-1, whole):
            raise Damaged("it holds another number of images")
        return Entry(images[: len(aspect)], aspect, bool(about["squashed"]), reasons)
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError):
        raise Damaged("it is not one that this version can read") from None


def words_of(entry: Path) -> str:
    """What an entry's images are."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads((entry / "index.json").read_text(encoding="utf-8"))["about"]["words"])
    return "unknown images"


def remove(entry: Path) -> bool:
    """Remove an entry, unless another process is making it; who has it mapped keeps what he sees.

    Raises:
        UserError: It cannot be removed.
    """
    path = _lock(entry)
    try:
        handle = lock.acquire(path)
        if handle is None:
            return False
        try:
            # First out of its name: an entry is whole or not there.
            gone = entry.with_name(f"{_UNFINISHED}{entry.name}")
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(entry, gone)
            shutil.rmtree(gone)
        finally:
            path.unlink()
            lock.release(handle)
    except OSError as error:
        raise cannot_write(entry, error) from None
    return True


def remove_leftovers(folder: Path) -> int:
    """Remove what killed writers left in a folder of entries; returns its size in bytes."""
    freed = 0
    for left in folder.glob(f"{_UNFINISHED}*"):
        entry = left.with_name(left.name.removeprefix(_UNFINISHED))
        with suppress(OSError):
            handle = lock.acquire(_lock(entry))
            if handle is not None:
                size = size_on_disk(left)
                shutil.rmtree(left, ignore_errors=True)
                freed += size - size_on_disk(left)
                _lock(entry).unlink()
                lock.release(handle)
    return freed


def compact(values: NDArray[Any], kept: NDArray[np.bool_]) -> None:
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


def _lock(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _reserve(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new array file, mapped, whose room on the disk is its own: a mapped write to a full disk kills by SIGBUS."""
    with path.open("xb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        whole = file.tell() + math.prod(shape)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, whole)
        else:
            if whole > shutil.disk_usage(path.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate(whole)
    return cast("np.memmap[Any, np.dtype[np.uint8]]", np.load(path, mmap_mode="r+"))


def _no_room(work: Path, error: OSError, shape: tuple[int, ...]) -> UserError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return cannot_write(work, error)
    free = shutil.disk_usage(work.parent).free
    return UserError(
        f"the decoded images need {math.prod(shape) / 1e9:.1f} GB, too much for memory, and {work.parent} has"
        f" {free / 1e9:.1f} GB free ({error.strerror}); use a smaller image size, --limit, or another --cache folder"
    )


def _seal(entry: Path, about: dict[str, Any]) -> None:
    sealed = {"about": about, "checksum": _checksum_of(about), "stamps": _stamps(entry)}
    write_atomically(entry / "index.json", json.dumps(sealed).encode())


def _stamps(entry: Path) -> dict[str, list[int]]:
    """What no write to a file leaves as it is: nobody can set the time of a file's last change (ctime)."""
    status = {name: (entry / name).stat() for name in _ARRAYS}
    return {name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in status.items()}


def _checksum_of(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            found = zlib.crc32(piece, found)
    return found
