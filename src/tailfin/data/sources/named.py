"""Data sets known by name, through torchvision: read where they lie, fetched where there is a network."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tailfin.data.source import Listing
from tailfin.errors import UserError
from tailfin.files import make_folder

_PATIENCE_S: Final = 20.0
_STL10_CLASSES: Final = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_FILES: Final = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "fashion_mnist": "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
}


def list_named(name: str, root: Path) -> Listing:
    """The labelled training and test images of `cifar10`, `cifar100`, `stl10` or `fashion_mnist`.

    Of STL-10 these are the 5,000 and 8,000 labelled images, not the 100,000 unlabelled ones.

    Args:
        name: One of the four.
        root: Folder of the downloaded files.

    Raises:
        UserError: If the files are not under `root` and cannot be downloaded.
    """
    make = _makers()[name]
    make_folder(root)
    try:
        with _patience():
            train, test = make(root, True), make(root, False)
    # torchvision raises URLError (an OSError) without a network, RuntimeError for a wrong checksum.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name}: not found and not downloaded ({reason}); put {_FILES[name]} into {root.absolute()}, or give"
            " --data the path of a folder of images, Parquet or IDX files"
        ) from error
    images = torch.cat([_images(train.data), _images(test.data)])
    labels = torch.cat([_labels(train), _labels(test)])
    classes = tuple(getattr(train, "classes", _STL10_CLASSES))
    return Listing(name, images, labels, classes, torch.arange(len(images)) >= len(train.data))


def _makers() -> dict[str, Callable[[Path, bool], Any]]:
    from torchvision import datasets

    return {
        "cifar10": lambda root, train: datasets.CIFAR10(root, train=train, download=True),
        "cifar100": lambda root, train: datasets.CIFAR100(root, train=train, download=True),
        "stl10": lambda root, train: datasets.STL10(root, split="train" if train else "test", download=True),
        "fashion_mnist": lambda root, train: datasets.FashionMNIST(root, train=train, download=True),
    }


@contextmanager
def _patience() -> Iterator[None]:
    """Bounds the wait for a silent server, for which torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _images(data: Any) -> Tensor:
    """uint8 [N, C, H, W] from torchvision's [N, H, W, 3] (CIFAR), [N, 3, H, W] (STL-10) or [N, H, W]
    (Fashion-MNIST)."""
    images = torch.as_tensor(np.asarray(data))
    if images.dim() == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)


def _labels(dataset: Any) -> Tensor:
    values = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return torch.as_tensor(np.asarray(values), dtype=torch.int64)
