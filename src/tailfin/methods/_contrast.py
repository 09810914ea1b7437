"""What the contrastive losses share: the sum over all keys, without the whole matrix of similarities."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_SIMILARITIES = 2**26
"""Held at once, 256 MiB of float32; for SimCLR batches of 4,096 and less are one piece."""


def log_partition(anchors: Tensor, keys: Tensor, temperature: float, absent: Tensor | None = None) -> Tensor:
    """log of the sum over keys of exp(anchor . key / temperature), float32 [N].

    Where there are more than `MOST_SIMILARITIES`, anchors are taken some at a time, and their similarities computed
    again for the gradient: a step's peak memory then grows with the batch and not with its square.

    Args:
        anchors: float32 [N, P].
        keys: float32 [M, P].
        temperature: Divides the products.
        absent: int64 [N, A], places of the keys that each anchor does not meet; None for none.
    """
    if absent is None:
        absent = torch.empty(len(anchors), 0, dtype=torch.int64, device=anchors.device)
    step = max(1, MOST_SIMILARITIES // len(keys))
    if len(anchors) <= step:
        return _piece(anchors, keys, temperature, absent)
    pieces = [
        checkpoint(_piece, some, keys, temperature, own, use_reentrant=False, preserve_rng_state=False)
        for some, own in zip(anchors.split(step), absent.split(step), strict=True)
    ]
    return torch.cat(pieces)


def _piece(anchors: Tensor, keys: Tensor, temperature: float, absent: Tensor) -> Tensor:
    return (anchors @ keys.T / temperature).scatter(1, absent, -torch.inf).logsumexp(dim=1)
