"""SimCo: InfoNCE in the batch, with one temperature within an anchor and one between (arXiv 2203.17248)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._contrast import log_partition
from tailfin.methods.base import About, Method, Recipe, check_temperature, full_precision, pairs, unit

LARGEST_LOG_RATIO = 80.0
"""Of the anchors' weights; exp(80) is still far from float32's end, and exp(-80) from its underflow."""


class SimCo(Method):
    """SimCo with dual temperature; with momentum on all parts it is the authors' SimMoCo, made symmetric."""

    stop_gradient = False
    about = About(
        title="SimCo",
        family="contrastive",
        year=2022,
        source="2203.17248",
        idea="A view is to find its other view among those of the batch, with neither a queue nor momentum. Within "
        "an anchor a low temperature lets the hardest negatives dominate. Between anchors a high one keeps the easy "
        "ones from fading out, which a long queue does in MoCo.",
        equation=r"-\mathrm{sg}\!\left[\frac{1 - p_\beta}{1 - p_\alpha}\right] \log p_\alpha, \quad "
        r"p_\tau = \frac{\exp(q \cdot k_+ / \tau)}{\sum_k \exp(q \cdot k / \tau)}",
        expected={"CIFAR-100": 58.35},
        expected_source="the authors, ResNet-18, batch 256, 200 epochs",
    )
    recipe = Recipe(
        optimizer="sgd",
        lr=0.03,
        weight_decay=5e-4,
        views="mocov2",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=128,
        out=128,
        batch_norm=False,
        source="ChaoningZhang/Dual-temperature bash_files/simco.sh; decay: bash_files/simmoco.sh",
    )

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        temperature: float = 0.1,
        multiple: float = 10.0,
    ) -> None:
        """`temperature` is the one within an anchor; the one between anchors is `multiple` times that.

        Raises:
            ValueError: If either is not above 0.
        """
        super().__init__(hidden, out)
        if not multiple > 0:
            raise ValueError(f"multiple {multiple}; must be above 0")
        self.temperature = check_temperature(temperature)
        self.multiple = multiple

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """`dual_temperature`, the mean over pairs of views."""
        between = self.temperature * self.multiple
        return torch.stack(
            [dual_temperature(query, key, self.temperature, between) for query, key in pairs(online, target)]
        ).mean()


def dual_temperature(query: Tensor, key: Tensor, within: float, between: float) -> Tensor:
    """InfoNCE at temperature `within`, each anchor weighted as one at `between` would be (arXiv 2203.17248).

    With p(t) the share of the positive among all keys at temperature t, it is the mean over N anchors of
    -(1 - p(between)) / (1 - p(within)) * log p(within). The ratio has no gradient. InfoNCE pulls
    each anchor with 1 - p, so the ratio gives it the pull that it would have at `between`, while the negatives'
    shares in that pull stay those at `within`.

    Args:
        query: Online projections [N, P].
        key: Target projections of another view [N, P]; row i is query i's positive, the others its negatives.
        within: Temperature of the softmax over an anchor's negatives.
        between: Temperature that says how much the anchors differ in weight.

    Raises:
        ValueError: If N is 1, for then there is no negative.
    """
    with full_precision(query):
        query, key = unit(query), unit(key)
        if len(query) < 2:
            raise ValueError("1 image in the batch; SimCo needs 2 or more, for its negatives are the others")
        positive = (query * key).sum(dim=1)
        own = torch.arange(len(query), device=query.device)[:, None]
        # The margin is the log-odds against the positive: -log p = softplus(margin), 1 - p = sigmoid(margin). An
        # explicit 1 - p would be 0 from a margin of -17 on, and the ratio infinite.
        margins = [
            log_partition(query, key, temperature, own) - positive / temperature
            for temperature in (within, between)
        ]
        inner, outer = (F.logsigmoid(margin.detach()) for margin in margins)
        weight = (outer - inner).clamp(max=LARGEST_LOG_RATIO).exp()
        return (weight * F.softplus(margins[0])).mean()
