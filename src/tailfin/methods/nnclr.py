"""NNCLR: the positive of a view is the nearest past neighbour of its other view (arXiv 2104.14548)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._contrast import log_partition
from tailfin.methods._heads import normalised_mlp
from tailfin.methods._support import NeighbourMethod
from tailfin.methods.base import (
    About,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    mlp,
    predict,
    unit,
)


class NNCLR(NeighbourMethod):
    """NNCLR; the neighbours are those of the target branch's projections, the candidates predictions."""

    about = About(
        title="NNCLR",
        family="contrastive",
        year=2021,
        source="2104.14548",
        idea="Every view is replaced by its nearest neighbour among the projections of many past images. That "
        "neighbour is to find, among the predictions of the whole batch, the other view of its image. Positives are "
        "thus more varied than augmentation alone makes them.",
        equation=r"-\log \frac{\exp(\mathrm{NN}(z_i, Q) \cdot q(z_i^+) / \tau)}"
        r"{\sum_k \exp(\mathrm{NN}(z_i, Q) \cdot q(z_k^+) / \tau)}",
        expected={"CIFAR-10": 91.88, "CIFAR-100": 69.62},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.4,
        weight_decay=1e-5,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/nnclr.yaml; decay: ours",
    )
    # The same but for the images: 128 on each of two devices are the 256 that the rate is for.
    large = replace(
        recipe, source="solo-learn scripts/pretrain/imagenet-100/nnclr.yaml, ResNet-18; decay: ours"
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.2,
        queue_size: int = 65536,
    ) -> None:
        """`temperature` divides the cosines; `queue_size` past projections are kept to look for neighbours in.

        The predictor is twice as wide as the projector's hidden layers.

        Raises:
            ValueError: If `temperature` is not above 0 or `queue_size` is below 1.
        """
        super().__init__(hidden, out, queue_size)
        self.temperature = check_temperature(temperature)
        self.predictor = mlp(self.out, 2 * self.hidden, self.out, batch_norm=True)

    def projector(self, in_features: int) -> nn.Module:
        """Three layers, the last one normalised too: [N, in_features] -> [N, out]."""
        return normalised_mlp(in_features, self.hidden, self.out, affine=True)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`neighbour_nce` over all pairs of views, averaged; in training mode the first target view is kept."""
        found = crossings(online, target)
        neighbours = [self.nearest(projection)[:, 0] for projection in target.projections]
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        self.remember(target)
        return torch.stack(
            [neighbour_nce(neighbours[j], predictions[i], self.temperature) for i, j in found]
        ).mean()


def neighbour_nce(neighbour: Tensor, prediction: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each neighbour among the batch's predictions, the mean over N (arXiv 2104.14548, section 3).

    Args:
        neighbour: What stands for one view [N, P]; row i's positive is prediction i.
        prediction: Of the other view [N, P]; the other rows are negatives.
        temperature: Divides the cosines.
    """
    with full_precision(prediction):
        anchors, keys = unit(neighbour), unit(prediction)
        positive = (anchors * keys).sum(dim=1) / temperature
        return (log_partition(anchors, keys, temperature) - positive).mean()
