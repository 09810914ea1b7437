"""Modules whose forward is compiled, and whose hooks are not."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

GRAPHS = 256
"""Most graphs of one code that torch may compile. It counts all modules of a class together, each mode and each size
of theirs; at its own limit of 8 it leaves the rest as they are: 8 of 24 graphs of a ResNet under `all`."""


class CompiledForward:
    """In place of a module's `forward`.

    `nn.Module.compile` would compile the hooks with it: a monitor's then cuts the graph, and torch gives up on most
    of the parts that it listens to.

    Args:
        module: Whose forward to compile when it first runs.
        options: Of `torch.compile`.
    """

    def __init__(self, module: nn.Module, options: Mapping[str, Any]) -> None:
        self.module, self.options = module, dict(options)
        self._run: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The module's outputs."""
        if self._run is None:
            # A compiled module stays in a program for long: no need to give the limit back.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
            self._run = torch.compile(type(self.module).forward.__get__(self.module), **self.options)
        return self._run(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledForward":
        """That of the module's copy, which compiles anew."""
        return CompiledForward(copy.deepcopy(self.module, memo), self.options)


def compile_forward(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Compile a module's forward in place; its state keeps its keys, and its hooks run as before."""
    module.forward = CompiledForward(module, options)
