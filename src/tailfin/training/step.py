"""One optimizer step: views, both branches, loss, backward, optimizer, momentum update, in this order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tailfin.compute.device import Execution
from tailfin.compute.world import World
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
        world: The processes of the run.
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
        world: World,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: Config,
        steps_per_epoch: int,
        labels: Tensor | None,
        phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.encoder, self.method = encoder.train(), method.train()
        self.augment, self.local, self.execution, self.world = augment, local, execution, world
        self.optimizer, self.schedule, self.config = optimizer, schedule, config
        self.steps_per_epoch, self.labels, self.phase = steps_per_epoch, labels, phase
        self.objective = Objective(
            encoder, method, world, gap=config.gap, name=config.method, phase=self._phase
        )
        # A method may leave its heads out for a while, as SwAV its prototypes.
        self.loss_of = world.wrap(self.objective, idle=any(True for _ in method.parameters()))
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take step number `step`, counted from 0; returns the mean loss of its micro-batches, a detached scalar."""
        config, phase = self.config, self._phase
        # Dropout draws from torch's own generator: seeding it each step leaves no state to keep.
        self.objective.seed = derive(config.seed, "step", step)
        torch.manual_seed(self.objective.seed + self.world.rank)
        draws = generator(config.seed, "views", step)
        set_learning_rate(self.optimizer, self.schedule(step))
        losses: list[Tensor] = []
        for micro in batch.cut(config.accumulate):
            with phase("views"):
                views, shared = self._views(micro, draws)
            self.method.begin(self._moment(step, micro.index))
            more = len(losses) + 1 < config.accumulate
            with self.world.alone(self.loss_of) if more else nullcontext():
                with self.execution.autocast():
                    loss = self.loss_of(views, shared)
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

    def _phase(self, name: str) -> AbstractContextManager[object]:
        return self.phase(name)

    def _views(self, batch: Batch, draws: torch.Generator) -> tuple[list[Tensor], int]:
        """All views of this process's share, and how many, the first ones, the target branch sees too."""
        share = (self.world.rank, self.world.size)
        views = self.augment(batch.images, draws, batch.aspect, share)
        shared = len(views)
        if self.local is not None:
            views += self.local(batch.images, draws, batch.aspect, share)
        return [self.execution.images(view) for view in views], shared

    def _moment(self, step: int, index: Tensor) -> Moment:
        labels = None if self.labels is None else self.labels[index]
        return Moment(step, self.schedule.total, self.steps_per_epoch, index, labels)


class Objective(nn.Module):
    """Both branches of this process's views, and the method's loss of the whole batch.

    Args:
        encoder: Both branches.
        method: Loss and heads.
        world: The processes of the run.
        gap: Weight of the gap loss.
        name: Of the method, for messages.
        phase: See `Step`.

    Attributes:
        seed: Of what the loss draws; set before each call.
    """

    def __init__(
        self,
        encoder: MomentumEncoder,
        method: Method,
        world: World,
        *,
        gap: float,
        name: str,
        phase: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        super().__init__()
        self.encoder, self.method = encoder, method
        self.world, self.gap, self.name, self.phase = world, gap, name, phase
        self.seed = 0

    def forward(self, views: list[Tensor], shared: int) -> Tensor:
        """The loss.

        Args:
            views: Of this process's share, each [N, C, S, S].
            shared: How many of them, the first ones, the target branch sees too.
        """
        with self.phase("forward"):
            online, target = self.encoder(views, shared)
        with self.phase("loss"):
            if self.world.size > 1:
                # Dropout has drawn for this process's share; what the loss draws is for the whole batch.
                torch.manual_seed(self.seed)
                both = target is online
                online = self.world.whole(online)
                target = online if both else self.world.whole(target)
            loss = _checked(self.method.loss(online, target), self.name)
            if self.gap:
                loss = loss + self.gap * gap_loss(online, target)
        return loss


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
