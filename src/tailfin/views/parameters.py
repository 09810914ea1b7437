"""The random parameters of one view: drawn for each sample, on the host, in one fixed amount."""

import math
from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from tailfin.views.recipes import ViewRecipe

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_ORDERS = torch.tensor(list(permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE))))
_TRIES = 10
_CROP, _REST = 2 * _TRIES + 2, 11


@dataclass(frozen=True)
class ViewParameters:
    """What happens to each of N samples, on the CPU.

    Attributes:
        box: float64 [N, 4], top, left, height and width of the crop, in pixels of the stored image.
        flip, jitter, greyscale, blur, solarise: bool [N], whether the sample undergoes the operation.
        factors: float64 [N, 4], brightness, contrast and saturation factors, and the hue's shift in turns.
        order: int64 [N, 4], the jitter's operations in the order of application (indices into `factors`).
        sigma: float64 [N], standard deviation of the blur in pixels.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    greyscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarise: Tensor

    def __len__(self) -> int:
        return int(self.box.shape[0])

    def at(self, index: Tensor | slice) -> "ViewParameters":
        """The parameters of the samples at `index`, int64 [M] or a slice."""
        return ViewParameters(*[getattr(self, field.name)[index] for field in fields(self)])


def draw(
    recipe: ViewRecipe,
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    aspect: Tensor | None = None,
) -> ViewParameters:
    """Parameters of one view for `count` samples, independent between samples.

    The same amount of numbers is taken from the generator whatever the recipe and the images are, so that a
    change to one probability leaves all other parameters as they were.

    Args:
        recipe: The distribution.
        count: Number of samples N.
        height, width: Of the stored images, in pixels.
        generator: On the CPU.
        aspect: float [N], width / height of the originals; None where the stored images are the originals.
    """
    uniform = torch.rand(count, _CROP + _REST, generator=generator, dtype=torch.float64)
    crop, rest = uniform.split((_CROP, _REST), dim=1)
    if aspect is None:
        box = _pixel_boxes(recipe, crop, height, width)
    else:
        box = _canvas_boxes(recipe, crop, height, width, aspect.to("cpu", torch.float64))
    strength = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation], dtype=torch.float64)
    low, high = (1 - strength).clamp_min(0), 1 + strength
    return ViewParameters(
        box=box,
        flip=rest[:, 0] < recipe.flip,
        jitter=rest[:, 1] < recipe.jitter,
        factors=torch.cat((low + rest[:, 2:5] * (high - low), (2 * rest[:, 5:6] - 1) * recipe.hue), dim=1),
        order=_ORDERS[(rest[:, 6] * len(_ORDERS)).to(torch.int64)],
        greyscale=rest[:, 7] < recipe.greyscale,
        blur=rest[:, 8] < recipe.blur,
        sigma=recipe.blur_sigma[0] + rest[:, 9] * (recipe.blur_sigma[1] - recipe.blur_sigma[0]),
        solarise=rest[:, 10] < recipe.solarise,
    )


def _tries(recipe: ViewRecipe, crop: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (shares of the image) and aspect ratios of the tries, each [N, 10], of uniform numbers [N, 22]."""
    area = recipe.scale[0] + crop[:, :_TRIES] * (recipe.scale[1] - recipe.scale[0])
    low, high = math.log(recipe.ratio[0]), math.log(recipe.ratio[1])
    return area, (low + crop[:, _TRIES : 2 * _TRIES] * (high - low)).exp_()


def _first_fit(fits: Tensor, tries: Tensor, fallback: Tensor) -> Tensor:
    """Of `tries` [N, 10] the first that fits, or `fallback` [N]."""
    first = torch.where(fits, torch.arange(_TRIES), _TRIES).amin(dim=1, keepdim=True)
    return torch.cat((tries, fallback.unsqueeze(1)), dim=1).gather(1, first).squeeze(1)


def _pixel_boxes(recipe: ViewRecipe, crop: Tensor, height: int, width: int) -> Tensor:
    """Boxes of whole pixels, as torchvision's `RandomResizedCrop` draws them."""
    area, ratio = _tries(recipe, crop)
    area = area * (height * width)
    w, h = (area * ratio).sqrt_().round_(), (area / ratio).sqrt_().round_()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    # torchvision's own fallback: the largest central crop of a legal ratio
    full_h = max(1, min(height, round(width / recipe.ratio[0])))
    full_w = max(1, min(width, round(height * recipe.ratio[1])))
    count = crop.shape[0]
    h = _first_fit(fits, h, h.new_full((count,), full_h))
    w = _first_fit(fits, w, w.new_full((count,), full_w))
    none = ~fits.any(dim=1)
    top = (crop[:, -2] * (height - h + 1)).floor_()
    left = (crop[:, -1] * (width - w + 1)).floor_()
    top[none] = (height - full_h) // 2
    left[none] = (width - full_w) // 2
    return torch.stack((top, left, h, w), dim=1)


def _canvas_boxes(recipe: ViewRecipe, crop: Tensor, height: int, width: int, aspect: Tensor) -> Tensor:
    """Boxes of originals of shape `aspect` : 1, scaled to the canvas that they were squashed to."""
    area, ratio = _tries(recipe, crop)
    stretch = ratio / aspect.unsqueeze(1)
    w, h = (area * stretch).sqrt_(), (area / stretch).sqrt_()
    fits = (w <= 1) & (h <= 1)
    w = _first_fit(fits, w, (recipe.ratio[1] / aspect).clamp_max(1))
    h = _first_fit(fits, h, (aspect / recipe.ratio[0]).clamp_max(1))
    place = torch.where(fits.any(dim=1, keepdim=True), crop[:, -2:], 0.5)
    top, left = place[:, 0] * (1 - h), place[:, 1] * (1 - w)
    return torch.stack((top, left, h, w), dim=1) * torch.tensor([height, width] * 2, dtype=torch.float64)
