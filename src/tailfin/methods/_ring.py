"""The rings that queues of keys and sets of neighbours share, and their size for smaller data than published."""

import torch
from torch import Tensor, nn

CIFAR_IMAGES = 50_000
"""Images that the published sizes go with."""


class Ring(nn.Module):
    """The last rows that were put in, a ring a view; rows wait until a step is taken.

    It starts empty, not filled with noise: random vectors are nearly orthogonal to every query, hence easy negatives
    and false neighbours. Mask rows from `filled` on.

    Attributes:
        rows: float32 [views, size, width].
        entered: int64 scalar, rows a view ever put in: the ring's head and fill, kept as a tensor so that neither
            needs a host synchronisation.
    """

    rows: Tensor
    entered: Tensor

    def __init__(self, views: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(views, size, width))
        self.register_buffer("entered", torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []

    @property
    def size(self) -> int:
        """Rows that a view can hold."""
        return self.rows.shape[1]

    def filled(self) -> Tensor:
        """bool [size], which rows hold something."""
        return torch.arange(self.size, device=self.rows.device) < self.entered

    def gather(self, rows: Tensor) -> None:
        """Let rows [views, N, width] wait for `commit`."""
        self._pending.append(rows.detach())
        # A loop that never commits must not grow without bound.
        while sum(waiting.shape[1] for waiting in self._pending[1:]) >= self.size:
            self._pending.pop(0)

    @torch.no_grad()
    def commit(self, taken: bool = True) -> None:
        """Put in all that waits, oldest out first; drop it instead where `taken` is false."""
        pending, self._pending = self._pending, []
        if not taken or not pending:
            return
        rows = torch.cat(pending, dim=1).to(self.rows.dtype)
        # Of more rows than places only the last survive; writing the others too would name a place twice, and the
        # order of such writes is undefined.
        dropped = max(0, rows.shape[1] - self.size)
        count = rows.shape[1] - dropped
        places = (self.entered + dropped + torch.arange(count, device=rows.device)) % self.size
        self.rows.index_copy_(1, places, rows[:, dropped:])
        self.entered += dropped + count


def scaled(published: int, images: int) -> int:
    """A published size of a ring for as many images as there are: it holds rows as old, in epochs, as there."""
    return published * min(images, CIFAR_IMAGES) // CIFAR_IMAGES
