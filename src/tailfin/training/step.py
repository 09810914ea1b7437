"""One optimizer step: views, both branches, loss, backward, optimizer, momentum update, in this order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor

from tailfin.errors import UserError
from tailfin.methods.base import Moment
from tailfin.methods.gap import gap_loss
from tailfin.training import config as settings
from tailfin.training import optimizers
from tailfin.training.feed import Batch
from tailfin.training.seeds import derive, generator
from tailfin.training.setup import Setup


class Step:
    """Trains a `Setup`; calling it takes one step and gives the loss, without waiting for the device.

    Args:
        setup: What to train.
        phase: Opens a context around each phase of a step, given its name; what measures them passes its own.

    Attributes:
        optimizer: Over the online branch and the method's heads.
    """

    def __init__(
        self, setup: Setup, phase: Callable[[str], AbstractContextManager[object]] = nullcontext
    ) -> None:
        config = setup.config
        recipe = setup.method.recipe_at(cast(int, config.image_size))
        self.setup, self.phase = setup, phase
        published = config.optimizer == recipe.optimizer
        self.peak = cast(float, config.lr) * config.batch_size / 256
        self.optimizer = optimizers.build(
            cast(settings.OptimizerName, config.optimizer),
            (setup.encoder, setup.method),
            lr=self.peak,
            weight_decay=cast(float, config.weight_decay),
            momentum=recipe.momentum,
            trust_coefficient=recipe.trust_coefficient if published else None,
            clip=recipe.clip and published,
            fixed=setup.method.fixed_rate(),
        )
        self.warmup = round(cast(float, config.warmup_epochs) * setup.steps_per_epoch)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        setup.encoder.train()
        setup.method.train()

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0."""
        return optimizers.learning_rate(
            step, peak=self.peak, warmup=self.warmup, total=self.setup.total_steps
        )

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take step number `step` on `batch`; returns the mean loss of its micro-batches, a detached scalar."""
        setup, config, phase = self.setup, self.setup.config, self.phase
        # Dropout draws from torch's own generator: seeding it each step leaves no state to keep.
        torch.manual_seed(derive(config.seed, "step", step))
        draws = generator(config.seed, "views", step)
        optimizers.set_learning_rate(self.optimizer, self.learning_rate(step))
        losses = []
        micro = config.batch_size // config.accumulate
        for start in range(0, config.batch_size, micro):
            part = slice(start, start + micro)
            aspect = None if batch.aspect is None else batch.aspect[part]
            with phase("views"):
                views = setup.augment(batch.images[part], draws, aspect)
                count = len(views)
                if setup.local is not None:
                    views += setup.local(batch.images[part], draws, aspect)
                views = [setup.execution.images(view) for view in views]
            setup.method.begin(self._moment(step, batch.index[part]))
            with setup.execution.autocast():
                with phase("forward"):
                    online, target = setup.encoder(views, count)
                with phase("loss"):
                    loss = _checked(setup.method.loss(online, target), config.method)
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
            setup.encoder.update()
            setup.method.after_step()
        return torch.stack(losses).mean()

    def _moment(self, step: int, index: Tensor) -> Moment:
        labels, setup = self.setup.data.train.labels, self.setup
        return Moment(
            step, setup.total_steps, setup.steps_per_epoch, index, None if labels is None else labels[index]
        )


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
