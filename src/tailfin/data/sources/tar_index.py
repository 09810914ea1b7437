"""What the headers of tar archives tell of images: where their bytes lie, and their labels, folders and names."""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tailfin.data.source import Blob, Encoded, Unreadable, fingerprint
from tailfin.data.sources.folder import SUFFIXES, TESTS
from tailfin.errors import printable
from tailfin.files.tar import Archive, Member, opened

_MOST_JSON: Final = 2**20
_MOST_CLS: Final = 64
_MOST_IMAGE: Final = 2**30
"""Bytes of one encoded image, which is read whole."""
CodesOf = Callable[[NDArray[np.int64]], NDArray[np.int64] | None]
"""From the indices of some images to their labels' codes, -1 for none; None where none of them has one."""


class TarIndex:
    """The images of several archives: where their bytes lie, their labels, folders and names; 32 bytes each beyond
    the name.

    Attributes:
        has_labels: Whether a sample told a label.
        notes: What a user should know, a line each.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._statuses: list[tuple[int, int]] = []
        self._names: list[str] = []
        self._offsets, self._sizes, self._codes = array("q"), array("q"), array("q")
        self._shards, self._folders = array("i"), array("i")
        self._values: dict[int | str, int] = {}
        self._folder_codes: dict[str, int] = {}
        self._doubts: list[str] = []
        self._passed = {"links that": 0, "names that lead outside, and": 0}
        self._several, self._wrong = 0, list[str]()

    @property
    def has_labels(self) -> bool:
        return bool(self._values)

    @property
    def notes(self) -> list[str]:
        found = [f"{what} were passed over: {count}" for what, count in self._passed.items() if count]
        if self._several:
            found.append(f"samples of more than one image: {self._several}; each of their images is taken")
        if self._wrong:
            found.append(f"labels that cannot be read: {len(self._wrong)}, the first {self._wrong[0]}")
        return self._doubts + found

    def add(self, files: Sequence[Path]) -> NDArray[np.int64]:
        """Read the headers of some archives; returns the indices of their images."""
        start = len(self._names)
        for file in files:
            with opened(file) as archive:
                self.files.append(file)
                self._statuses.append(archive.status)
                self._add(archive)
                if archive.doubt:
                    self._doubts.append(f"{file}: {archive.doubt}")
        return np.arange(start, len(self._names))

    def _add(self, archive: Archive) -> None:
        first = len(self._names)
        alone: dict[str, int] = {}  # labels that do not stand beside their image, as in an unsorted archive
        key, start = "", first
        label: Member | None = None

        def close() -> None:
            nonlocal label
            code = -1 if label is None else self._code(archive, label)
            if code >= 0 and start == len(self._names):
                alone[key] = code
            for place in range(start, len(self._names)):
                self._codes[place] = code
            self._several += len(self._names) - start > 1
            label = None

        for member in archive.members():
            folder, stem, suffix = self._taken(member)
            if not suffix:
                continue
            if key != (this := f"{folder}/{stem}"):
                close()
                key, start = this, len(self._names)
            if suffix == "cls" or (suffix == "json" and label is None):
                label = member
            elif f".{suffix.rpartition('.')[2]}" in SUFFIXES:
                self._names.append(member.name.rpartition("/")[2])
                self._offsets.append(member.offset)
                self._sizes.append(member.size)
                self._codes.append(-1)
                self._shards.append(len(self.files) - 1)
                self._folders.append(self._folder_codes.setdefault(folder, len(self._folder_codes)))
        close()
        if alone:
            folders = list(self._folder_codes)
            for place in range(first, len(self._names)):
                if self._codes[place] < 0:
                    this = f"{folders[self._folders[place]]}/{self._names[place].partition('.')[0]}"
                    self._codes[place] = alone.get(this, -1)

    def _taken(self, member: Member) -> tuple[str, str, str]:
        """Folder, name to the first dot and lower-case suffix of a member; no suffix where it is passed over."""
        if member.kind != "file":
            self._passed["links that"] += member.kind == "link"
            return "", "", ""
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not parts or ".." in parts or member.name.startswith("/"):
            self._passed["names that lead outside, and"] += 1
            return "", "", ""
        if any(part.startswith(".") for part in parts):
            return "", "", ""
        stem, _, suffix = parts[-1].partition(".")
        return "/".join(parts[:-1]), stem, suffix.lower()

    def _code(self, archive: Archive, member: Member) -> int:
        """A number for the value of a label, -1 for none."""
        try:
            value = _label(archive, member)
        except ValueError as reason:
            self._wrong.append(f"{printable(member.name)} in {archive.file.name}: {reason}")
            return -1
        return -1 if value is None else self._values.setdefault(value, len(self._values))

    def split_by_folder(self) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Training images and candidates for the test split, where folders inside the archives are splits."""
        paths = self._paths()
        depth = _shared_depth(paths)
        names = {path[depth].lower() if len(path) > depth else "" for path in paths}
        if "train" not in names or not names <= {"train", *TESTS}:
            return np.arange(len(self._names)), []
        split = np.array([path[depth].lower() for path in paths])[np.asarray(self._folders)]
        return np.flatnonzero(split == "train"), [np.flatnonzero(split == name) for name in TESTS]

    def judge(self, train: NDArray[np.int64]) -> tuple[CodesOf, list[int | str]]:
        """How to get the codes of labels, by what the training images have, and the codes' values."""
        codes, folders = np.asarray(self._codes), np.asarray(self._folders)
        if (codes[train] >= 0).any():
            told = lambda part: codes[part] if (codes[part] >= 0).any() else None  # noqa: E731
            return told, list(self._values)
        self._values.clear()
        paths = self._paths()
        used = [paths[code] for code in np.unique(folders[train]).tolist()]
        depth = _shared_depth(used)
        names = sorted({path[depth] for path in paths if len(path) > depth})
        table = {name: code for code, name in enumerate(names)}
        owners = np.array([table[path[depth]] if len(path) > depth else -1 for path in paths])
        if any(len(path) <= depth for path in used) or len({path[depth] for path in used}) < 2:
            return (lambda part: None), []

        def by_folder(part: NDArray[np.int64]) -> NDArray[np.int64] | None:
            found = owners[folders[part]]
            return None if (found < 0).any() else found

        return by_folder, list(names)

    def encoded(self, kept: NDArray[np.int64], root: Path) -> Encoded:
        """The images at `kept`, in that order."""
        offsets, sizes = np.asarray(self._offsets)[kept], np.asarray(self._sizes)[kept]
        shards, folders = np.asarray(self._shards)[kept], np.asarray(self._folders)[kept]
        paths, files, statuses = list(self._folder_codes), self.files, self._statuses
        same = len(kept) == len(self._names) and bool((np.diff(kept) == 1).all())
        names = self._names if same else [self._names[i] for i in kept.tolist()]

        def name(i: int) -> str:
            inside = f"{paths[folders[i]]}/{names[i]}".lstrip("/")
            return printable(f"{files[shards[i]].relative_to(root)}/{inside}")

        def blob(archive: Archive, i: int) -> Blob:
            if (size := int(sizes[i])) > _MOST_IMAGE:
                return Unreadable(f"too large: {size:,} bytes; at most {_MOST_IMAGE:,}")
            return archive.read(int(offsets[i]), size)

        def stream(index: Sequence[int]) -> Iterator[Blob]:
            for shard, some in groupby(index, key=lambda i: int(shards[i])):
                with opened(files[shard]) as archive:
                    archive.check_unchanged(statuses[shard])
                    for i in some:
                        yield blob(archive, i)
                    archive.check_unchanged(statuses[shard])

        return Encoded(len(kept), name, stream, lambda: fingerprint(files))

    def _paths(self) -> list[tuple[str, ...]]:
        return [tuple(each.split("/")) if each else () for each in self._folder_codes]


