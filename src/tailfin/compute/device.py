"""Where and how to compute: the device, and the precision and memory format that it runs fastest."""

import ctypes
import os
import platform
import re
import resource
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tailfin.errors import UserError

Precision = Literal["fp32", "bf16"]
MemoryFormat = Literal["contiguous", "channels_last"]

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system; elsewhere nothing happens.

    Activations are freed and allocated anew each step, and by default each costs its page faults again: on two
    cores this took a step of the narrow ResNet at batch 256 from 0.49 to 0.43 s.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3  # from glibc's malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def search_kernels(device: torch.device) -> None:
    """Have cuDNN time its kernels on each shape that is new to it and keep the fastest; on a CPU nothing happens.

    A run's shapes are fixed, so that the search is paid for once. What it gains has not been measured.
    Another process may choose other kernels, which differ in rounding.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def peak_resident() -> int:
    """Most memory, in bytes, that this process ever held on the host."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage's figure outlives exec: a child of a process of 1.9 GiB reports no less, however small it is.
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_memory_full(error: Exception) -> bool:
    """Whether it says that memory is full: a GPU's, or the host's, for which torch has no error of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Execution:
    """How to compute on a device.

    Attributes:
        device: Where.
        precision: Autocast to bf16, or plain fp32; weights are fp32 in both.
        memory_format: Of images and kernels.
    """

    device: torch.device
    precision: Precision
    memory_format: MemoryFormat

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, kernels in the memory format."""
        return module.to(self.device).to(memory_format=FORMATS[self.memory_format])

    def images(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in the memory format."""
        return images.contiguous(memory_format=FORMATS[self.memory_format])


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU where there is none.

    Raises:
        UserError: No such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown --device {name!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"--device {name!r} is not on this machine, which has {count} CUDA devices")
    return device


def find_compiler(device: torch.device) -> None:
    """Find out that torch.compile lacks the compiler that it calls: C++ for a CPU, C for a GPU's launchers.

    Raises:
        UserError: There is none.
    """
    variable, usual = ("CXX", ("g++", "clang++")) if device.type == "cpu" else ("CC", ("gcc", "clang"))
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else usual)):
        raise UserError(
            f"--compile needs a compiler on {device.type}: {named or ' or '.join(usual)} is not found"
        )


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"
