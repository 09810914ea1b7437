"""How much of the embedding space is used: numbers that see a collapse which the loss does not show.

Each takes features [N, D] of any float dtype and returns a Python float; values that are not finite give NaN.
Compare them between runs of one method and one width only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_SIMILARITIES = 2**22


def effective_rank(features: Tensor) -> float:
    """RankMe: exp of the entropy of the normalised singular values, between 1 and min(N, D).

    Features of rank 1 (collapsed to one direction) give 1, as do zero features; 25,600 samples suffice.
    Source: arXiv 2210.02885, equation 1, with its epsilon of 1e-7.
    """
    values = features.detach().double()
    if not values.isfinite().all():
        return math.nan
    # The eigenvalues of the smaller Gram matrix are the squares, many times faster than an SVD; in float64 they
    # are exact to about 1e-8 of the largest singular value.
    gram = values.T @ values if values.shape[0] >= values.shape[1] else values @ values.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    if float(singular.sum()) == 0:
        return 1.0
    share = singular / singular.sum() + 1e-7
    return float((-share * share.log()).sum().exp())


def normalised_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit features, times sqrt(D).

    Near 1 where features spread evenly over the sphere, 0 where they have collapsed to a point
    (arXiv 2011.10566, section 4.1).
    """
    unit = F.normalize(features.detach().float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(features.shape[1])


def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance ** `alpha` of the unit features of two views of each sample, both [N, D]; 0 is aligned.

    Source: arXiv 2005.10242, equation 2.
    """
    difference = F.normalize(first.detach().float(), dim=1) - F.normalize(second.detach().float(), dim=1)
    return float(torch.linalg.vector_norm(difference, dim=1).pow(alpha).mean())


def uniformity(features: Tensor, *, t: float = 2.0) -> float:
    """Log of the mean over pairs of exp(-t * squared distance) of unit features: 0 is collapsed, lower is even.

    All pairs i < j, in memory bounded by blocks of rows; N of a few thousand is enough.
    Source: arXiv 2005.10242, equation 3 and appendix A.

    Raises:
        ValueError: If there are fewer than 2 samples.
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"{n} samples; uniformity compares pairs, so it needs 2 or more")
    unit = F.normalize(features.detach().double(), dim=1)
    total = unit.new_zeros(())
    step = max(1, _MOST_SIMILARITIES // n)
    for start in range(0, n, step):
        block = unit[start : start + step]
        # With row i of the block being sample start + i, the pairs j > i are the strict upper triangle.
        squared = torch.cdist(block, unit[start:], compute_mode="donot_use_mm_for_euclid_dist").square()
        total += squared.mul(-t).exp().triu(diagonal=1).sum()
    return float((total / (n * (n - 1) / 2)).log())


def lidar(features: Tensor, *, delta: float = 1e-4) -> float:
    """LiDAR: effective rank of the linear discriminant matrix of the surrogate task, between 1 and D.

    Each image is a class of its own and its augmented views are the class's samples, so that directions in which
    views of one image differ count less.
    Source: arXiv 2312.04000, section 4, equations 1 to 3, with its delta of 1e-4 and epsilon of 1e-7.

    Args:
        features: [N, Q, D]: Q views of each of N images.
        delta: Added to the diagonal of the within-class covariance.

    Raises:
        ValueError: Fewer than 2 images or 2 views.
    """
    images, views, width = features.shape
    if images < 2 or views < 2:
        raise ValueError(f"{images} images with {views} views; LiDAR needs 2 or more of both")
    values = features.detach().double()
    if not values.isfinite().all():
        return math.nan
    means = values.mean(dim=1)
    spread = means - means.mean(dim=0)
    between = spread.T @ spread / (images - 1)
    inner = (values - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / (images * (views - 1))
    within += delta * torch.eye(width, dtype=values.dtype, device=values.device)
    level, axes = torch.linalg.eigh(within)
    whiten = axes * level.clamp_min(delta).rsqrt() @ axes.T
    ratios = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp_min(0)
    if float(ratios.sum()) == 0:
        return 1.0
    share = ratios / ratios.sum() + 1e-7
    return float((-share * share.log()).sum().exp())
