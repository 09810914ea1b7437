"""Checkpoints: safetensors, so that opening one never runs code; whole, checked, and of one run."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailfin.errors import UserError, printable
from tailfin.files import write_atomically
from tailfin.files.reading import json_object, read_tensors

FORMAT = "tailfin-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """A run at one step.

    Attributes:
        tensors: Everything that training changes, by name.
        progress: Plain values: the step, the length of the metrics file, the settings, the data's fingerprint.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically."""
    from safetensors.torch import save as serialise

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    plain = json.dumps(dict(progress))
    metadata = {"format": FORMAT, "crc32": str(_checksum(held, plain)), "progress": plain}
    write_atomically(path, serialise(held, metadata=metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint of tailfin.
    """
    if not path.exists():
        raise UserError(
            f"no checkpoint {path}: the run was stopped before its first one, or is still to begin"
        )
    tensors, metadata = read_tensors(path)
    if (found := metadata.get("format", "none")) != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of this version (format {printable(found)}, expected {FORMAT})"
        )
    progress = metadata.get("progress", "")
    if metadata.get("crc32") != str(_checksum(tensors, progress)):
        raise UserError(f"checkpoint {path} is damaged: its contents do not match their checksum")
    return Checkpoint(tensors, json_object(progress, f"checkpoint {path}"))


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state under a prefix."""
    return {f"{prefix}/{key}": value for key, value in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore a module, strictly by name.

    Raises:
        UserError: The checkpoint's tensors are not this module's.
    """
    try:
        module.load_state_dict(_under(prefix, tensors))
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit the {prefix}: {' '.join(str(error).split())}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state; learning rates are not kept, they follow from the step."""
    found = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                found[f"optimizer/{index}/{key}"] = (
                    value if isinstance(value, Tensor) else torch.tensor(value)
                )
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimizer of the same parameters.

    Raises:
        ValueError: The checkpoint's tensors are not this optimizer's.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer", tensors).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"optimizer state {key} of shape {list(value.shape)} for weights {list(parameter.shape)}"
                )
            if isinstance(value, Tensor) and value.ndim > 1:
                # A file knows no memory format, and fused optimizers on a CPU pair weights and state by their places
                # in memory: in another format each weight would go on with the state of another.
                own[key] = torch.empty_like(parameter).copy_(value)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _checksum(tensors: Mapping[str, Tensor], progress: str) -> int:
    total = zlib.crc32(progress.encode())
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        values = tensors[name].contiguous().reshape(-1)
        if values.numel():
            total = zlib.crc32(values.view(torch.uint8).numpy().data, total)
    return total
