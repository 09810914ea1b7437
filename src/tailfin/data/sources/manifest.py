"""What lies beside tar shards: `shards.json`, which `tailfin pack` writes, and the numbers in their names."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tailfin.errors import UserError, printable
from tailfin.files import write_json
from tailfin.files.reading import read_json, understand

NAME: Final = "shards.json"
_LAYOUT: Final = "tailfin shards, 1"
_MOST_BYTES: Final = 2**28
_NUMBERED: Final = re.compile(r"(.*?)(\d+)(-of-\d+)?\.tar")


@dataclass(frozen=True)
class Shard:
    """One finished shard.

    Attributes:
        name: Its file.
        bytes: Its size.
        sha256: Its checksum.
        first: Place of its first image in the source, whose training images come first.
        stop: Place after its last one, unreadable ones counted.
        images: How many it holds.
        sides: Shortest and longest side of its images in pixels.
    """

    name: str
    bytes: int
    sha256: str
    first: int
    stop: int
    images: int
    sides: tuple[int, int]


@dataclass(frozen=True)
class Manifest:
    """All that is known of a folder of shards.

    Attributes:
        source: Fingerprint of what was packed.
        settings: How it was packed.
        classes: Class names, indexed by label; None without labels.
        shards: The finished ones, in order.
        skipped: Place, name and reason of each image that could not be read, in the range of the finished shards.
        complete: Whether all of the source is in them.
    """

    source: str
    settings: dict[str, Any]
    classes: tuple[str, ...] | None
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[int, str, str], ...]
    complete: bool


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `shards.json`.

    Raises:
        UserError: It cannot be written.
    """
    write_json(folder / NAME, {"layout": _LAYOUT, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest | None:
    """What `shards.json` tells; None where there is none, or another program's.

    Raises:
        UserError: It is damaged.
    """
    file = folder / NAME
    if not file.is_file():
        return None
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise UserError(f"{file}: {size:,} bytes; at most {_MOST_BYTES:,}")
    told = read_json(file)
    if told.get("layout") != _LAYOUT:
        return None

    def made() -> Manifest:
        classes = None if told["classes"] is None else tuple(str(name) for name in told["classes"])
        shards = tuple(_shard(each) for each in told["shards"])
        skipped = tuple((int(i), str(name), str(reason)) for i, name, reason in told["skipped"])
        return Manifest(
            str(told["source"]), dict(told["settings"]), classes, shards, skipped, told["complete"] is True
        )

    return understand(str(file), made)


def check_shards(manifest: Manifest, files: Sequence[Path], folder: Path, *, whole: bool) -> None:
    """Compare the shards that are there with those that the manifest tells of.

    Args:
        manifest: What `shards.json` tells.
        files: Those that are read.
        folder: Where `shards.json` lies.
        whole: Whether all of them should be there.

    Raises:
        UserError: One is missing, or has another size.
    """
    there = {file.name: file for file in files if file.parent == folder}
    for shard in manifest.shards:
        if (file := there.get(shard.name)) is None:
            if whole:
                raise UserError(
                    f"{folder / printable(shard.name)}: missing, and {NAME} beside it tells of it"
                )
        elif (size := file.stat().st_size) != shard.bytes:
            raise UserError(f"{file}: {size:,} bytes, and {NAME} beside it tells of {shard.bytes:,}")


def missing_numbers(files: Sequence[Path]) -> list[str]:
    """Lines on numbers that lack in a run of shards: 000, 001, 003.

    Other numbers than a run's (years, ids) lack more than are there, and nothing is said of them.
    """
    runs: dict[tuple[Path, str, int, str], set[int]] = {}
    for file in files:
        if match := _NUMBERED.fullmatch(file.name):
            # A number of a thousand digits counts nothing.
            digits, total = match[2][-15:], match[3] or ""
            runs.setdefault((file.parent, match[1], len(digits), total), set()).add(int(digits))
    lines = []
    for (_, front, width, total), there in sorted(runs.items()):
        last = max(there) if not total else max(*there, int(total[4:][:15]) - 1)
        first = min(there) if not total else 0
        lacks = last - first + 1 - len(there)
        if 0 < lacks < len(there) or (lacks > 0 and total):
            number = next(n for n in range(first, last + 1) if n not in there)
            name = printable(f"{front}{number:0{width}}{total}.tar")
            more = "" if lacks == 1 else f" (and {lacks - 1} more)"
            lines.append(
                f"{name}{more} is missing between the numbers {first:0{width}} and {last:0{width}}; "
                f"the {len(there)} shards that are there are read"
            )
    return lines


def _shard(told: dict[str, Any]) -> Shard:
    low, high = told["sides"]
    return Shard(
        str(told["name"]),
        int(told["bytes"]),
        str(told["sha256"]),
        int(told["first"]),
        int(told["stop"]),
        int(told["images"]),
        (int(low), int(high)),
    )
