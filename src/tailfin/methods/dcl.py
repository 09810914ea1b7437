"""DCL: SimCLR whose positive does not compete with its own negatives (arXiv 2110.06848)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._contrast import log_partition
from tailfin.methods.base import About, Method, Recipe, check_temperature, crossings, full_precision, unit


class DCL(Method):
    """Decoupled contrastive learning; with a momentum target, the keys come from the target branch."""

    stop_gradient = False
    about = About(
        title="DCL",
        family="contrastive",
        year=2021,
        source="2110.06848",
        idea="As in SimCLR two views of an image attract each other and views of different images repel each other. "
        "The positive is taken out of the denominator, where it damps the gradient of every pair that is already "
        "alike. Small batches then lose little, and short runs learn faster.",
        equation=r"-\frac{\cos(z_i, z_i^+)}{\tau} + "
        r"\log \sum_{k \neq i} \left( \exp(\cos(z_i, z_k) / \tau) + \exp(\cos(z_i, z_k^+) / \tau) \right)",
        expected={"CIFAR-10": 85.36, "CIFAR-100": 61.92, "ImageNet": 68.2},
        expected_source="CIFAR: raminnakhli/Decoupled-Contrastive-Learning, ResNet-18, 100 epochs; "
        "ImageNet: the paper, ResNet-50, 200 epochs",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.12,
        weight_decay=5e-4,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=512,
        out=128,
        batch_norm=True,
        source="lightly docs/source/getting_started/benchmarks/cifar10_benchmark.py, 0.06 at batch 128; "
        "head: SimCLR's, without lightly's last batch norm; decay: ours",
        # The cosine starts at its peak there.
        warmup_epochs=0,
    )
    large = Recipe(
        optimizer="lars",
        lr=1.2,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        source="lightly benchmarks/imagenet/resnet50/dcl.py, 0.075 times the root of batch 256; "
        "head: SimCLR's, without lightly's last batch norm; decay: ours",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.1,
        sigma: float = 0.0,
    ) -> None:
        """`temperature` divides the cosines; `sigma` above 0 weights the positives (DCLW, published with 0.5).

        Raises:
            ValueError: If `temperature` is not above 0 or `sigma` is below 0.
        """
        super().__init__(hidden, out)
        if not sigma >= 0:
            raise ValueError(f"sigma {sigma}; must be 0 (no weights) or more")
        self.temperature = check_temperature(temperature)
        self.sigma = sigma

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`decoupled` on the projections."""
        return decoupled(online, target, self.temperature, self.sigma)


def decoupled(online: Branch, target: Branch, temperature: float, sigma: float = 0.0) -> Tensor:
    """Decoupled contrastive loss, the mean over all anchors and their positives (arXiv 2110.06848).

    The anchor is online sample i in one view, its positive target sample i in another view, its negatives the other
    samples' targets of all views. An anchor's loss is -cos(anchor, positive) / temperature + log of the sum over its
    negatives of exp(cos(anchor, negative) / temperature). As the positive is not in the sum, it may be below zero.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch, of the same views or of the first ones alone.
        temperature: Divides the cosines.
        sigma: If above 0, the first term is weighted, see `mises_fisher`.

    Raises:
        ValueError: If N is 1, for then nothing is left in the denominator.
    """
    losses = []
    with full_precision(online.projections[0]):
        keys = [unit(projection) for projection in target.projections]
        if len(keys[0]) < 2:
            raise ValueError(
                "1 image in the batch; DCL needs 2 or more, for without a negative its loss has no end"
            )
        own = torch.arange(len(keys[0]) * len(keys), device=keys[0].device).view(len(keys), -1).T
        for i, j in crossings(online, target):
            anchors = unit(online.projections[i])
            positive = (anchors * keys[j]).sum(dim=1)
            weights = mises_fisher(positive, sigma) if sigma > 0 else 1.0
            negatives = log_partition(anchors, torch.cat(keys), temperature, own)
            losses.append((negatives - weights * positive / temperature).mean())
    return torch.stack(losses).mean()


def mises_fisher(cosine: Tensor, sigma: float) -> Tensor:
    """Weights of N positives by their cosines [N], 2 at most and 1 on average, without a gradient (DCLW).

    2 - exp(cosine / sigma) / mean over the batch of exp(cosine / sigma), a negative von Mises-Fisher weight: the
    positive pairs that are the least alike count the most (arXiv 2110.06848). A weight can be below 0. Without a
    gradient as in lightly; the first author's repository lets one through.
    """
    return 2 - len(cosine) * (cosine.detach() / sigma).softmax(dim=0)
