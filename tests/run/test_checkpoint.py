"""Checkpoints come back whole or are refused, and never run code."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tailfin.errors import UserError
from tailfin.run import checkpoint


def saved(path: Path) -> dict[str, torch.Tensor]:
    tensors = {
        "a/x": torch.randn(3, 4),
        "b": torch.tensor(7),
        "empty": torch.empty(0),
        "half": torch.ones(2).half(),
    }
    checkpoint.save(path, tensors, {"step": 5, "config": {"lr": 0.3}})
    return tensors


def test_round_trip(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "c")
    held = checkpoint.load(tmp_path / "c")
    assert held.progress == {"step": 5, "config": {"lr": 0.3}}
    assert held.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(held.tensors[name], value)
        assert held.tensors[name].dtype == value.dtype


@pytest.mark.parametrize("where", [0, 9, 40, 60, 80, 100, 140, 180, 220, -1, -9])
def test_one_wrong_bit_is_noticed(tmp_path: Path, where: int) -> None:
    path = tmp_path / "c"
    saved(path)
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not a checkpoint"):
        checkpoint.load(path)


def test_a_tensor_of_another_name_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", {"weight": torch.ones(3), "x": torch.zeros(2)}, {"step": 1})
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(content.replace(b'"weight"', b'"weighs"'))
    with pytest.raises(UserError, match="do not match their checksum"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_cut_file_is_noticed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "c"
    saved(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"c is damaged or not safetensors"):
        checkpoint.load(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged or not safetensors"):
        checkpoint.load(path)
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(UserError, match="damaged or not safetensors"):
        checkpoint.load(path)


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(UserError, match=r"foreign is not a checkpoint of this version \(format none"):
        checkpoint.load(tmp_path / "foreign")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path / "missing")


def test_modules_are_restored_strictly_by_name(tmp_path: Path) -> None:
    tensors = checkpoint.module_tensors("encoder", nn.Linear(2, 3))
    with pytest.raises(UserError, match=r"does not fit the encoder: .*Missing key.*running_mean"):
        checkpoint.load_module("encoder", nn.BatchNorm1d(3), tensors)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_optimizers_continue_exactly(tmp_path: Path, kind: str) -> None:
    from tailfin.training import optimizers

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(4, 4)
        return module, optimizers.build(kind, [module], lr=0.1, weight_decay=0.01)  # type: ignore[arg-type]

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()

    whole, optimizer = make()
    steps(whole, optimizer, 5)
    half, optimizer = make()
    steps(half, optimizer, 2)
    path = tmp_path / "c"
    checkpoint.save(path, checkpoint.module_tensors("m", half) | checkpoint.optimizer_tensors(optimizer), {})
    resumed, optimizer = make()
    held = checkpoint.load(path).tensors
    checkpoint.load_module("m", resumed, held)
    checkpoint.load_optimizer(optimizer, held)
    steps(resumed, optimizer, 3)
    assert torch.equal(whole.weight, resumed.weight)


@pytest.mark.parametrize("shape", [(99,), (2, 3), (1,)])
def test_the_state_of_other_weights_is_refused(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(4, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    held = checkpoint.optimizer_tensors(optimizer)
    for name in held:
        with pytest.raises(ValueError, match="optimizer state momentum_buffer of shape"):
            checkpoint.load_optimizer(optimizer, {**held, name: torch.zeros(shape)})
