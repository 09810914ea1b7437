"""What one image, and all that are being decoded, may take: small files can tell of very large images."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tailfin.data.source import Unreadable

MAX_SIDE: Final = 20_000
MAX_PIXELS: Final = 100_000_000
MAX_PIXELS_OF: Final = {"JPEG2000": 50_000_000, "AVIF": 50_000_000}
"""Whose decoders take some 20 bytes a pixel, and up to .2 microseconds."""
FEW_SCANS, MOST_WORK = 40, 2000
"""Scans of a JPEG that are always decoded, and scans times million pixels beyond them: a progressive file has some
ten scans. One that holds nothing takes 30 bytes, and .2 to .3 ms a million pixels."""
IN_FLIGHT: Final = 2**30
"""Bytes that all images being decoded at one time may take together."""


def check_size(kind: str | None, width: int, height: int) -> None:
    """Refuse what is too large to decode.

    Raises:
        Unreadable: It has too many pixels, in all or on a side.
    """
    most = MAX_PIXELS_OF.get(kind or "", MAX_PIXELS)
    if max(width, height) > MAX_SIDE or width * height > most:
        raise Unreadable(
            f"too large: {width} x {height} pixels; at most {MAX_SIDE} on a side and {most // 10**6} million in all"
        )


def check_scans(source: bytes | Path, width: int, height: int) -> None:
    """Refuse a JPEG whose many scans would take minutes.

    Raises:
        Unreadable: It has too many.
    """
    # In coded data 0xFF stands before 0x00 or a restart marker alone, so that this counts little else than scans.
    marker = b"\xff\xda"
    if isinstance(source, bytes):
        scans = source.count(marker)
    else:
        scans, last = 0, b""
        with source.open("rb") as file:
            while piece := file.read(2**20):
                scans += piece.count(marker) + (last == marker[:1] and piece.startswith(marker[1:]))
                last = piece[-1:]
    if scans > FEW_SCANS and scans * width * height > MOST_WORK * 10**6:
        raise Unreadable(f"too many scans: {scans} of {width} x {height} pixels")


class Budget:
    """An amount that threads share: who asks for more than is left waits."""

    def __init__(self, whole: int) -> None:
        self._whole, self._taken, self._changed = whole, 0, threading.Condition()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Hold `amount` of it, or all of it where that is less."""
        amount = min(amount, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + amount <= self._whole)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()
