"""Colour operations on batches in which every sample has its own parameters and its own order of operations.

Brightness, contrast and saturation are one affine map of the channels each, clamped; so a step of the jitter is one
small matrix product for all samples, whichever of the three it is for each of them. The hue is not affine; samples
sorted by when their hue comes make each hue step a slice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailfin.views.parameters import CONTRAST, HUE, SATURATION, ViewParameters
from tailfin.views.transfer import send

STEPS = 3
"""Affine steps of the jitter; the hue comes before one of them or after all."""

UNTOUCHED = STEPS + 1
"""The place of samples without jitter, after all others."""


def luma(channels: int) -> Tensor:
    """Weights of the channels in the grey value, float32 [C]: ITU-R BT.601, rounded as in torchvision."""
    return torch.tensor([0.2989, 0.587, 0.114] if channels == 3 else [1.0])


def hue_place(parameters: ViewParameters) -> Tensor:
    """Number of affine steps before the hue's, int64 [N]; `UNTOUCHED` for samples without jitter."""
    place = (parameters.order == HUE).to(torch.int64).argmax(dim=1)
    return torch.where(parameters.jitter, place, UNTOUCHED)


@dataclass(frozen=True)
class Jitter:
    """The colour jitter of M samples, sorted by `hue_place`, on the device of their images.

    Samples without jitter undergo identities, which are exact.

    Attributes:
        matrices: float32 [3, M, C, C], the channels' map of each affine step.
        contrast: float32 [3, M, 1, 1], the weight of the image's mean grey value in each of these steps.
        hue: float32 [M], the hue's shift in turns.
        bounds: Samples from bounds[k] to bounds[k + 1] shift their hue after k affine steps, k from 0 to 3.
    """

    matrices: Tensor
    contrast: Tensor
    hue: Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, parameters: ViewParameters, place: Tensor, channels: int, device: torch.device) -> "Jitter":
        """The jitter that `parameters` describe, whose samples are sorted by `place`."""
        affine = parameters.order[parameters.order != HUE].view(-1, STEPS)
        factor = parameters.factors.gather(1, affine).to(torch.float32)
        factor = torch.where(parameters.jitter.unsqueeze(1), factor, 1)
        rest = 1 - factor
        grey = luma(channels).expand(channels, channels)
        matrices = factor[..., None, None] * torch.eye(channels)
        matrices += (rest * (affine == SATURATION))[..., None, None] * grey
        contrast = (rest * (affine == CONTRAST)).t()[..., None, None]
        bounds = torch.searchsorted(place, torch.arange(UNTOUCHED + 1)).tolist()
        return cls(
            matrices=send(matrices.transpose(0, 1).contiguous(), device),
            contrast=send(contrast.contiguous(), device),
            hue=send(parameters.factors[:, HUE].to(torch.float32), device),
            bounds=tuple(bounds),
        )

    def at(self, chunk: slice) -> "Jitter":
        """The jitter of some of the samples."""
        count = len(self.hue[chunk])
        return Jitter(
            matrices=self.matrices[:, chunk],
            contrast=self.contrast[:, chunk],
            hue=self.hue[chunk],
            bounds=tuple(min(max(bound - chunk.start, 0), count) for bound in self.bounds),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The jittered images: float32 [M, C, H, W] in [0, 1], which serve as scratch space."""
        if self.bounds[-1] == 0:
            return images
        channels = images.shape[1]
        weights = send(luma(channels), images.device)
        pixels, scratch = images.flatten(2), torch.empty_like(images).flatten(2)
        for k in range(STEPS + 1):
            start, stop = self.bounds[k : k + 2]
            if channels == 3 and start < stop:
                shift_hue_(pixels[start:stop], self.hue[start:stop])
            if k < STEPS:
                mean = torch.matmul(pixels.mean(dim=2), weights).view(-1, 1, 1)
                torch.baddbmm(self.contrast[k] * mean, self.matrices[k], pixels, out=scratch)
                pixels, scratch = scratch.clamp_(0, 1), pixels
        return pixels.view_as(images)


def shift_hue_(pixels: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue in HSV space, in place and without a comparison of channels.

    With the channels scaled to (value - least) / chroma, the hue h in [0, 6) obeys |h - 3| = 2 + r - g - b, and
    h < 3 where g > b; the way back is a trapezium of the distance to each primary. Comparisons and `where` are not
    vectorised on CPUs: ten times the time of the arithmetic below.

    Args:
        pixels: float32 [M, 3, P] in [0, 1].
        turns: float32 [M], in [-0.5, 0.5].
    """
    red, green, blue = pixels.unbind(1)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(least)
    hue = (red - green).sub_(blue).add_(least).div_(chroma.clamp_min(1e-12)).add_(2)
    hue = torch.copysign(hue, blue - green).add_(turns.unsqueeze(1), alpha=6)
    centre, slope, level = send(
        torch.tensor([[0.0, 1.0, -1.0], [-1.0, 1.0, 1.0], [2.0, -1.0, -1.0]]), pixels.device
    ).view(3, 1, 3, 1)
    torch.add(hue.unsqueeze(1), centre, out=pixels)
    pixels.abs_().sub_(3).abs_().mul_(slope).add_(level).clamp_(0, 1)
    return pixels.mul_(chroma.unsqueeze(1)).add_(least.unsqueeze(1))


def greyscale(images: Tensor) -> Tensor:
    """The grey value in all channels, float32 [M, C, H, W]."""
    channels = images.shape[1]
    weights = send(luma(channels), images.device).expand(len(images), channels, channels)
    return torch.bmm(weights, images.flatten(2)).view_as(images)


def solarise(images: Tensor, threshold: float) -> Tensor:
    """Values from `threshold` on inverted, float32 [M, C, H, W] in [0, 1]."""
    return torch.where(images >= threshold, 1 - images, images)
