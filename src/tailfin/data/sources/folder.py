"""A folder of images, of class folders, or of `train` and `test` folders of either."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tailfin.data.source import (
    Blob,
    Encoded,
    Listing,
    Unreadable,
    enumerate_classes,
    fingerprint,
    leads_outside,
)
from tailfin.errors import UserError, printable, unknown

_PLAIN: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2")
# What cannot be read here is listed too, so that it is reported rather than silently left out.
SUFFIXES: Final = (*_PLAIN, ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif")
TESTS: Final = ("test", "val", "valid", "validation")


def list_folder(folder: Path, *, follow_links: bool = False) -> Listing:
    """The images under a folder, sorted by path.

    Folders are the classes of the images anywhere below them. Images that lie beside class folders, or one
    class alone, mean that there are no labels. A `train` folder, alone or beside `test`, `val`, `valid` or
    `validation`, means splits; of several the first in this order that has labels is the test split. A folder
    that holds one folder and nothing else stands for it. Hidden files and folders and files without an image
    suffix are passed over. So are links to folders that lie elsewhere, unless `follow_links`; links to images
    that lie elsewhere are then unreadable.

    Raises:
        UserError: If there is no image, or the test split has a class that the training split lacks.
    """
    links = _Links(folder, follow_links)
    root = folder
    while (inner := _only_folder(root, links)) is not None:
        root = inner
    splits = {each.name.lower(): each for each in _folders(root, links)}
    if "train" in splits and set(splits) <= {"train", *TESTS} and not _has_images(root):
        train, owners = _labelled(splits["train"], links)
        tests = [splits[name] for name in TESTS if name in splits]
    else:
        train, owners = _labelled(root, links)
        tests = []
    test: list[Path] = []
    values: list[str] | None = owners
    if owners is not None:
        for candidate in tests:
            test, more = _labelled(candidate, links, several=False)
            if more is not None:
                if stray := sorted(set(more) - set(owners)):
                    raise unknown("class folder", stray[0], sorted(set(owners)), str(candidate))
                values = owners + more
                break
            test = []
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    if values is not None:
        labels, classes = enumerate_classes(values)
    files = train + test
    of_test = torch.arange(len(files)) >= len(train)
    encoded = _encoded(files, folder, links)
    notes = (links.note,) if links.passed_over else ()
    return Listing(folder.resolve().name, encoded, labels, classes, of_test, notes)


def holds_images(folder: Path, *, follow_links: bool = False) -> bool:
    """Whether there is an image anywhere below a folder."""
    return next(_walk(folder, _Links(folder, follow_links)), None) is not None


class _Links:
    """Which links are followed: a data set from elsewhere must not make this program read what lies elsewhere.

    Attributes:
        passed_over: Links to folders that were not followed.
        refused: Links to images that are not followed.
    """

    def __init__(self, root: Path, follow: bool) -> None:
        self.root, self.follow = root, follow
        self.passed_over: set[str] = set()
        self.refused: set[str] = set()

    @property
    def note(self) -> str:
        """What was not followed, in words."""
        count, some = len(self.passed_over), printable(min(self.passed_over))
        noun = f"{some} is a link that leads" if count == 1 else f"{count} links (such as {some}) lead"
        return f"{noun} out of {self.root}, and {'was' if count == 1 else 'were'} passed over; --follow-links follows"

    def enters(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder to look into."""
        if not entry.is_dir():
            return False
        if self._is_strange(entry):
            self.passed_over.add(entry.path)
            return False
        return True

    def takes(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is an image to list, readable or not."""
        if not _is_image(entry):
            return False
        if self._is_strange(entry):
            self.refused.add(entry.path)
        return True

    def _is_strange(self, entry: os.DirEntry[str]) -> bool:
        return not self.follow and entry.is_symlink() and leads_outside(Path(entry.path), self.root)


def _encoded(files: list[Path], folder: Path, links: _Links) -> Encoded:
    def blob(file: Path) -> Blob:
        if str(file) in links.refused:
            return Unreadable(f"a link that leads out of {folder}; --follow-links follows it")
        return file

    def stream(index: Sequence[int]) -> Iterator[Blob]:
        return (blob(files[i]) for i in index)

    return Encoded(
        len(files), lambda i: str(files[i].relative_to(folder)), stream, lambda: fingerprint(files)
    )


def _labelled(root: Path, links: _Links, *, several: bool = True) -> tuple[list[Path], list[str] | None]:
    """The images under `root`, and for each its class, or None where there are no classes.

    Args:
        root: The folder of one split.
        links: Which links are followed.
        several: Whether at least two classes are needed.
    """
    files = sorted(_walk(root, links))
    if not files:
        where = str(links.root) if root == links.root else f"{links.root} (looked in {root})"
        why = f"; {links.note}" if links.passed_over else ""
        raise UserError(f"{where}: no images; looked for the suffixes {' '.join(SUFFIXES)}{why}")
    owners = [file.relative_to(root).parts for file in files]
    if any(len(parts) < 2 for parts in owners):
        return files, None
    names = [parts[0] for parts in owners]
    return files, (names if len(set(names)) > 1 or not several else None)


def _walk(root: Path, links: _Links) -> Iterator[Path]:
    """Image files under a folder; each folder is visited once."""
    seen = set()
    waiting = [root]
    while waiting:
        current = waiting.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.name.startswith("."):
                    continue
                if links.enters(entry):
                    waiting.append(Path(entry.path))
                elif links.takes(entry):
                    yield Path(entry.path)


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere counts, to be reported; a pipe or a socket would block its reader.
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and (
        entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    )


def _folders(root: Path, links: _Links) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(
            Path(entry.path) for entry in entries if not entry.name.startswith(".") and links.enters(entry)
        )


def _has_images(root: Path) -> bool:
    with os.scandir(root) as entries:
        return any(not entry.name.startswith(".") and _is_image(entry) for entry in entries)


def _only_folder(root: Path, links: _Links) -> Path | None:
    folders = _folders(root, links)
    inside = len(folders) == 1 and folders[0].name.lower() != "train" and not _has_images(root)
    return (
        folders[0]
        if inside and folders[0].resolve() not in (root.resolve(), *root.resolve().parents)
        else None
    )
