"""What a source lists before anything is decoded: the plain types between the sources and the loader."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tailfin.data.types import Skipped
from tailfin.errors import UserError, printable

_SPLIT: Final = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")


class Unreadable(Exception):
    """An image that cannot be decoded; the message is the reason in words."""


Progress = Callable[[int, int], None]
"""Called now and then with the number of images done and their total."""

Blob = bytes | Path | Unreadable
"""One encoded image: its bytes, the file that holds them, or the reason why there are none."""


@dataclass(frozen=True)
class Encoded:
    """Encoded images, listed but not yet read.

    Attributes:
        count: Number of images N.
        name: From an index in [0, N) to the image's name, for messages.
        stream: From strictly increasing indices to their images, in that order.
        fingerprint: A hash of the listing (paths, sizes, modification times), for the cache of decoded
            images.
    """

    count: int
    name: Callable[[int], str]
    stream: Callable[[Sequence[int]], Iterator[Blob]]
    fingerprint: Callable[[], str]


@dataclass(frozen=True)
class Listing:
    """Everything a source holds.

    Attributes:
        name: Short name for reports.
        images: Encoded images, or decoded ones of one size, uint8 [N, C, H, W].
        labels: int64 [N], -1 where an image has none; or None where no image has one.
        classes: Class names, indexed by label; None without labels.
        test: bool [N], true for the images of the source's own test split.
        notes: What a user should know of what was found, a line each.
    """

    name: str
    images: Encoded | Tensor
    labels: Tensor | None
    classes: tuple[str, ...] | None
    test: Tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """Decoded images in the order asked for, those that could not be read left out.

    Attributes:
        images: uint8 [M, C, H, W].
        kept: bool [asked for], true for the M images that were read.
        aspect: float32 [M], width / height of the originals; None where the images are the originals.
        skipped: What was left out.
    """

    images: Tensor
    kept: Tensor
    aspect: Tensor | None
    skipped: tuple[Skipped, ...]


def leads_outside(path: Path, root: Path) -> bool:
    """Whether a path in a folder is, or goes through, a link that leads out of it."""
    return not path.resolve().is_relative_to(root.resolve())


def refuse_links(files: Iterable[Path], root: Path) -> None:
    """Refuse files that are links out of the folder that the user named.

    Raises:
        UserError: One is.
    """
    for file in files:
        if leads_outside(file, root):
            raise UserError(
                f"{printable(str(file))} is a link that leads out of {root}; --follow-links follows it"
            )


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Files of a suffix in a folder or up to two folders below it, hidden ones left out, sorted by path."""
    found = [file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}*{suffix}")]
    hidden = (any(part.startswith(".") for part in file.relative_to(folder).parts) for file in found)
    return sorted(file for file, skip in zip(found, hidden, strict=True) if not skip and file.is_file())


def by_split(files: Iterable[Path], folder: Path, expected: str) -> tuple[list[Path], list[list[Path]]]:
    """Training files, and the candidates for the test split, best first.

    Raises:
        UserError: No file is of the training split; `expected` is how one would be called.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file, folder), []).append(file)
    train = splits.get("train") or splits.get("")
    if not train:
        known = ", ".join(sorted(splits))
        raise UserError(f"{folder}: no training split; found only: {known}; expected {expected}")
    return train, [splits[name] for name in ("test", "validation", "valid", "val", "dev") if name in splits]


def split_of(file: Path, root: Path) -> str:
    """The split that a file's name tells, or else its folder's, unless that is the folder which the user gave."""
    match = _SPLIT.match(file.stem.lower())
    if match is None and file.parent != root:
        match = _SPLIT.match(file.parent.name.lower())
    return "" if match is None else match[1]


def enumerate_classes(values: Sequence[int] | Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N] and class names from raw class values: sorted, so that 0 ... K-1 stay as they are."""
    names, labels = np.unique(np.asarray(values), return_inverse=True)
    return torch.from_numpy(labels.reshape(-1).astype(np.int64)), tuple(str(name) for name in names.tolist())


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the paths, sizes and modification times of `files`."""
    digest = hashlib.sha256()
    for file in files:
        # A link that leads nowhere is listed too, to be reported.
        status = file.stat() if file.exists() else file.lstat()
        line = f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
