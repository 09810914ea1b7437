"""Small host tensors to the device without making the host wait."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` (on the CPU) on `device`; pinned on the way to CUDA, as an unpinned copy would wait for the device."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
