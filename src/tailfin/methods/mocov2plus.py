"""MoCo v2+: each view finds its other view's key among a queue of past keys (arXiv 2003.04297)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._ring import Ring
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
        queue: Unit keys of each view.
    """

    stop_gradient = True
    about = About(
        title="MoCo v2+",
        family="contrastive",
        year=2020,
        source="2003.04297",
        idea="A view is to find its other view's key among the keys of many earlier batches. The keys wait in a "
        "queue, so the number of negatives does not depend on the batch. A momentum encoder makes them, so that they "
        "do not go stale.",
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
    large = Recipe(
        optimizer="sgd",
        lr=0.3,
        weight_decay=3e-5,
        views="mocov2",
        placement="all",
        decay=0.99,
        decay_end=0.999,
        hidden=2048,
        out=256,
        batch_norm=False,
        options={"queue_size": 65536},
        source="solo-learn scripts/pretrain/imagenet/mocov2plus.yaml, ResNet-50, 400 epochs; crops: arXiv "
        "2003.04297's code",
    )

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
        self.queue = Ring(2, queue_size, self.out)

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """As in `Method`; the queue is the published one where the images are 50,000, as CIFAR's.

        It is the largest power of two within two thirds of the images: a queue longer than an epoch would hold
        keys of the batch's own images.
        """
        largest = 2 ** ((2 * images // 3).bit_length() - 1) if images > 1 else 1
        values = super().defaults(in_features, images, image_size)
        return {**values, "queue_size": min(int(values["queue_size"]), largest)}

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """InfoNCE over all pairs of views, averaged; in training mode the keys wait for `after_step`."""
        keys = two_views(target.projections)
        losses = [
            info_nce(online.projections[i], keys[j], self.queue.rows[j], self.queue.entered, self.temperature)
            for i, j in crossings(online, target)
        ]
        if self.training and torch.is_grad_enabled():
            self.queue.gather(torch.stack([unit(key) for key in keys]))
        return torch.stack(losses).mean()

    def after_step(self, taken: bool = True) -> None:
        """Put the keys of all micro-batches since the last call into the queues, oldest out first."""
        self.queue.commit(taken)


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
