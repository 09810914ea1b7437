"""IDX files (the format of MNIST), gzipped or not."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailfin.data.source import Listing, enumerate_classes, refuse_links
from tailfin.errors import UserError

_IMAGES: Final = re.compile(r"(?:.*[-_])?(train|t10k|test)-images[-.]idx3-ubyte(?:\.gz)?")
_GZIP: Final = b"\x1f\x8b"
_UINT8: Final = 0x08
_FREELY, _MOST_PACKED = 2**26, 100
"""Bytes that are unpacked from whatever size, and else at most so many times the size of a gzip file. MNIST's are 5
times; 3.8 MB of zeros took 5.9 GB."""


def find_files(folder: Path) -> dict[str, Path]:
    """The images files in a folder, by split: `train`, and `t10k` or `test`."""
    matches = ((_IMAGES.fullmatch(file.name), file) for file in sorted(folder.iterdir()) if file.is_file())
    return {match[1]: file for match, file in matches if match is not None}


def is_idx(file: Path) -> bool:
    """Whether a file begins as an IDX file of bytes does."""
    with file.open("rb") as raw:
        start = raw.read(4)
    if start.startswith(_GZIP):
        try:
            with gzip.open(file) as packed:
                start = packed.read(4)
        except (OSError, EOFError, zlib.error):
            return ".gz" in file.suffixes and "idx" in file.name
    return len(start) == 4 and start[:3] == bytes([0, 0, _UINT8])


def list_idx(path: Path, *, follow_links: bool = False) -> Listing:
    """The grey images of one IDX file, all for training, or of a folder with `train-images-idx3-ubyte[.gz]`.

    Labels are read from `...-labels-idx1-ubyte[.gz]` beside the images. A test split (`t10k-...` or
    `test-...`) counts only where it is labelled.

    Raises:
        UserError: For a wrong header, a length that does not fit it, unequal counts of images and labels, or files
            that are links out of the folder, unless `follow_links`.
    """
    splits = {"train": path} if path.is_file() else find_files(path)
    if "train" not in splits:
        raise UserError(
            f"{path}: no train-images-idx3-ubyte[.gz]; found: {', '.join(f.name for f in splits.values())}"
        )
    if path.is_dir() and not follow_links:
        refuse_links(
            [*splits.values(), *(each for file in splits.values() for each in _labels_of(file))], path
        )
    images = _read(splits["train"], dimensions=3)
    labels = _labels(splits["train"], len(images))
    count = len(images)
    test = splits.get("t10k") or splits.get("test")
    if test is not None and labels is not None:
        more = _read(test, dimensions=3)
        more_labels = _labels(test, len(more))
        if more_labels is not None:
            if more.shape[1:] != images.shape[1:]:
                raise UserError(
                    f"{test}: images of {_size(more)} pixels, but {splits['train'].name} has {_size(images)}"
                )
            images, labels = np.concatenate([images, more]), np.concatenate([labels, more_labels])
    classes: tuple[str, ...] | None = None
    numbers: Tensor | None = None
    if labels is not None:
        numbers, classes = enumerate_classes(labels.tolist())
    name = path.name.split(".")[0] if path.is_file() else path.resolve().name
    of_test = torch.arange(len(images)) >= count
    return Listing(name, torch.from_numpy(images)[:, None], numbers, classes, of_test)


def _size(images: NDArray[np.uint8]) -> str:
    return f"{images.shape[2]} x {images.shape[1]}"


def _labels(images: Path, count: int) -> NDArray[np.uint8] | None:
    for file in _labels_of(images):
        labels = _read(file, dimensions=1)
        if len(labels) != count:
            raise UserError(f"{file}: {len(labels)} labels for {count} images in {images.name}")
        return labels
    return None


def _labels_of(images: Path) -> list[Path]:
    """The files of labels that lie beside a file of images."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if stem == images.name.removesuffix(".gz"):
        return []
    return [file for file in (images.with_name(stem), images.with_name(stem + ".gz")) if file.is_file()]


def _read(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an IDX file, its header checked against what it holds."""
    with file.open("rb") as raw:
        packed = raw.read(2) == _GZIP
    try:
        with gzip.open(file) if packed else file.open("rb") as data:
            header = data.read(4)
            if len(header) < 4 or header[:2] != b"\0\0":
                raise UserError(f"{file}: not an IDX file; it begins with 0x{header.hex()}, not 0x0000")
            if header[2] != _UINT8 or header[3] != dimensions:
                raise UserError(
                    f"{file}: IDX type 0x{header[2]:02x} with {header[3]} dimensions;"
                    f" allowed: 0x08 (bytes) with {dimensions}"
                )
            sizes = data.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise UserError(f"{file}: cut short inside its header")
            shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
            if 0 in shape:
                raise UserError(f"{file}: empty; its header tells {' x '.join(map(str, shape))}")
            expected = int(np.prod(shape, dtype=object))
            held = file.stat().st_size
            if packed and expected > max(_FREELY, _MOST_PACKED * held):
                raise UserError(
                    f"{file}: its header tells {' x '.join(map(str, shape))} = {expected:,} bytes, packed into"
                    f" {held:,}; more than {_MOST_PACKED} times as much is not unpacked"
                )
            if not packed and held == 4 + 4 * dimensions + expected:
                return np.memmap(file, np.uint8, "c", 4 + 4 * dimensions, shape)
            # What the header claims is read piece by piece: a wrong one must not claim memory first.
            pieces = bytearray()
            while len(pieces) <= expected and (piece := data.read(min(2**24, expected + 1 - len(pieces)))):
                pieces += piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: damaged or cut-short gzip file: {error}") from error
    if len(pieces) != expected:
        found = "more" if len(pieces) > expected else str(len(pieces))
        raise UserError(
            f"{file}: its header tells {' x '.join(map(str, shape))} = {expected} bytes, it holds {found}"
        )
    return np.frombuffer(pieces, dtype=np.uint8).reshape(shape)
