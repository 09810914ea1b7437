"""The command `cache`: what the cache holds, whether it is whole, and how to be rid of it."""

import json
from contextlib import suppress
from pathlib import Path

from tailfin.data import entries
from tailfin.errors import UserError, printable
from tailfin.files import cache_folder, cannot_write, size_on_disk


def show(action: str, folder: str | None) -> int:
    """`tailfin cache`: returns the exit code, 1 where `check` found damage.

    Raises:
        UserError: There is no such folder, or something cannot be removed.
    """
    cache = cache_folder(folder)
    if folder is not None and not cache.is_dir():
        raise UserError(f"no cache at {cache}: no such folder")
    print(f"cache       {cache}")
    if freed := entries.remove_leftovers(cache / "decoded"):
        print(f"            removed {_size(freed)} that killed runs had left")
    if action == "check":
        return _check(cache)
    if action == "clear":
        return _clear(cache)
    if size := size_on_disk(cache / "downloads"):
        print(f"downloads   {_size(size)}")
    for entry in _decoded(cache):
        print(f"decoded     {_size(size_on_disk(entry))}  {printable(entries.words_of(entry))}")
    for trial in _trials(cache):
        print(f"trial       {printable(_words(trial))}")
    return 0


def _check(cache: Path) -> int:
    damaged = 0
    for entry in _decoded(cache):
        try:
            entries.read(entry, -1, thorough=True)
        except entries.Damaged as reason:
            damaged += 1
            print(f"damaged     {entry}: {reason}; its next reader makes it again")
    print(f"decoded     {len(_decoded(cache))} checked, {damaged} damaged")
    return 1 if damaged else 0


def _clear(cache: Path) -> int:
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
    print(f"            removed {_size(freed)}" + (f"; {busy} are being written, and stay" if busy else ""))
    return 0


def _decoded(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "decoded").glob("*") if not path.name.startswith("."))


def _trials(cache: Path) -> list[Path]:
    return sorted((cache / "trials").glob("*.json"))


def _words(trial: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(trial.read_text(encoding="utf-8"))["words"])
    return f"{trial.name}: not readable; it is made again when it is asked for"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
