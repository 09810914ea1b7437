"""SimCLR: each view finds its other view among everything in the batch (arXiv 2002.05709)."""

import torch
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._contrast import log_partition
from tailfin.methods.base import About, Method, Recipe, check_temperature, crossings, full_precision, unit


class SimCLR(Method):
    """SimCLR with NT-Xent; with a momentum target, the keys come from the target branch."""

    stop_gradient = False
    about = About(
        title="SimCLR",
        family="contrastive",
        year=2020,
        source="2002.05709",
        idea="Two views of an image are to be more alike than any two views of different images. Every other image "
        "of the batch serves as a negative, so large batches help. A projector takes up what the contrast loses.",
        equation=r"-\log \frac{\exp(\cos(z_i, z_j) / \tau)}{\sum_{k \neq i} \exp(\cos(z_i, z_k) / \tau)}",
        expected={"CIFAR-10": 90.74, "CIFAR-100": 65.78},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.4,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        clip=True,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=256,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/simclr.yaml; views and head: arXiv 2002.05709; decay: ours",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-4,
        trust_coefficient=0.001,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        options={"temperature": 0.1},
        source="google-research/simclr run.py, lars_optimizer.py and README, ResNet-50 at batch 4096; head of two "
        "layers, without the last batch norm of the code: arXiv 2002.05709; decay: ours",
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
        """NT-Xent on the projections."""
        return nt_xent(online, target, self.temperature)


def nt_xent(online: Branch, target: Branch, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, the mean over all anchors and their positives.

    The anchor is online sample i in one view. Its positive is target sample i in another view; its negatives are the
    other samples' targets of all views. With two views and the target equal to the online branch this is arXiv
    2002.05709, equation 1.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch, of the same views or of the first ones alone.
        temperature: Divides the cosine similarities.
    """
    losses = []
    with full_precision(online.projections[0]):
        keys = [unit(projection) for projection in target.projections]
        count = len(keys[0])
        # Places of each sample's own keys in every view.
        own = torch.arange(count * len(keys), device=keys[0].device).view(len(keys), count).T
        for i, j in crossings(online, target):
            anchors = unit(online.projections[i])
            positive = (anchors * keys[j]).sum(dim=1) / temperature
            # Of the targets of sample i itself only the positive's view competes.
            absent = torch.cat((own[:, :j], own[:, j + 1 :]), dim=1)
            losses.append((log_partition(anchors, torch.cat(keys), temperature, absent) - positive).mean())
    return torch.stack(losses).mean()
