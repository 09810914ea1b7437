"""One optimizer step: views, both branches, loss, backward, optimizer, momentum update, in this order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tailfin.compute.device import Execution
from tailfin.errors import UserError
from tailfin.methods.base import Method, Moment
from tailfin.methods.gap import gap_loss
from tailfin.momentum import MomentumEncoder
from tailfin.run.config import Config
from tailfin.run.seeds import derive, generator
from tailfin.training.feed import Batch
from tailfin.training.optimizers import Schedule, set_learning_rate
from tailfin.views.augment import Augment


class Step:
    """Takes steps; each gives its loss, without waiting for the device.

    Args:
        encoder: Both branches; put into training mode, as is the method.
        method: Loss and heads.
        augment, local: The views, and the small crops of multi-crop (None for none).
        execution: Device, precision, memory format.
        optimizer: Over the online branch and the method's heads.
        schedule: Its learning rate.
        config: The run's settings, nothing left open; what is read are seed, batch_size, accumulate, gap, clip_grad
            and the method's name.
        steps_per_epoch: Optimizer steps an epoch.
        labels: Of the training images, int64 [images], for the methods that need them; or None.
        phase: Opens a context around each phase of a step, given its name; what measures them passes its own.
    """

    def __init__(
        self,
        encoder: MomentumEncoder,
        method: Method,
        *,
        augment: Augment,
        local: Augment | None,
        execution: Execution,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: Config,
        steps_per_epoch: int,
        labels: Tensor | None,
        phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.encoder, self.method = encoder.train(), method.train()
        self.augment, self.local, self.execution = augment, local, execution
        self.optimizer, self.schedule, self.config = optimizer, schedule, config
        self.steps_per_epoch, self.labels, self.phase = steps_per_epoch, labels, phase
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take step number `step`, counted from 0; returns the mean loss of its micro-batches, a detached scalar."""
        config, phase = self.config, self.phase
        # Dropout draws from torch's own generator: seeding it each step leaves no state to keep.
        torch.manual_seed(derive(config.seed, "step", step))
        draws = generator(config.seed, "views", step)
        set_learning_rate(self.optimizer, self.schedule(step))
        losses = []
        for micro in batch.cut(config.accumulate):
            with phase("views"):
                views, shared = self._views(micro, draws)
            self.method.begin(self._moment(step, micro.index))
            with self.execution.autocast():
                with phase("forward"):
                    online, target = self.encoder(views, shared)
                with phase("loss"):
                    loss = _checked(self.method.loss(online, target), config.method)
                    if config.gap:
                        loss = loss + config.gap * gap_loss(online, target)
            with phase("backward"):
                (loss / config.accumulate).backward()
            losses.append(loss.detach())
        with phase("optimizer"):
            if config.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with phase("momentum"):
            self.encoder.update()
            self.method.after_step()
        return torch.stack(losses).mean()

    def _views(self, batch: Batch, draws: torch.Generator) -> tuple[list[Tensor], int]:
        """All views of a batch, and how many of them, the first ones, the target branch sees too."""
        views = self.augment(batch.images, draws, batch.aspect)
        shared = len(views)
        if self.local is not None:
            views += self.local(batch.images, draws, batch.aspect)
        return [self.execution.images(view) for view in views], shared

    def _moment(self, step: int, index: Tensor) -> Moment:
        labels = None if self.labels is None else self.labels[index]
        return Moment(step, self.schedule.total, self.steps_per_epoch, index, labels)


def _checked(loss: object, method: str) -> Tensor:
    """The loss of a method, which may be a user's own; its values stay on the device.

    Raises:
        UserError: It is no floating-point scalar, or nothing can be learnt from it.
    """
    wanted = f"--method {method}: loss must give a floating-point scalar"
    if not isinstance(loss, Tensor):
        raise UserError(f"{wanted}, got {type(loss).__name__}")
    if loss.ndim or not loss.is_floating_point():
        raise UserError(f"{wanted}, got {loss.dtype} of shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise UserError(f"--method {method}: no gradient comes from loss; it must be computed from online")
    return loss
