"""The smallest pieces that an encoder is split into, and shells that run a part of a module's own code."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

PartFunction = Callable[[Any, Tensor], Tensor]
"""A function of a module (or a shell of one) and the previous part's output."""


class Step(NamedTuple):
    """The smallest piece that `split` knows: the part it belongs to, its name when split finer, and its module."""

    part: str
    fine: str
    module: nn.Module


class Call(nn.Module):
    """Runs `function` on a shell of `module` that owns only the named children and the module's direct tensors.

    A shell is the same object in all but ownership, so code such as a ViT's `_pos_embed` runs unchanged, while a
    deep copy of it copies what the part owns and no more.
    """

    def __init__(
        self,
        module: nn.Module,
        children: Mapping[str, nn.Module],
        function: PartFunction,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.shell = shell(module, children, direct)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.shell, x)


def shell(module: nn.Module, children: Mapping[str, nn.Module], direct: bool) -> nn.Module:
    """The same object in all but ownership, see `Call`."""
    made = copy.copy(module)
    made.__dict__["_modules"] = dict(children)
    made.__dict__["_parameters"] = dict(module._parameters) if direct else {}
    made.__dict__["_buffers"] = dict(module._buffers) if direct else {}
    return made
