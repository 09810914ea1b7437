"""SupCon: a view finds all views of its class among everything in the batch (arXiv 2004.11362)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._contrast import in_pieces
from tailfin.methods.base import About, Method, Recipe, check_temperature, crossings, full_precision, unit


class SupCon(Method):
    """SupCon, whose sum over positives stands outside the logarithm; with a momentum target the keys are its."""

    stop_gradient = False
    about = About(
        title="SupCon",
        family="contrastive",
        year=2020,
        source="2004.11362",
        idea="The views of all images of a class are to be alike, and unlike those of other classes. It is SimCLR "
        "with labels: every view of the class is a positive, not the other view alone. It shows what the labels of "
        "the images would add.",
        equation=r"-\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(z_i \cdot z_p / \tau)}"
        r"{\sum_{a \neq i} \exp(z_i \cdot z_a / \tau)}",
        needs=("labels",),
        expected={"CIFAR-10": 93.82, "CIFAR-100": 70.38},
        expected_source="solo-learn, ResNet-18, 1000 epochs, with its positives inside the logarithm",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.4,
        weight_decay=1e-5,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=256,
        batch_norm=False,
        source="solo-learn scripts/pretrain/cifar/supcon.yaml, with its positives inside the logarithm; views: arXiv "
        "2002.05709; decay: ours",
    )
    large = Recipe(
        optimizer="sgd",
        lr=0.5,
        weight_decay=1e-5,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=512,
        batch_norm=False,
        source="solo-learn scripts/pretrain/imagenet-100/supcon.yaml, ResNet-18; decay: ours",
    )

    def __init__(
        self, hidden: int | None = None, out: int | None = None, *, temperature: float = 0.2
    ) -> None:
        """`temperature` divides the cosine similarities.

        Raises:
            ValueError: If `temperature` is not above 0.
        """
        super().__init__(hidden, out)
        self.temperature = check_temperature(temperature)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`supervised_contrast` with the labels of the batch that `begin` told of.

        Raises:
            ValueError: If there is not one label an image.
        """
        count = len(online.projections[0])
        labels = None if self.moment is None else self.moment.labels
        if labels is None:
            raise ValueError(
                "SupCon needs a label an image, and this batch has none: give labelled images, and in a loop of your "
                "own call begin(Moment(...)) with their labels before the loss"
            )
        if labels.shape != (count,):
            raise ValueError(f"labels of shape {tuple(labels.shape)} for {count} images; one label an image")
        return supervised_contrast(online, target, labels, self.temperature)


def supervised_contrast(online: Branch, target: Branch, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss, sum outside the logarithm (arXiv 2004.11362), the mean over anchors.

    The anchor is online sample i in one view. Its positives are the target views of its class, its own image's other
    views among them; the target of the very same view takes no part. An anchor without a positive, which only a
    target of one view allows, counts for nothing. With a class for each image and two views it is NT-Xent.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch, of the same views or of the first ones alone.
        labels: int64 [N]; an image whose label is negative has none, and is a class of its own.
        temperature: Divides the cosine similarities.
    """
    crossings(online, target)
    labels = torch.where(labels < 0, -1 - torch.arange(len(labels), device=labels.device), labels)
    with full_precision(online.projections[0]):
        keys = torch.cat([unit(projection) for projection in target.projections])
        # A few kilobytes are staged by the driver: the host need not wait for the device.
        labels = labels.to(keys.device, non_blocking=True)
        count, views = len(labels), len(target.projections)
        classes = labels.repeat(views)

        def some(anchors: Tensor, labels: Tensor, *itself: Tensor) -> Tensor:
            """The loss of each anchor, and 1 where it has a positive."""
            logits = anchors @ keys.T / temperature
            rivals, positive = logits, labels[:, None] == classes
            for places in itself:
                rivals, positive = rivals.scatter(1, places, -torch.inf), positive.scatter(1, places, False)
            # Each difference weighed by itself: sums of logits would cancel where a class is one point.
            total = ((rivals.logsumexp(dim=1, keepdim=True) - logits) * positive).sum(dim=1)
            number = positive.sum(dim=1)
            return torch.stack((total / number.clamp(min=1), number.clamp(max=1)), dim=1)

        places = torch.arange(count * views, device=keys.device)[:, None]
        losses = torch.cat(
            [
                # A small crop has no counterpart in the target.
                in_pieces(some, len(keys), unit(each), labels, *places.split(count)[i : i + 1])
                for i, each in enumerate(online.projections)
            ]
        )
    return losses[:, 0].sum() / losses[:, 1].sum()
