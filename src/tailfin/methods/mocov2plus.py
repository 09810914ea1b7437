"""MoCo v2+: each view finds its other view's key among a queue of past keys (arXiv 2003.04297)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.base import (
    About,
    Method,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    two_views,
    unit,
)


class MoCoV2Plus(Method):
    """MoCo v2 with a symmetric loss and one queue a view (arXiv 2011.10566, appendix; "v2+" in solo-learn).

    The queues start empty, not filled with noise: random vectors are nearly orthogonal to every query, hence
    easy negatives that teach nothing. Empty slots are masked. While nothing at all is queued, the other keys
    of the batch stand in, for with no negative the loss is zero and so is its gradient. From the second step
    on the loss is the published one, over the slots filled so far: the number of negatives only ever grows.

    Attributes:
        queue: float32 [2, queue_size, out], unit keys of each view; a ring.
        enqueued: int64 scalar, keys a view ever put in: the ring's head and fill, kept as a tensor so that
            neither needs a host synchronisation.
    """

    stop_gradient = True
    about = About(
        title="MoCo v2+",
        family="contrastive",
        year=2020,
        source="2003.04297",
        idea="A view is to find its other view's key among the keys of many earlier batches. The keys wait in a "
        "queue, so the number of negatives does not hang on the batch. A momentum encoder makes them, lest they go "
        "stale.",
        equation=r"-\log \frac{\exp(q \cdot k_+ / \tau)}{\exp(q \cdot k_+ / \tau) + "
        r"\sum_{k \in \text{queue}} \exp(q \cdot k / \tau)}",
        expected={"CIFAR-10": 92.94, "CIFAR-100": 69.89},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.3,
        weight_decay=1e-4,
        views="mocov2",
        placement="all",
        decay=0.99,
        decay_end=0.999,
        hidden=2048,
        out=256,
        batch_norm=False,
        source="solo-learn scripts/pretrain/cifar/mocov2plus.yaml",
    )
    queue: Tensor
    enqueued: Tensor

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.2,
        queue_size: int = 32768,
    ) -> None:
        """`queue_size` is the number of past keys a view; keep it below the size of the training set.

        Raises:
            ValueError: If `temperature` is not above 0 or `queue_size` is below 1.
        """
        super().__init__(hidden, out)
        if queue_size < 1:
            raise ValueError(f"queue_size {queue_size}; must be 1 or more")
        self.temperature = check_temperature(temperature)
        self.register_buffer("queue", torch.zeros(2, queue_size, self.out))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []

    @classmethod
    def defaults(cls, in_features: int, images: int) -> dict[str, float]:
        """As in `Method`; the queue is the published one where the images are 50,000, as CIFAR's.

        It is the largest power of two within two thirds of the images: a queue longer than an epoch would hold
        keys of the batch's own images.
        """
        largest = 2 ** ((2 * images // 3).bit_length() - 1) if images > 1 else 1
        values = super().defaults(in_features, images)
        return {**values, "queue_size": min(int(values["queue_size"]), largest)}

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """InfoNCE over all pairs of views, averaged; in training mode the keys wait for `after_step`."""
        keys = two_views(target.projections)
        losses = [
            info_nce(online.projections[i], keys[j], self.queue[j], self.enqueued, self.temperature)
            for i, j in crossings(online, target)
        ]
        if self.training and torch.is_grad_enabled():
            self._pending.append(torch.stack([unit(key.detach()) for key in keys]))
            # A loop that never calls after_step must not grow without bound.
            while sum(keys.shape[1] for keys in self._pending[1:]) >= self.queue.shape[1]:
                self._pending.pop(0)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, taken: bool = True) -> None:
        """Put the keys of all micro-batches since the last call into the queues, oldest out first."""
        pending, self._pending = self._pending, []
        if not taken or not pending:
            return
        size = self.queue.shape[1]
        keys = torch.cat(pending, dim=1).to(self.queue.dtype)
        # Of more keys than slots only the last survive; writing the others too would name a slot twice, and
        # the order of such writes is undefined.
        dropped = max(0, keys.shape[1] - size)
        count = keys.shape[1] - dropped
        slots = (self.enqueued + dropped + torch.arange(count, device=keys.device)) % size
        self.queue.index_copy_(1, slots, keys[:, dropped:])
        self.enqueued += dropped + count


def info_nce(query: Tensor, key: Tensor, queue: Tensor, enqueued: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a queue of negatives, the mean over N queries (arXiv 1911.05722, equation 1).

    Args:
        query: Online projections [N, P].
        key: Target projections of the other view [N, P]; row i is query i's positive. While the queue is
            empty the other rows are its negatives.
        queue: Unit keys of earlier batches [K, P], filled from row 0 on.
        enqueued: int64 scalar, how many keys were ever put in; rows from there on are empty and ignored.
        temperature: Divides the cosine similarities.
    """
    with full_precision(query):
        query, key = unit(query) / temperature, unit(key)
        others = ~torch.eye(len(query), dtype=torch.bool, device=query.device)
        batch = (query @ key.T).masked_fill(others & (enqueued > 0), -torch.inf)
        # The mask rides along in the product: scaling and masking [256, 32768] afterwards made the loss and
        # its gradient 1.5 times slower on a CPU.
        empty = torch.arange(len(queue), device=query.device) >= enqueued
        mask = torch.zeros(len(queue), device=query.device).masked_fill(empty, -torch.inf)
        past = torch.addmm(mask, query, queue.float().T)
        return F.cross_entropy(torch.cat((batch, past), dim=1), torch.arange(len(query), device=query.device))
