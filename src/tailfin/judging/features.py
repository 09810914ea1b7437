"""Features of a whole split, in the order of its images."""

from collections.abc import Callable

import torch
from torch import Tensor

from tailfin.data.types import ImageSet


@torch.no_grad()
def extract(
    encode: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    images: ImageSet,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int = 512,
) -> tuple[Tensor, ...]:
    """What `encode` says about every image, unaugmented.

    Args:
        encode: From normalised views, float32 [N, C, size, size] on `device`, to one output [N, ...] or several
            (backbone and projector of one forward, say). Put its modules into eval mode first.
        images: The images.
        size: Side of the square view, in pixels.
        mean, std: Per-channel statistics of the training images, in [0, 1].
        device: Where to compute.
        batch_size: Images at a time.

    Returns:
        One float32 CPU tensor [len(images), ...] an output.

    Raises:
        ValueError: If there are no images.
    """
    from tailfin.views.augment import evaluate_view

    if len(images) == 0:
        raise ValueError("no images to extract features from")
    device = torch.device(device)
    collected: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        aspect = None if images.aspect is None else images.aspect[rows]
        view = evaluate_view(images.images[rows].to(device), size=size, mean=mean, std=std, aspect=aspect)
        outputs = encode(view)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # One tensor for the whole split from the start: collecting batches and joining them doubles the peak.
        collected = collected or [torch.empty(len(images), *output.shape[1:]) for output in outputs]
        for whole, output in zip(collected, outputs, strict=True):
            whole[rows] = output.to("cpu", torch.float32)
    return tuple(collected)
