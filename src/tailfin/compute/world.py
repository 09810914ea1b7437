"""The processes of a run: what each does with its share of a batch, and how they stay one run.

Every process has the same weights. A batch is cut into equal shares; each process makes the views of its own share
and runs the encoder on them. Their branches are gathered, and each process computes the loss of the whole batch: a
method need not know how many there are. The mean of the processes' gradients is then what one process would have.
"""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.errors import UserError

T = TypeVar("T")


class World:
    """One process, which is the whole run: nothing is wrapped, gathered or waited for.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The rows of a batch of `count` that are this process's."""
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def place(self, device: torch.device) -> torch.device:
        """The device of this process, where `device` is that of the first one."""
        return device

    def ready(self, encoder: nn.Module, batch_norm: str) -> None:
        """Have an encoder normalise over the whole batch, where `batch_norm` is "sync"."""

    def wrap(self, objective: nn.Module, *, idle: bool) -> nn.Module:
        """An objective whose gradients are averaged over all processes in its backward.

        Args:
            objective: Its forward gives the loss.
            idle: Whether some of its parameters may take no part in a step.
        """
        return objective

    def alone(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        """A context in which the gradients of a wrapped objective stay with each process: more are to come."""
        return nullcontext()

    def whole(self, branch: Branch, known: Branch | None = None) -> Branch:
        """The branch of the whole batch, given that of this process's share.

        Args:
            branch: Of this process's share.
            known: A branch of the whole batch with the same values, and perhaps more views; nothing is sent then.
        """
        return branch

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, without gradient."""
        return values

    def every(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        return [value]

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes; the others wait for it and get the same.

        Raises:
            UserError: As `make`, at all of them.
        """
        return make()

    def any(self, flag: bool) -> bool:
        """Whether the flag of some process was set, the same answer for all; asked once a step.

        With several processes it is the answer of the step before, so that nobody waits for it.
        """
        return flag

    def close(self) -> None:
        """Leave."""


def check_share(batch_size: int, micro_batches: int, processes: int) -> None:
    """Find a batch that cannot be shared out equally.

    Raises:
        UserError: Naming the nearest sizes that can.
    """
    share = micro_batches * processes
    if batch_size % share == 0:
        return
    below = batch_size // share * share
    fitting = [str(size) for size in (below, below + share) if size]
    raise UserError(
        f"--batch-size {batch_size} cannot be shared out among {processes} processes"
        + (f" in {micro_batches} micro-batches" if micro_batches > 1 else "")
        + f"; {' or '.join(fitting)} can"
    )


def launched() -> int:
    """How many processes a launcher (torchrun) started this one among; 1 for none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarted() -> bool:
    """Whether the launcher starts this process anew, after one of the run's had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launch_id() -> str:
    """What the launcher's restarts have in common, and other launches have not."""
    named = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}-{os.getppid()}" if named == "none" else named


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))
