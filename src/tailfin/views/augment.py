"""Batched augmentation on the device, and the deterministic view for judging."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tailfin.views.colour import Jitter, greyscale, hue_place, solarise
from tailfin.views.geometry import gaussian_blur, resized_crop
from tailfin.views.parameters import ViewParameters, draw
from tailfin.views.recipes import ViewRecipe
from tailfin.views.transfer import send

# Values that each thread of a CPU works on at once: 96 views of 32 px (1.2 MB) or one of 224 px. Thousands of views a
# second in one thread at 32 px, chunks of 32, 64, 128 and 256: 19, 28, 36, 37 (calls dominate); hundreds at 224 px,
# chunks of 1, 2 and 5: 3.7, 3.1, 2.6 (temporaries leave the cache)
_CPU_CHUNK = 96 * 3 * 32 * 32
# On a GPU launches dominate: only what bounds the memory, 1 GiB a temporary
_GPU_CHUNK = 2**28


class Augment:
    """Random views of a batch: every sample has its own parameters in every view.

    Args:
        recipes: One distribution a view.
        size: Side of the views, in pixels.
        mean, std: Per-channel statistics of the images, in [0, 1]; one value each for a greyscale image.

    Raises:
        ValueError: A size, a statistic or a blur's kernel that cannot be.
    """

    def __init__(
        self, recipes: Sequence[ViewRecipe], *, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        _check_statistics(size, mean, std)
        for recipe in recipes:
            if recipe.blur > 0 and recipe.blur_kernel >= 2 * size:
                raise ValueError(
                    f"blur_kernel is {recipe.blur_kernel}; allowed: less than twice the size {size}"
                )
        self.recipes = tuple(recipes)
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        aspect: Tensor | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> list[Tensor]:
        """The views of `images`.

        Args:
            images: uint8 [N, C, H, W], C 1 or 3, on any device.
            generator: On the CPU, whatever the device: the same seed gives the same views everywhere.
            aspect: float32 [N], width / height of the originals of images that are squashed to one canvas; kept on
                the CPU, as the host would otherwise wait for the device. None: the images are the originals.
            share: Which of how many equal shares of a batch the images are: they get the views that they would have
                in the whole batch, whose `aspect` [N * shares] is then given.

        Returns:
            One float32 [N, C, size, size] a recipe, normalised, on the device of the images.

        Raises:
            ValueError: `images` or `aspect` is not as above.
        """
        own, _, height, width = images.shape
        number, shares = share
        rows = slice(number * own, (number + 1) * own)
        if aspect is not None and len(aspect) != own * shares:
            raise ValueError(f"aspect has shape {tuple(aspect.shape)}; allowed: ({own * shares},)")
        _check_images(images, self.mean, None if aspect is None else aspect[rows])
        views = []
        for recipe in self.recipes:
            parameters = draw(recipe, own * shares, height, width, generator, aspect).at(rows)
            views.append(self.apply(images, recipe, parameters))
        return views

    @torch.no_grad()
    def apply(self, images: Tensor, recipe: ViewRecipe, parameters: ViewParameters) -> Tensor:
        """The one view of uint8 `images` that `parameters` describe; `recipe` gives what is not random."""
        device, channels = images.device, images.shape[1]
        views = torch.empty(len(images), channels, self.size, self.size, device=device)
        # Sorted once for all chunks: most of them then hold one place of the hue, or no jitter at all.
        place, order = hue_place(parameters).sort(stable=True)
        parameters = parameters.at(order)
        jitter = Jitter.of(parameters, place, channels, device)
        with torch.autocast(device.type, enabled=False):
            for chunk in _chunks(views):
                index, own = order[chunk], parameters.at(chunk)
                x = resized_crop(images, index, own.box, self.size, own.flip)
                x = _coloured(jitter.at(chunk)(x), recipe, own)
                views.index_copy_(0, send(index, device), _normalise_(x, self.mean, self.std))
        return views


@torch.no_grad()
def evaluate_view(
    images: Tensor, *, size: int, mean: Sequence[float], std: Sequence[float], aspect: Tensor | None = None
) -> Tensor:
    """The deterministic view for judging: the central square of the original, resized and normalised.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3, on any device.
        size: Side of the view, in pixels.
        mean, std: Per-channel statistics, in [0, 1].
        aspect: float32 [N], width / height of the originals of squashed images; see `Augment`.

    Returns:
        float32 [N, C, size, size], on the device of the images.

    Raises:
        ValueError: An argument is not as above.
    """
    _check_statistics(size, mean, std)
    _check_images(images, mean, aspect)
    count, channels, height, width = images.shape
    if aspect is None:
        side = min(height, width)
        corner = (round((height - side) / 2), round((width - side) / 2))
        box = torch.tensor([*corner, side, side], dtype=torch.float64).expand(count, 4)
    else:
        ratio = aspect.to("cpu", torch.float64)
        share = torch.stack((ratio.clamp_max(1), (1 / ratio).clamp_max(1)), dim=1)
        box = torch.cat(((1 - share) / 2, share), dim=1) * torch.tensor([height, width] * 2)
    view = torch.empty(count, channels, size, size, device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        for chunk in _chunks(view):
            crop = resized_crop(images[chunk], torch.arange(count)[chunk] - chunk.start, box[chunk], size)
            view[chunk] = _normalise_(crop, mean, std)
    return view


def denormalise(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Views [N, C, H, W] as pictures, uint8 of the same shape."""
    scale, shift = _channel_values(std, views), _channel_values(mean, views)
    return (views * scale + shift).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _coloured(x: Tensor, recipe: ViewRecipe, parameters: ViewParameters) -> Tensor:
    """What comes after the jitter, each operation on the samples that undergo it."""
    if x.shape[1] == 3:
        x = _changed(x, parameters.greyscale, greyscale)
    sigma = parameters.sigma[parameters.blur].to(torch.float32)
    x = _changed(
        x, parameters.blur, lambda some: gaussian_blur(some, send(sigma, x.device), recipe.blur_kernel)
    )
    return _changed(x, parameters.solarise, lambda some: solarise(some, recipe.threshold))


def _changed(x: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`x`, which may be overwritten, with the chosen samples changed."""
    count = int(chosen.count_nonzero())
    if count == len(chosen):
        return change(x)
    if count:
        some = send(chosen.nonzero()[:, 0], x.device)
        x.index_copy_(0, some, change(x.index_select(0, some)))
    return x


def _normalise_(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return images.sub_(_channel_values(mean, images)).div_(_channel_values(std, images))


def _channel_values(values: Sequence[float], images: Tensor) -> Tensor:
    return send(torch.tensor(tuple(values), dtype=torch.float32), images.device).view(-1, 1, 1)


def _chunks(views: Tensor) -> list[slice]:
    """Samples to work on at once, given the views to make [N, C, size, size]."""
    values = _CPU_CHUNK * torch.get_num_threads() if views.device.type == "cpu" else _GPU_CHUNK
    count, step = len(views), max(1, values // views.shape[1:].numel())
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _check_statistics(size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if size < 1:
        raise ValueError(f"size is {size}; allowed: at least 1")
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ValueError(f"mean and std have {len(mean)} and {len(std)} values; allowed: 1 or 3 of each")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}; allowed: positive")


def _check_images(images: Tensor, mean: Sequence[float], aspect: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(mean):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; allowed: uint8 [N, {len(mean)}, H, W]"
        )
    if aspect is not None and aspect.shape != images.shape[:1]:
        raise ValueError(f"aspect has shape {tuple(aspect.shape)}; allowed: ({len(images)},)")
