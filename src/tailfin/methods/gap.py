"""Residual Momentum's gap loss, an addition to any method (arXiv 2211.09861)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods.base import NORM_FLOOR, full_precision


def gap_loss(online: Branch, target: Branch) -> Tensor:
    """Distance between both branches' projections of the same view, 2 - 2 cos, a float32 scalar.

    The mean over samples and over the views that both branches have. Methods compare the online branch with the
    target of *another* view; this draws it to the target of its own, so that the student does not lag behind.
    """
    views = list(zip(online.projections, target.projections, strict=False))
    with full_precision(online.projections[0]):
        gaps = [
            (2 - 2 * F.cosine_similarity(one.float(), other.detach().float(), dim=1, eps=NORM_FLOOR)).mean()
            for one, other in views
        ]
        return torch.stack(gaps).mean()
