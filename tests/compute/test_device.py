"""Where and how to compute."""

import sys

import pytest
import torch

from tailfin.compute.device import find_compiler, find_device, search_kernels
from tailfin.errors import UserError


def test_wrong_devices_are_named() -> None:
    with pytest.raises(UserError, match="unknown --device 'gpu'"):
        find_device("gpu")
    with pytest.raises(UserError, match="'mps' is not supported"):
        find_device("mps")
    with pytest.raises(UserError, match="'cuda:99' is not on this machine"):
        find_device("cuda:99")


def test_kernels_are_searched_for_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    search_kernels(torch.device("cpu"))
    assert not torch.backends.cudnn.benchmark
    search_kernels(torch.device("cuda"))
    assert torch.backends.cudnn.benchmark


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile needs a compiler on cpu: no-such-compiler is not found"):
        find_compiler(torch.device("cpu"))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"g\+\+ or clang\+\+ is not found"):
        find_compiler(torch.device("cpu"))
    monkeypatch.setenv("CC", sys.executable)
    find_compiler(torch.device("cuda"))
