"""Heads that several methods share, and how many prototypes go with how much data."""

from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.methods.base import full_precision, unit

IMAGES_A_PROTOTYPE = 12
"""At least so many images share a prototype: 4096 of them then go with CIFAR's 50,000 images."""


def three_layers(in_features: int, hidden: int, out: int) -> nn.Sequential:
    """Twice linear, batch norm and ReLU, then linear: [N, in_features] -> [N, out]."""
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out),
    )


def normalised_mlp(in_features: int, hidden: int, out: int, *, affine: bool) -> nn.Sequential:
    """Three linear layers, each with batch norm and all but the last with ReLU: [N, in_features] -> [N, out].

    No layer has a bias, for the norm would take it off again. `affine` gives the last norm a scale and a shift.
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
        nn.BatchNorm1d(out, affine=affine),
    )


def gelu_mlp(in_features: int, hidden: int, out: int) -> nn.Sequential:
    """Three linear layers with GELU between them: [N, in_features] -> [N, out] (arXiv 2104.14294, appendix C).

    Biases start at 0, weights from a normal distribution. (The authors' cut, at plus and minus 2, cuts nothing off.)
    Its deviation is .02 as published where `hidden` is 2048, and grows as hidden ** -0.5 below: .02 starves a narrow
    head. (After 460 steps of SimDINO on generated shapes with a 64-wide backbone, weights cut at two deviations, the
    loss was -0.57 with .02 and -1.71 so; one seed.)
    """
    layers = [nn.Linear(in_features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)]
    deviation = 0.02 * max(1.0, 2048 / hidden) ** 0.5
    for layer in layers:
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])


class Cosines(nn.Linear):
    """Cosines of the rows of [N, in_features] with learnt prototypes, float32 [N, prototypes].

    Weight normalisation with the length fixed at 1 and no bias: only the prototypes' directions are learnt.
    """

    def __init__(self, in_features: int, prototypes: int) -> None:
        super().__init__(in_features, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines, in full precision: a temperature of .04 makes 25 times more of their rounding."""
        with full_precision(x):
            return F.linear(unit(x), unit(self.weight))


def affordable(prototypes: int, images: int) -> int:
    """`prototypes`, or as many as leave `IMAGES_A_PROTOTYPE` images to each; 2 at least."""
    return max(2, min(prototypes, images // IMAGES_A_PROTOTYPE))
