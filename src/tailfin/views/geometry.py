"""Crop, resize, flip and blur as two small matrix products an image: rows @ image @ columns^T."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.views.transfer import send

# Above this side a CPU multiplies the matrices in tiles that leave out what is zero in them: at 224 px a blur of 23
# taps then takes 0.7 ms instead of 1.4. Tiles of 32 to 64 are equally fast.
_TILE = 64
# From this many pixels on a CPU reads only what the crop needs of an image
_WHOLE = 64 * 64


def resize_weights(
    start: Tensor, extent: Tensor, source: int, size: int, flip: Tensor | None = None
) -> Tensor:
    """Matrices that crop one axis and resize it, bilinear and antialiased (a triangle as wide as the step).

    They agree with `torch.nn.functional.interpolate(antialias=True)` on a box of whole pixels; a pixel that the
    box covers in part counts by its covered share.

    Args:
        start, extent: float [N], the box along this axis, in pixels.
        source: Number of pixels along the axis.
        size: Number of pixels to make.
        flip: bool [N], whether to reverse the outcome.

    Returns:
        float32 [N, size, source], rows sum to 1.
    """
    start, extent = start.to(torch.float32).unsqueeze(1), extent.to(torch.float32).unsqueeze(1)
    step = (torch.arange(size, device=start.device) + 0.5) * (extent / size)
    if flip is not None:
        step = torch.where(flip.unsqueeze(1), extent - step, step)
    pixel = torch.arange(source, device=start.device) + 0.5
    inverse = (extent / size).clamp_min_(1).reciprocal_()
    covered = torch.minimum(pixel + 0.5, start + extent) - torch.maximum(pixel - 0.5, start)
    weights = (pixel * inverse).unsqueeze(1) - ((start + step) * inverse).unsqueeze(2)
    weights.abs_().neg_().add_(1).clamp_min_(0).mul_(covered.clamp_(0, 1).unsqueeze(1))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for every channel.

    Args:
        images: [N, C, H, W], contiguous.
        rows: [N, P, H].
        columns: [N, Q, W].

    Returns:
        [N, C, P, Q].
    """
    count, channels, height, width = images.shape
    flat = images.view(count, channels * height, width)
    wide = flat.new_empty(count, channels * height, columns.shape[1])
    for made, used in _tiles(columns):
        torch.bmm(flat[:, :, used], columns[:, made, used].transpose(1, 2), out=wide[:, :, made])
    wide = wide.view(count, channels, height, -1)
    parts = [torch.matmul(rows[:, None, made, used], wide[:, :, used]) for made, used in _tiles(rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _tiles(matrices: Tensor) -> list[tuple[slice, slice]]:
    """Rows of the matrices [N, P, H], in intervals, and the interval of columns outside which they are zero."""
    _, size, source = matrices.shape
    if matrices.device.type != "cpu" or size <= _TILE:
        return [(slice(0, size), slice(0, source))]
    tiles = []
    for start in range(0, size, _TILE):
        made = slice(start, start + _TILE)
        used = matrices[:, made].amax(dim=(0, 1)).nonzero()
        tiles.append((made, slice(int(used[0]), int(used[-1]) + 1)))
    return tiles


def resized_crop(images: Tensor, index: Tensor, box: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """The crops `box` of the images at `index`, resized to `size`, flipped where `flip` says so.

    Args:
        images: uint8 [M, C, H, W].
        index: int64 [N], on the CPU.
        box: float [N, 4], top, left, height and width in pixels, on the CPU.
        size: Side of the crops, in pixels.
        flip: bool [N], on the CPU.

    Returns:
        float32 [N, C, size, size] in [0, 1], on the device of `images`.
    """
    device = images.device
    if device.type == "cpu" and images.shape[2] * images.shape[3] > _WHOLE:
        pixels, box = _windows(images, index, box)
    else:
        # A copy for every image would cost more than reading the whole images
        pixels = images.index_select(0, send(index, device)).to(torch.float32)
    top, left, height, width = send(box.to(torch.float32), device).unbind(1)
    rows = resize_weights(top, height, pixels.shape[2], size)
    columns = resize_weights(left, width, pixels.shape[3], size, None if flip is None else send(flip, device))
    return separable(pixels, rows.mul_(1 / 255), columns)


def _windows(images: Tensor, index: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """What the boxes need of the images, zero-padded to one size, and the boxes within these windows."""
    corner = box[:, :2].floor()
    far = (box[:, :2] + box[:, 2:]).ceil()
    sides = torch.cat((corner, far), dim=1).to(torch.int64)
    limits = torch.tensor(images.shape[2:])
    sides[:, 2:] = torch.minimum(sides[:, 2:], limits)
    height, width = (sides[:, 2:] - sides[:, :2]).amax(dim=0).tolist()
    windows = torch.zeros(len(index), images.shape[1], height, width)
    for window, k, (top, left, bottom, right) in zip(windows, index.tolist(), sides.tolist(), strict=True):
        window[:, : bottom - top, : right - left].copy_(images[k, :, top:bottom, left:right])
    return windows, torch.cat((box[:, :2] - corner, box[:, 2:]), dim=1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with a standard deviation of its own for every image; the border is reflected.

    Args:
        images: float32 [N, C, S, S], contiguous.
        sigma: float32 [N], in pixels.
        kernel: Side of the kernel in pixels, odd, less than 2 S.
    """
    size, reach = images.shape[-1], kernel // 2
    offset = torch.arange(kernel, device=images.device) - reach
    weights = torch.softmax(-0.5 * (offset / sigma.unsqueeze(1)).square_(), dim=1)
    # Below the resolution of the sum; left in, their products are subnormal and slow a CPU tenfold
    weights.masked_fill_(weights < 1e-9, 0)
    # Entry (i, j) of a band is a function of j - i: windows that slide over the padded kernel
    padded = F.pad(weights, (size - 1 - reach, size - 1 - reach))
    matrix = padded.unfold(1, size, 1).flip(1).contiguous()
    if reach:
        # Pixel -j of the border is pixel j: a function of i + j, in two corners
        corner = F.pad(weights[:, reach + 1 :], (0, reach)).unfold(1, reach, 1)[:, :reach]
        matrix[:, :reach, 1 : reach + 1] += corner
        matrix[:, size - reach :, size - 1 - reach : size - 1] += corner.flip(1, 2)
    return separable(images, matrix, matrix)
