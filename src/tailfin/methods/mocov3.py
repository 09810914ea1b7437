"""MoCo v3: each view's prediction finds the target's other view among those of the batch (arXiv 2104.02057)."""

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._contrast import log_partition
from tailfin.methods.base import (
    About,
    Method,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    predict,
    unit,
)


class MoCoV3(Method):
    """MoCo v3 with the heads that its authors give a ResNet; the predictor belongs to the online branch alone."""

    stop_gradient = True
    about = About(
        title="MoCo v3",
        family="contrastive",
        year=2021,
        source="2104.02057",
        idea="The online branch predicts, through a head of its own, what a momentum copy of the encoder makes of "
        "the other view. The prediction is to be nearer to that than to what the copy makes of the batch's other "
        "images. There is no queue, so larger batches give more negatives.",
        equation=r"-2 \tau \log \frac{\exp(q \cdot k_+ / \tau)}{\sum_{k \in \text{batch}} \exp(q \cdot k / \tau)}",
        expected={"CIFAR-10": 93.10, "CIFAR-100": 68.83},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/mocov3.yaml",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="byol",
        placement="all",
        decay=0.99,
        decay_end=1.0,
        hidden=4096,
        out=256,
        batch_norm=True,
        options={"temperature": 1.0},
        source="facebookresearch/moco-v3 CONFIG.md, ResNet-50, 300 epochs at batch 4096; its crops start at .2, "
        "these at BYOL's .08",
    )

    def __init__(
        self, hidden: int | None = None, out: int | None = None, *, temperature: float = 0.2
    ) -> None:
        """The predictor has the projector's hidden width and its output width on both ends.

        Raises:
            ValueError: If `temperature` is not above 0.
        """
        super().__init__(hidden, out)
        self.temperature = check_temperature(temperature)
        self.predictor = two_layers(self.out, self.hidden, self.out)

    def projector(self, in_features: int) -> nn.Module:
        """Two layers, the last one normalised too, without a scale: [N, in_features] -> [N, out]."""
        head = two_layers(in_features, self.hidden, self.out)
        return head.append(nn.BatchNorm1d(self.out, affine=False))

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`batch_nce` summed over both directions; with further online views the mean over pairs, times two."""
        found = crossings(online, target)
        # Once a view: each pass moves the running statistics of the predictor's batch norm.
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        losses = [batch_nce(predictions[i], target.projections[j], self.temperature) for i, j in found]
        return 2 * torch.stack(losses).mean()


def two_layers(in_features: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear, neither layer with a bias: [N, in_features] -> [N, out]."""
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
    )


def batch_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE among the keys of the batch, times twice the temperature (arXiv 2104.02057), a float32 scalar.

    The factor keeps the gradient's size where the temperature changes.

    Args:
        query: Predictions of one view [N, P].
        key: Target projections of another view [N, P]; row i is query i's positive, the other rows are negatives.
        temperature: Divides the cosines.
    """
    with full_precision(query):
        query, key = unit(query), unit(key)
        positive = (query * key).sum(dim=1) / temperature
        return 2 * temperature * (log_partition(query, key, temperature) - positive).mean()
