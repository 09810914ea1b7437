"""Files that are whole or not there at all."""

import errno
import glob
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tailfin.errors import UserError


def cache_folder(chosen: str | None = None) -> Path:
    """Where downloads, decoded images and trials are kept: `chosen`, or the user's own place for caches."""
    if chosen:
        return Path(chosen).expanduser()
    # A relative one is to be passed over (XDG Base Directory Specification).
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "tailfin"


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        UserError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, whatever happens in between.

    A link at `path` is replaced, never followed.

    Raises:
        UserError: The folder cannot be written to, or the disk is full; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
        )
        try:
            with io.FileIO(handle, "wb") as file:
                _write_all(file, content)
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from None


def remove_unfinished(paths: Iterable[Path]) -> int:
    """Remove what killed writers of `paths` left beside them; returns its size in bytes.

    Only for who knows that no other process is writing them now.
    """
    freed = 0
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
            with suppress(OSError):
                size = left.lstat().st_size
                left.unlink()
                freed += size
    return freed


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder and below; what goes away meanwhile counts nothing."""
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            return path.lstat().st_size
        return 0
    return sum(size_on_disk(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def open_to_append(path: Path) -> io.FileIO:
    """A file to write at its end, unbuffered, made where it is not there.

    Raises:
        UserError: It cannot be written, or is a link: what a stranger's folder holds must not lead out of it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = io.FileIO(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link; nothing is written through links, so remove it") from None
        raise cannot_write(path, error) from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        file.close()
        what = "has another name elsewhere" if stat.S_ISREG(status.st_mode) else "is no plain file"
        raise UserError(f"{path} {what}; remove it") from None
    return file


def append(file: io.FileIO, path: Path, content: bytes) -> None:
    """Write to a file of `open_to_append`.

    Raises:
        UserError: The disk is full, or is gone.
    """
    try:
        _write_all(file, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> UserError:
    """The line that says why a file could not be written."""
    return UserError(f"cannot write {path}: {error.strerror or error}")


def _write_all(file: io.FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
