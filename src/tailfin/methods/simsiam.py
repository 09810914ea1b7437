"""SimSiam: each view predicts the other view, which has no gradient; nothing else (arXiv 2011.10566)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import normalised_mlp
from tailfin.methods.base import NORM_FLOOR, About, Method, Recipe, crossings, full_precision, mlp, predict


class SimSiam(Method):
    """SimSiam; the predictor, a bottleneck of a quarter of the width, keeps its peak learning rate."""

    stop_gradient = True
    about = About(
        title="SimSiam",
        family="prediction",
        year=2020,
        source="2011.10566",
        idea="The online branch predicts, through a head of its own, what the same encoder makes of the other view. "
        "There are no negatives and no momentum. The stopped gradient and the predictor keep the outputs from "
        "collapsing.",
        equation=r"-\tfrac{1}{2} \cos(q(z_1), \mathrm{sg}(z_2)) - \tfrac{1}{2} \cos(q(z_2), \mathrm{sg}(z_1))",
        expected={"CIFAR-10": 90.51, "CIFAR-100": 66.04},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.5,
        weight_decay=1e-5,
        views="mocov2",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=2048,
        batch_norm=True,
        source="solo-learn scripts/pretrain/cifar/simsiam.yaml; decay: ours",
    )
    large = Recipe(
        optimizer="sgd",
        lr=0.05,
        weight_decay=1e-4,
        views="mocov2",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=2048,
        batch_norm=True,
        warmup_epochs=0,
        source="facebookresearch/simsiam main_simsiam.py and README; decay: ours",
    )

    def __init__(
        self, hidden: int | None = None, out: int | None = None, *, predictor: int = 1, stop_gradient: int = 1
    ) -> None:
        """`predictor` 0 leaves it out; `stop_gradient` 0 lets momentum `none` send gradients into both branches.

        Without either the outputs collapse (sections 4.1 and 4.2; table 1a).
        """
        super().__init__(hidden, out)
        self.stop_gradient = bool(stop_gradient)
        head = mlp(self.out, max(1, self.out // 4), self.out, batch_norm=True)
        self.predictor = head if predictor else nn.Identity()

    def projector(self, in_features: int) -> nn.Module:
        """Three layers, the last one normalised too, without a scale: [N, in_features] -> [N, out]."""
        return normalised_mlp(in_features, self.hidden, self.out, affine=False)

    def fixed_rate(self) -> Iterable[nn.Parameter]:
        """The predictor's: it is to adapt to the latest projections throughout (section 4.2)."""
        return self.predictor.parameters()

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Negative cosine of prediction and target, the mean over both directions (section 3, equation 4)."""
        found = crossings(online, target)
        predictions = [predict(self.predictor, projection) for projection in online.projections]
        return torch.stack([negative_cosine(predictions[i], target.projections[j]) for i, j in found]).mean()


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over samples of -cos(prediction, target), both [N, P] (arXiv 2011.10566, equation 1)."""
    with full_precision(prediction):
        return -F.cosine_similarity(prediction.float(), target.float(), dim=1, eps=NORM_FLOOR).mean()
