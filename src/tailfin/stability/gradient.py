"""The gradient of the loss at the output of each part, step by step, without waiting for the device."""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class GradientMonitor:
    """Records how large the loss's gradient is at each part's output: one value a part and step.

    The value is the root mean square over samples (and views, and micro-batches) of the norm of the gradient of a
    sample's own loss: the batch's gradient times the number of samples, so that it depends neither on the batch size
    nor on a scale of the loss. In a loop of your own:

        monitor = GradientMonitor(encoder.online_parts())  # or {"layer1": model.layer1, ...}
        ...; loss.backward(); optimizer.step(); monitor.step()

    and now and then `monitor.flush()`. The values stay on the device until then. A value is NaN where the part was
    not heard in that step, and inf where its gradient was not finite, as in a step that a gradient scaler skips.

    Args:
        parts: Modules by name; each must return one tensor whose first dimension is the batch. Calls whose output
            needs no gradient (evaluation, a target path) are not heard, nor are parts with frozen weights alone.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.names = tuple(parts)
        self._squares: list[list[Tensor]] = [[] for _ in parts]
        self._rows: list[Tensor] = []
        # A hook on a tensor inside a compiled graph is not run by every backend. As a decorator this would cost each
        # command that only imports monitors two seconds: torch then loads its compiler.
        listen = torch.compiler.disable(self._listen)
        self._handles = [
            module.register_forward_hook(partial(listen, index))
            for index, module in enumerate(parts.values())
        ]
        self.heard = True

    def _listen(self, index: int, module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if not self.heard or not output.requires_grad:
            return
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            return  # a target path that lets gradients through runs the part with detached weights, all of them
        output.register_hook(partial(self._record, index))

    def _record(self, index: int, gradient: Tensor) -> None:
        wide = torch.promote_types(gradient.dtype, torch.float32)
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=wide).float()
        self._squares[index].append(norm.square() * len(gradient))

    @torch.no_grad()
    def step(self, scale: float = 1.0, mean: Callable[[Tensor], Tensor] = lambda squares: squares) -> None:
        """Close one optimizer step.

        Args:
            scale: What the loss was multiplied by before `backward`: 1 / m for m micro-batches, times the factor of
                a gradient scaler.
            mean: Averages squares [parts] over the processes of a run, each of which has a share of the batch and a
                gradient of the sum of their losses.
        """
        heard = next((squares[0] for squares in self._squares if squares), None)
        if heard is None:
            return
        silent = torch.full_like(heard, torch.nan)
        row = [
            torch.stack(squares).mean().nan_to_num(nan=torch.inf, posinf=torch.inf) if squares else silent
            for squares in self._squares
        ]
        self._rows.append(mean(torch.stack(row)).sqrt() / scale)
        self._drop()

    def _drop(self) -> None:
        for squares in self._squares:
            squares.clear()

    def pending(self) -> Tensor:
        """The steps since the last flush, float32 [steps, parts] on the CPU, which stay recorded."""
        return torch.stack(self._rows).cpu() if self._rows else torch.empty(0, len(self.names))

    def flush(self) -> Tensor:
        """The same, and forget them; this waits for the device, once."""
        rows = self.pending()
        self._rows.clear()
        return rows

    def restore(self, pending: Tensor) -> None:
        """Take up steps that `pending` gave before an interruption.

        Raises:
            ValueError: They are of other parts.
        """
        if pending.ndim != 2 or pending.shape[1] != len(self.names):
            raise ValueError(f"recorded steps of shape {list(pending.shape)} for {len(self.names)} parts")
        self._rows = list(pending)

    def pause(self) -> "_Paused":
        """A context in which nothing is heard, for forward and backward passes that are not training."""
        return _Paused(self)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


class _Paused:
    def __init__(self, monitor: GradientMonitor) -> None:
        self.monitor = monitor

    def __enter__(self) -> Self:
        self.monitor.heard = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.monitor.heard = True
