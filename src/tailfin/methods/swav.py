"""SwAV: each view predicts the other view's code over prototypes (arXiv 2006.09882)."""

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import affordable
from tailfin.methods._ring import Ring
from tailfin.methods.base import (
    WIDE,
    About,
    Method,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    two_views,
    unit,
)

MOST_OF_A_RUN = 0.1
"""Share of a run in which prototypes may be frozen or the queue unused: a short run has to learn too."""


class SwAV(Method):
    """SwAV; the prototypes belong to the online branch alone and code the target's projections too.

    The codes carry no gradient. The prototypes' directions alone count: they are normalised in the loss, where
    the authors' code renormalises the weights before each step.

    Attributes:
        prototypes: float32 [K, out].
        queue: Unit projections of each of the target's views; None where `queue_size` is 0.
    """

    stop_gradient = True
    about = About(
        title="SwAV",
        family="prototypes",
        year=2020,
        source="2006.09882",
        idea="Each view gets a code: how strongly it belongs to each of many learnt prototypes. Codes are made so "
        "that all prototypes are used alike over the batch, which rules out collapse. A view is to predict the code "
        "of the other view.",
        equation=r"-\sum_k q(x')_k \log \mathrm{softmax}(z \cdot c / \tau)_k, \quad "
        r"Q = \mathrm{Sinkhorn}(\exp(C^\top Z' / \varepsilon))",
        expected={"CIFAR-10": 89.17, "CIFAR-100": 64.88},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.6,
        weight_decay=1e-6,
        trust_coefficient=0.02,
        clip=True,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/swav.yaml, but prototypes frozen for one epoch, as in "
        "arXiv 2006.09882, not two; views: SimCLR's at half strength; decay: ours",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.6,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        warmup_epochs=0,
        options={"queue_epochs": 15.0},
        source="facebookresearch/swav scripts/swav_200ep_bs256_pretrain.sh, which adds six small crops and cuts "
        "crops from .14 of the image on; decay: ours",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen_epochs: float = 1.0,
        queue_size: int = 3840,
        queue_epochs: float = 50.0,
    ) -> None:
        """Options of the loss; frozen prototypes and the wait for the queue last .1 of a run at most.

        Args:
            hidden: Hidden width of the projector.
            out: Its output width.
            prototypes: Their number.
            temperature: Divides the cosines of projections with prototypes.
            epsilon: The same where codes are made: the lower, the sharper the codes.
            iterations: Of Sinkhorn's algorithm.
            frozen_epochs: Epochs without gradient for the prototypes.
            queue_size: Earlier projections a view that the codes are balanced over too; 0 for none.
            queue_epochs: Epochs before the queue is used.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__(hidden, out)
        for name, value, least in (
            ("prototypes", prototypes, 2),
            ("iterations", iterations, 1),
            ("frozen_epochs", frozen_epochs, 0),
            ("queue_size", queue_size, 0),
            ("queue_epochs", queue_epochs, 0),
        ):
            if not value >= least:
                raise ValueError(f"{name} {value}; must be {least} or more")
        # Cosines span 2, and exp(2 / .025) is as much as float32's range holds.
        if not epsilon >= 0.025:
            raise ValueError(f"epsilon {epsilon}; must be 0.025 or more")
        self.temperature = check_temperature(temperature)
        self.epsilon, self.iterations = epsilon, iterations
        self.frozen_epochs, self.queue_epochs = frozen_epochs, queue_epochs
        self.prototypes = nn.Parameter(unit(torch.randn(prototypes, self.out)))
        self.queue = Ring(2, queue_size, self.out) if queue_size else None

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """3000 prototypes from 512 features on, 512 below; 12 images each at least.

        The queue holds an eighth of the images at most, 3840 from 30,720 images on.
        """
        values = super().defaults(in_features, images, image_size)
        prototypes = int(values["prototypes"]) if in_features >= WIDE else 512
        return {
            **values,
            "prototypes": affordable(prototypes, images),
            "queue_size": min(int(values["queue_size"]), images // 8),
        }

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Swapped prediction, the mean over pairs; in training mode the target's projections wait for the queue.

        Raises:
            ValueError: If there is a queue and the target has not two views.
        """
        prototypes = self.prototypes.detach() if self._within(self.frozen_epochs) else self.prototypes
        queue = self.queue
        if queue is not None:
            two_views(target.projections)
        loss = swapped_prediction(
            online,
            target,
            prototypes,
            self.temperature,
            self.epsilon,
            self.iterations,
            queue=None if self._within(self.queue_epochs) else queue,
        )
        if queue is not None and self.training and torch.is_grad_enabled():
            queue.gather(torch.stack([unit(view) for view in target.projections]))
        return loss

    def after_step(self, taken: bool = True) -> None:
        """Put the projections of all micro-batches since the last call into the queue, oldest out first."""
        if self.queue is not None:
            self.queue.commit(taken)

    def _within(self, epochs: float) -> bool:
        moment = self.moment
        if moment is None:
            return False
        return moment.step < min(epochs * moment.steps_per_epoch, MOST_OF_A_RUN * moment.total_steps)


def swapped_prediction(
    online: Branch,
    target: Branch,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    *,
    queue: Ring | None = None,
) -> Tensor:
    """Cross entropy of predictions with the other view's codes (arXiv 2006.09882, equations 1 and 2).

    The mean over samples and over every online view with every target view but its own, a float32 scalar; the
    paper has the sum over both directions.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch, of the same views or of the first ones alone.
        prototypes: [K, P], of any length.
        temperature: Divides the cosines of the predictions.
        epsilon: Divides those of the codes.
        iterations: Of Sinkhorn's algorithm.
        queue: Unit rows of each of the target's views that take part in the balance of the codes; None for none.
    """
    with full_precision(prototypes):
        directions = unit(prototypes)
        fixed = directions.detach().T
        codes = []
        for view, projection in enumerate(target.projections):
            scores, weights = unit(projection.detach()) @ fixed, None
            if queue is not None:
                scores = torch.cat((scores, queue.rows[view].float() @ fixed))
                weights = scores.new_ones(len(scores))
                weights[len(projection) :] = queue.filled().to(weights.dtype)
            codes.append(sinkhorn(scores, epsilon, iterations, weights)[: len(projection)])
        predictions = [
            (unit(projection) @ directions.T / temperature).log_softmax(dim=1)
            for projection in online.projections
        ]
        losses = [-(codes[j] * predictions[i]).sum(dim=1).mean() for i, j in crossings(online, target)]
        return torch.stack(losses).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, weights: Tensor | None = None) -> Tensor:
    """Codes that use all prototypes alike, float32 [N, K], rows summing to 1 (arXiv 2006.09882, equations 3 to 5).

    Args:
        scores: Cosines [N, K] of N samples with K prototypes.
        epsilon: Weight of the entropy.
        iterations: Each scales prototypes to equal shares, then samples.
        weights: [N], 1 for a sample and 0 for an empty row, whose code is 0; None for all 1.
    """
    scores = scores.float()
    tiny = torch.finfo(torch.float32).tiny
    codes = ((scores - scores.max()) / epsilon).exp()
    if weights is not None:
        codes = codes * weights[:, None]
    for _ in range(iterations):
        codes = codes / codes.sum(dim=0, keepdim=True).clamp_min(tiny)
        codes = codes / codes.sum(dim=1, keepdim=True).clamp_min(tiny)
    return codes
