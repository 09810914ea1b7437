"""Whether one judge is better than another on the same test images."""

from scipy.special import bdtrc
from torch import Tensor


def mcnemar(ours: Tensor, theirs: Tensor) -> float:
    """The one-sided p-value of McNemar's exact test (1947): how often chance alone makes us as much better.

    Only the images that one of both alone got right count. If both were right equally often, each of them would be
    ours with probability 1/2, and the p-value is the probability of as many as ours or more. However few they are,
    two equal judges have a p-value below .025 in 2.5 % of cases at most.

    Args:
        ours, theirs: bool [M], whether each test image was classified rightly.

    Raises:
        ValueError: They are of different images.
    """
    if ours.shape != theirs.shape or ours.dim() != 1:
        raise ValueError(f"answers of shape {list(ours.shape)} and {list(theirs.shape)}; both must be [M]")
    mine, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return float(bdtrc(mine - 1, mine + other, 0.5)) if mine else 1.0
