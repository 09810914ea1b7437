"""The loss of a batch from its views: what gradients are taken of."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tailfin.compute.world import World
from tailfin.errors import UserError
from tailfin.methods.base import Method
from tailfin.methods.gap import gap_loss
from tailfin.momentum import MomentumEncoder


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
            loss = checked(self.method.loss(online, target), self.name)
            if self.gap:
                loss = loss + self.gap * gap_loss(online, target)
        return loss


def checked(loss: object, method: str) -> Tensor:
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