def _shared_depth(paths: Sequence[tuple[str, ...]]) -> int:
    """How many folders from the top all paths go through."""
    depth = 0
    for names in zip(*paths, strict=False):  # to the end of the shortest
        if len(set(names)) > 1:
            break
        depth += 1
    return depth


def _label(archive: Archive, member: Member) -> int | str | None:
    """The label that a `.cls` or `.json` member tells.

    Raises:
        ValueError: It cannot be read; the message is the reason.
    """
    if member.name.lower().endswith(".cls"):
        text = archive.read(member.offset, min(member.size, _MOST_CLS)).strip()
        if member.size > _MOST_CLS or not re.fullmatch(rb"[+-]?\d{1,18}", text):
            raise ValueError(f"{printable(text[:20].decode('utf-8', 'replace'))!r} is no whole number")
        value: object = int(text)
    else:
        if member.size > _MOST_JSON:
            raise ValueError(f"{member.size:,} bytes; at most {_MOST_JSON:,}")
        try:
            told = json.loads(archive.read(member.offset, member.size))
        except (ValueError, RecursionError):
            raise ValueError("not valid JSON") from None
        value = told.get("label") if isinstance(told, dict) else None
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value >= 2**63:
        raise ValueError("neither a whole number nor a name")
    return value if value >= 0 else None
