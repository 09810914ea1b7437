"""Batch normalisation over the whole batch where its rows lie with several processes."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def average(values: Tensor) -> Tensor:
    """The mean over all processes, with gradient; that of means over equal shares is the mean over the batch."""
    return cast(Tensor, _Sum.apply(values)) / dist.get_world_size()


def synchronise(encoder: nn.Module) -> None:
    """Have all batch norms in a module take the statistics of the whole batch; changed in place, keys stay.

    Besides `nn.BatchNorm` and its subclasses this is any module with an attribute `average`, a function of a batch
    statistic that is the statistic itself on one process.
    """
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})
        elif hasattr(module, "average"):
            module.average = average  # type: ignore[assignment]


class _Synchronised(_BatchNorm):
    """Put before a kind of batch norm: in training mode its statistics are those of the whole batch.

    torch's own SyncBatchNorm takes no CPU tensors. Means come first, then squared deviations from them:
    E[x^2] - E[x]^2 in fp32 would cost three digits of the gradient (1e-3).
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        with torch.autocast(input.device.type, enabled=False):
            wide = input.float()
            mean = average(wide.mean(dim=dims))
            deviations = wide - mean.view(shape)
            variance = average(deviations.square().mean(dim=dims))
            self._remember(mean.detach(), variance.detach(), input.numel() // input.shape[1])
            scale = (variance + self.eps).rsqrt()
            if self.weight is not None:
                scale = scale * self.weight.float()
            output = deviations * scale.view(shape)
            if self.bias is not None:
                output = output + self.bias.float().view(shape)
            output = output.to(input.dtype)
        # timm's batch norms bring their activation along.
        for name in ("drop", "act"):
            output = getattr(self, name, nn.Identity())(output)
        return output

    def _remember(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        """Move the running statistics, with the unbiased variance, as torch does."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        share = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1.0 / float(self.num_batches_tracked)
        count = rows * dist.get_world_size()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (count / max(1, count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
