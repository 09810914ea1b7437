"""Where and how to compute."""

import math
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tailfin.errors import UserError
from tailfin.training import device
from tailfin.training.device import Execution, fastest, find_compiler, find_device


def test_wrong_devices_are_named() -> None:
    with pytest.raises(UserError, match="unknown --device 'gpu'"):
        find_device("gpu")
    with pytest.raises(UserError, match="'mps' is not supported"):
        find_device("mps")
    with pytest.raises(UserError, match="'cuda:99' is not on this machine"):
        find_device("cuda:99")


def test_the_fastest_is_chosen_by_time_and_the_lower_precision_has_to_earn_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example, cpu = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), torch.device("cpu")

    def choose(seconds: dict[tuple[str, str], float], **given: object) -> tuple[str, str]:
        monkeypatch.setattr(device, "_seconds", lambda e, *_: seconds[e.precision, e.memory_format])
        chosen = fastest(model, example, cpu, **given)  # type: ignore[arg-type]
        return chosen.precision, chosen.memory_format

    amx = {("fp32", "contiguous"): 4.0, ("fp32", "channels_last"): 3.2, ("bf16", "contiguous"): 1.7}
    assert choose({**amx, ("bf16", "channels_last"): 1.0}) == ("bf16", "channels_last")
    near = {("fp32", "contiguous"): 1.0, ("fp32", "channels_last"): 0.8, ("bf16", "contiguous"): 0.75}
    assert choose({**near, ("bf16", "channels_last"): 0.75}) == ("fp32", "channels_last")
    assert choose({**amx, ("bf16", "channels_last"): 1.0}, precision="fp32") == ("fp32", "channels_last")
    tie = {("fp32", "contiguous"): 1.0, ("fp32", "channels_last"): 1.01}
    assert choose({**tie, ("bf16", "contiguous"): 1.0, ("bf16", "channels_last"): 1.0}) == (
        "fp32",
        "channels_last",
    )
    tight = {
        ("fp32", "contiguous"): math.inf,
        ("fp32", "channels_last"): math.inf,
        ("bf16", "contiguous"): 2.0,
    }
    assert choose({**tight, ("bf16", "channels_last"): math.inf}) == ("bf16", "contiguous")
    with pytest.raises(torch.OutOfMemoryError, match="fits"):
        choose({**tight, ("bf16", "contiguous"): math.inf, ("bf16", "channels_last"): math.inf})


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_gpu_is_left_as_if_nothing_had_been_tried(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tried: list[weakref.ref[nn.Module]] = []
    did: list[str] = []

    def place(_: Execution, module: nn.Module) -> nn.Module:
        tried.append(weakref.ref(module))
        return module

    def freed(*_: object) -> None:
        assert [model() for model in tried] == [None] * 4
        did.append("freed")

    monkeypatch.setattr(Execution, "place", place)
    monkeypatch.setattr(device, "_seconds", lambda *_: 1.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", freed)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: did.append("reset"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    chosen = fastest(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), torch.device(kind))
    assert (chosen.precision, chosen.memory_format) == ("fp32", "channels_last")
    assert len(tried) == 4
    assert did == (["freed", "reset"] if kind == "cuda" else [])


def test_kernels_are_searched_for_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    model, example = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    fixed: dict[str, Any] = {"precision": "fp32", "memory_format": "contiguous"}
    fastest(model, example, torch.device("cpu"), **fixed)
    assert not torch.backends.cudnn.benchmark
    fastest(model, example, torch.device("cuda"), **fixed)  # all is given: nothing runs
    assert torch.backends.cudnn.benchmark


def test_a_candidate_that_does_not_fit_in_memory_is_left_out() -> None:
    class Full(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                raise torch.OutOfMemoryError
            return super().forward(x)

    chosen = fastest(Full(3, 4, 3), torch.randn(2, 3, 8, 8), torch.device("cpu"), repeats=1)
    assert chosen.precision == "bf16"


def test_it_is_measured_without_touching_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = fastest(model, torch.randn(2, 3, 8, 8), torch.device("cpu"), repeats=1)
    assert isinstance(chosen, Execution)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


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
