"""The members of a tar archive, read from its headers alone: where each file's bytes lie, and nothing unpacked.

Python's own `tarfile` believes what a header tells (2^60 bytes, names of a gigabyte) and keeps 1 kB a member.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tailfin.errors import UserError, printable

BLOCK: Final = 512
MOST_NAME: Final = 4096
"""Bytes of a member's name."""
_MOST_EXTENDED: Final = 2**20
"""Bytes of one extended header, which come before a member and hold what its own header has no room for."""
_EXTENDED, _EMPTY = b"LKxgX", b"123456"
"""Kinds of headers that tell of the next member, and of members without content, whatever size they tell."""
_ZERO: Final = bytes(BLOCK)
_PADDING: Final = 20 * BLOCK
_PACKED: Final = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstandard", b"PK": "zip"}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        name: As written, bytes that are no UTF-8 as surrogates.
        kind: `file`, `link`, or `other` (folders, devices, sparse files).
        offset: Where its content begins in the archive, in bytes.
        size: Length of the content in bytes.
    """

    name: str
    kind: str
    offset: int
    size: int


@dataclass
class Archive:
    """An archive that is open for reading.

    Attributes:
        file: Its path, for messages.
        handle: Its file descriptor.
        status: Size in bytes, and time of the last change in ns, as it was opened.
        doubt: What may be wrong with its end, in words, once `members` has come there; empty if nothing is.
    """

    file: Path
    handle: int
    status: tuple[int, int]
    doubt: str = ""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            UserError: There are fewer, or the disk fails.
        """
        try:
            found = os.pread(self.handle, size, offset)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read at byte {offset:,}: {error.strerror}") from None
        if len(found) < size:
            raise UserError(
                f"{self.file}: changed while it was read: it now ends before byte {offset + size:,}"
            )
        return found

    def check_unchanged(self, status: tuple[int, int]) -> None:
        """Compare with an earlier `status`.

        Raises:
            UserError: It is another.
        """
        if _status(self.handle) != status:
            raise UserError(f"{self.file}: changed since it was listed; start again")

    def members(self) -> Iterator[Member]:
        """Every member, in the archive's order.

        Raises:
            UserError: The archive is cut short, damaged, compressed, or no tar.
        """
        yield from _members(self)


