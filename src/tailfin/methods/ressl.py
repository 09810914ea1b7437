"""ReSSL: a strong view resembles past images as the target's weak view does (arXiv 2107.09282)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._ring import Ring, scaled
from tailfin.methods.base import About, Method, Recipe, check_temperature, crossings, full_precision, unit

HIDDEN = -1e9
"""Stands for minus infinity among logits: a probability of 0 times that is 0, not undefined."""


class ReSSL(Method):
    """ReSSL. Not symmetric: the target's last view, which its recipe augments weakly, teaches all other views.

    The queue starts empty, not filled with noise, for relations to noise teach nothing; empty places are masked.
    While nothing at all is queued, the keys of the batch's other images stand in.

    Attributes:
        queue: Unit target projections of past weak views.
    """

    stop_gradient = True
    about = About(
        title="ReSSL",
        family="contrastive",
        year=2021,
        source="2107.09282",
        idea="How much a view resembles each of many past images is a distribution, its relation to them. A strongly "
        "augmented view is to have the relation that a momentum encoder finds for a weakly augmented one. A lower "
        "temperature sharpens the target's relation, and no image has to be unlike all the others.",
        equation=r"-\sum_{k \in \text{queue}} p'_k \log p_k, \quad p' = \mathrm{softmax}(z' \cdot k / \tau_t), \quad "
        r"p = \mathrm{softmax}(z \cdot k / \tau_s), \quad \tau_t < \tau_s",
        expected={"CIFAR-10": 90.63, "CIFAR-100": 65.92},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.05,
        weight_decay=1e-4,
        views="ressl",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=False,
        source="solo-learn scripts/pretrain/cifar/ressl.yaml, views too but for their blur: a strong and a weak one; "
        "queue: solo/methods/ressl.py",
    )
    large = Recipe(
        optimizer="sgd",
        lr=0.05,
        weight_decay=1e-4,
        warmup_epochs=5,
        views="ressl",
        placement="all",
        decay=0.999,
        decay_end=0.999,
        hidden=4096,
        out=512,
        batch_norm=False,
        options={"queue_size": 131072},
        source="KyleZheng1997/ReSSL ressl.py, network/ressl.py and data/augmentation.py, ResNet-50, 200 epochs at "
        "batch 256",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.1,
        target_temperature: float = 0.04,
        queue_size: int = 65536,
    ) -> None:
        """The target's relations are sharper than the online ones where `target_temperature` is the lower.

        Raises:
            ValueError: If a temperature is not above 0 or `queue_size` is below 1.
        """
        super().__init__(hidden, out)
        if queue_size < 1:
            raise ValueError(f"queue_size {queue_size}; must be 1 or more")
        self.temperature = check_temperature(temperature)
        self.target_temperature = check_temperature(target_temperature)
        self.queue = Ring(1, queue_size, self.out)

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """As in `Method`; below CIFAR's 50,000 images the queue shrinks with them.

        It then reaches as far back, in epochs, as the published one.
        """
        values = super().defaults(in_features, images, image_size)
        return {**values, "queue_size": max(1, scaled(int(values["queue_size"]), images))}

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`relation` to the last target view, averaged over the other online views; in training mode its keys wait.

        Raises:
            ValueError: If there is no other online view.
        """
        weak = len(target.projections) - 1
        key = target.projections[weak]
        losses = [
            relation(
                online.projections[i],
                key,
                self.queue.rows[0],
                self.queue.entered,
                self.temperature,
                self.target_temperature,
            )
            for i, j in crossings(online, target)
            if j == weak
        ]
        if self.training and torch.is_grad_enabled():
            self.queue.gather(unit(key)[None])
        return torch.stack(losses).mean()

    def after_step(self, taken: bool = True) -> None:
        """Put the keys of all micro-batches since the last call into the queue, oldest out first."""
        self.queue.commit(taken)


def relation(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    enqueued: Tensor,
    temperature: float,
    target_temperature: float,
) -> Tensor:
    """Cross entropy of the query's with the key's relation to past keys, the mean over N (arXiv 2107.09282).

    Args:
        query: Online projections of a strong view [N, P].
        key: Target projections of the weak view of the same images [N, P]. While the queue is empty they stand in for
            it, save each for itself.
        queue: Unit keys of earlier batches [K, P], filled from row 0 on.
        enqueued: int64 scalar, how many keys were ever put in; rows from there on are empty and ignored.
        temperature: Divides the query's cosines.
        target_temperature: Divides the key's cosines.
    """
    with full_precision(query):
        query, key, queue = unit(query), unit(key), queue.float()
        empty = torch.arange(len(queue), device=query.device) >= enqueued
        past = torch.zeros(len(queue), device=query.device).masked_fill(empty, HIDDEN)
        own = torch.eye(len(query), dtype=torch.bool, device=query.device)
        batch = torch.zeros(own.shape, device=query.device).masked_fill(own | (enqueued > 0), HIDDEN)

        def logits(rows: Tensor, heat: float) -> Tensor:
            # As in MoCo's loss the mask rides along in the product.
            rows = rows / heat
            return torch.cat((torch.addmm(batch, rows, key.T), torch.addmm(past, rows, queue.T)), dim=1)

        wanted = logits(key, target_temperature).softmax(dim=1)
        return -(wanted * logits(query, temperature).log_softmax(dim=1)).sum(dim=1).mean()
