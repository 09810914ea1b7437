"""What commands check before they read an image, and what they say where memory is full."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tailfin.compute.device import find_compiler, find_device, is_memory_full
from tailfin.errors import MemoryFull
from tailfin.run.config import Config
from tailfin.training import misfits


def check(config: Config) -> None:
    """Find wrong names before any image is read.

    Raises:
        UserError: An unknown method, device, backbone or part.
    """
    device = find_device(config.device)
    if config.compile:
        find_compiler(device)
    misfits.find(config, image_size=64)


@contextmanager
def memory_of(config: Config) -> Iterator[None]:
    """Say what to change where memory is full.

    Raises:
        MemoryFull: It is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_memory_full(error):
            raise
        size, more = config.batch_size, config.accumulate + 1
        finer = next((n for n in range(more, size // 2 + 1) if size % n == 0), None)
        advice = (
            f"cut it into micro-batches with --accumulate {finer}" if finer else "take a smaller --batch-size"
        ) + (", or leave the images to --images-on host" if config.images_on == "device" else "")
        raise MemoryFull(f"the device's memory is full at --batch-size {size}; {advice}") from None
