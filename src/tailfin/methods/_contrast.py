"""What the contrastive losses share: the sum over all keys, without the whole matrix of similarities."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_SIMILARITIES = 2**26
"""Of one piece, 256 MiB of float32: of a pair of views, for SimCLR, up to a batch of 5,792."""


def log_partition(anchors: Tensor, keys: Tensor, temperature: float, absent: Tensor | None = None) -> Tensor:
    """log of the sum over keys of exp(anchor . key / temperature), float32 [N].

    Where there are more than `MOST_SIMILARITIES`, anchors are taken some at a time, and their similarities computed
    again for the gradient: memory then grows with the batch and not with its square. Up to there each sum keeps its
    matrix for the gradient.

    Args:
        anchors: float32 [N, P].
        keys: float32 [M, P].
        temperature: Divides the products.
        absent: int64 [N, A], places of the keys that each anchor does not meet; None for none.
    """
    step = max(1, MOST_SIMILARITIES // len(keys))
    if len(anchors) <= step:
        return _piece(anchors, keys, temperature, absent)
    pieces = []
    for start in range(0, len(anchors), step):
        own = None if absent is None else absent[start : start + step]
        some = anchors[start : start + step]
        pieces.append(
            checkpoint(_piece, some, keys, temperature, own, use_reentrant=False, preserve_rng_state=False)
        )
    return torch.cat(pieces)


def _piece(anchors: Tensor, keys: Tensor, temperature: float, absent: Tensor | None) -> Tensor:
    logits = anchors @ keys.T / temperature
    if absent is not None:
        logits = logits.scatter(1, absent, -torch.inf)
    return logits.logsumexp(dim=1)
