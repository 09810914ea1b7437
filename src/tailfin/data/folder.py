"""A folder of images, of class folders, or of `train` and `test` folders of either."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tailfin.data.source import Blob, Encoded, Listing, enumerate_classes, fingerprint
from tailfin.errors import UserError, unknown

_PLAIN: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2")
# What cannot be read here is listed too, so that it is reported rather than silently left out.
SUFFIXES: Final = (*_PLAIN, ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif")
_TESTS: Final = ("test", "val", "valid", "validation")


def list_folder(folder: Path) -> Listing:
    """The images under a folder, sorted by path.

    Folders are the classes of the images anywhere below them. Images that lie beside class folders, or one
    class alone, mean that there are no labels. A `train` folder, alone or beside `test`, `val`, `valid` or
    `validation`, means splits; of several the first in this order that has labels is the test split. A folder
    that holds one folder and nothing else stands for it. Hidden files and folders and files without an image
    suffix are passed over.

    Raises:
        UserError: If there is no image, or the test split has a class that the training split lacks.
    """
    root = folder
    while (inner := _only_folder(root)) is not None:
        root = inner
    splits = {each.name.lower(): each for each in _folders(root)}
    if "train" in splits and set(splits) <= {"train", *_TESTS} and not _has_images(root):
        train, owners = _labelled(splits["train"], folder)
        tests = [splits[name] for name in _TESTS if name in splits]
    else:
        train, owners = _labelled(root, folder)
        tests = []
    test: list[Path] = []
    values: list[str] | None = owners
    if owners is not None:
        for candidate in tests:
            test, more = _labelled(candidate, folder, several=False)
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
    return Listing(folder.resolve().name, _encoded(files, folder), labels, classes, of_test)


def _encoded(files: list[Path], folder: Path) -> Encoded:
    def stream(index: Sequence[int]) -> Iterator[Blob]:
        return (files[i] for i in index)

    return Encoded(
        len(files), lambda i: str(files[i].relative_to(folder)), stream, lambda: fingerprint(files)
    )


def _labelled(root: Path, folder: Path, *, several: bool = True) -> tuple[list[Path], list[str] | None]:
    """The images under `root`, and for each its class, or None where there are no classes.

    Args:
        root: The folder of one split.
        folder: The folder that the user gave, for the message.
        several: Whether at least two classes are needed.
    """
    files = sorted(_walk(root))
    if not files:
        where = str(folder) if root == folder else f"{folder} (looked in {root})"
        raise UserError(f"{where}: no images; looked for the suffixes {' '.join(SUFFIXES)}")
    owners = [file.relative_to(root).parts for file in files]
    if any(len(parts) < 2 for parts in owners):
        return files, None
    names = [parts[0] for parts in owners]
    return files, (names if len(set(names)) > 1 or not several else None)


def _walk(root: Path) -> Iterator[Path]:
    """Image files under a folder; links to folders are followed, each folder is visited once."""
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
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif _is_image(entry):
                    yield Path(entry.path)


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere counts, to be reported; a pipe or a socket would block its reader.
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and (
        entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    )


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(
            Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _has_images(root: Path) -> bool:
    with os.scandir(root) as entries:
        return any(not entry.name.startswith(".") and _is_image(entry) for entry in entries)


def _only_folder(root: Path) -> Path | None:
    folders = _folders(root)
    inside = len(folders) == 1 and folders[0].name.lower() != "train" and not _has_images(root)
    return (
        folders[0]
        if inside and folders[0].resolve() not in (root.resolve(), *root.resolve().parents)
        else None
    )