@contextmanager
def opened(file: Path) -> Iterator[Archive]:
    """Open an archive.

    Raises:
        UserError: It cannot be opened, or is no plain file.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{file}: no plain file")
        yield Archive(file, handle, _status(handle))
    finally:
        os.close(handle)


def _status(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns


def _members(archive: Archive) -> Iterator[Member]:
    end, at = archive.status[0], 0
    if end == 0:
        raise UserError(f"{archive.file}: empty: 0 bytes")
    told: dict[str, str] = {}  # by extended headers, of the member that follows
    while at < end:
        block = archive.read(at, min(BLOCK, end - at))
        if block == _ZERO:
            archive.doubt = _after(archive, at)
            return
        _check_header(archive, block, at)
        kind, size, name = block[156:157], _number(archive, block, at), _name(archive, block, told, at)
        if kind in _EMPTY:
            size = 0
        elif "size" in told and kind not in _EXTENDED:
            size = _told_size(archive, told["size"], at)
        at = _after_map(archive, at) if kind == b"S" else at + BLOCK
        if at + size > end:
            raise UserError(
                f"{archive.file}: cut short or damaged: {printable(name)[:100]!r} should have {size:,} bytes from "
                f"byte {at:,} on, but the file ends at {end:,}"
            )
        if kind in _EXTENDED:
            _extend(archive, kind, at, size, told)
        else:
            yield Member(name, _kind(kind, name, told), at, size)
            told = {}
        at += -(-size // BLOCK) * BLOCK
    if told:
        raise UserError(f"{archive.file}: cut short: it ends where a member should begin, at byte {end:,}")
    archive.doubt = "has no mark at its end, and may be cut short"


def _after(archive: Archive, at: int) -> str:
    """What to say of that which follows the mark at the end: `cat a.tar b.tar` hides the second."""
    end = archive.status[0]
    rest = archive.read(at, min(_PADDING + BLOCK, end - at))
    if len(rest.rstrip(b"\0")) == 0:
        return ""
    return f"holds more after the mark at its end (byte {at:,}), which is passed over, as tar does"


def _check_header(archive: Archive, block: bytes, at: int) -> None:
    if len(block) == BLOCK:
        told = block[148:156].strip(b" \0")
        digits = told.split(b"\0")[0].strip()
        plain = sum(block) - sum(block[148:156]) + 8 * 32
        if digits.isdigit() and len(digits) < 8 and not set(digits) - set(b"01234567"):
            value = int(digits, 8)
            # Some old writers took the bytes for signed numbers.
            if value == plain or value == plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
                return
    if at:
        short = len(block) < BLOCK
        raise UserError(
            f"{archive.file}: {'cut short' if short else 'damaged'} at byte {at:,}: no whole header of a member"
        )
    for start, words in _PACKED.items():
        if block.startswith(start):
            raise UserError(
                f"{archive.file}: compressed by {words}; images are read from plain tar files alone, so unpack it"
            )
    raise UserError(f"{archive.file}: not a tar file (or its first header is damaged)")


def _number(archive: Archive, block: bytes, at: int) -> int:
    """The size field: octal digits, or a binary number where the first bit is set."""
    raw = block[124:136]
    if raw[0] & 0x80:
        size = int.from_bytes(raw[1:], "big") + ((raw[0] & 0x7F) << 88)
        if raw[0] & 0x40:
            raise UserError(f"{archive.file}: damaged at byte {at:,}: a member of negative size")
        return size
    digits = raw.split(b"\0")[0].strip()
    try:
        size = int(digits or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        words = f"the size of a member is {printable(digits.decode('latin-1'))!r}"
        raise UserError(f"{archive.file}: damaged at byte {at:,}: {words}, no octal number")
    return size


def _told_size(archive: Archive, text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise UserError(
            f"{archive.file}: damaged at byte {at:,}: a member's size is {printable(text)[:40]!r}"
        )
    return int(text)


def _name(archive: Archive, block: bytes, told: dict[str, str], at: int) -> str:
    if "path" in told:
        name = told["path"]
        if len(name) > MOST_NAME:
            raise UserError(
                f"{archive.file}: at byte {at:,}: a name of {len(name):,} characters; at most {MOST_NAME:,}"
            )
        return name
    plain = block[:100].split(b"\0")[0]
    # GNU's older header has times where this one has the front part of a long name.
    if block[257:263] == b"ustar\0" and (front := block[345:500].split(b"\0")[0]):
        plain = front + b"/" + plain
    return plain.decode("utf-8", "surrogateescape")


def _extend(archive: Archive, kind: bytes, at: int, size: int, told: dict[str, str]) -> None:
    """What an extended header tells of the member after it."""
    if size > _MOST_EXTENDED:
        raise UserError(
            f"{archive.file}: at byte {at:,}: an extended header of {size:,} bytes; at most {_MOST_EXTENDED:,}"
        )
    if kind == b"L":
        told["path"] = archive.read(at, size).split(b"\0")[0].decode("utf-8", "surrogateescape")
    elif kind in b"xX":
        told |= _records(archive, archive.read(at, size).rstrip(b"\0"), at)


def _records(archive: Archive, text: bytes, at: int) -> dict[str, str]:
    """The records of an extended header that matter here, each `length key=value` and a line's end."""
    found: dict[str, str] = {}
    start = 0
    while start < len(text):
        digits = text[start : start + 12].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = text[start + len(digits) + 1 : max(start, start + length - 1)].partition(b"=")
        if not equals or start + length > len(text):
            raise UserError(f"{archive.file}: damaged at byte {at:,}: an extended header that is none")
        start += length
        word = "sparse" if key.startswith(b"GNU.sparse") else key.decode("utf-8", "replace")
        if word in ("path", "size", "sparse"):
            found[word] = value.decode("utf-8", "surrogateescape")
    return found


def _after_map(archive: Archive, at: int) -> int:
    """Where a sparse member's content begins: its header may go on in further blocks."""
    more = archive.read(at, BLOCK)[482]
    at += BLOCK
    while more and at + BLOCK <= archive.status[0]:
        more = archive.read(at, BLOCK)[504]
        at += BLOCK
    return at


def _kind(kind: bytes, name: str, told: dict[str, str]) -> str:
    if kind in b"12":
        return "link"
    # A sparse file's content is in pieces.
    return "file" if kind in b"0\x007" and not name.endswith("/") and "sparse" not in told else "other"
