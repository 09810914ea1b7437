"""What the contrastive losses share: sums over all keys, without the whole matrix of similarities.

Where there are more of them than `MOST_SIMILARITIES`, anchors are taken some at a time, and their similarities
computed again for the gradient: memory then grows with the batch and not with its square. Up to there each sum keeps
its matrix for the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_SIMILARITIES = 2**26
"""Of one piece, 256 MiB of float32: of a pair of views, for SimCLR, up to a batch of 5,792."""


def log_partition(anchors: Tensor, keys: Tensor, temperature: float, absent: Tensor | None = None) -> Tensor:
    """log of the sum over keys of exp(anchor . key / temperature), float32 [N].

    Args:
        anchors: float32 [N, P].
        keys: float32 [M, P].
        temperature: Divides the products.
        absent: int64 [N, A], places of the keys that each anchor does not meet; None for none.
    """

    def some(anchors: Tensor, *absent: Tensor) -> Tensor:
        logits = anchors @ keys.T / temperature
        for places in absent:
            logits = logits.scatter(1, places, -torch.inf)
        return logits.logsumexp(dim=1)

    return in_pieces(some, len(keys), anchors, *(() if absent is None else (absent,)))


def in_pieces(some: Callable[..., Tensor], keys: int, *rows: Tensor) -> Tensor:
    """`some(*rows)`, whose rows are each computed from their own rows alone, [N, ...].

    Args:
        some: Compares the rows that it is given with all keys.
        keys: How many keys there are.
        rows: Tensors of N rows each.
    """
    step = max(1, MOST_SIMILARITIES // keys)
    if len(rows[0]) <= step:
        return some(*rows)
    pieces = [
        checkpoint(some, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(*(each.split(step) for each in rows), strict=True)
    ]
    return torch.cat(pieces)
