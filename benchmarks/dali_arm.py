"""Two views of each JPEG of a folder with NVIDIA DALI on the CPU, without a GPU or its driver: an arm of decoding.py.

pip install nvidia-dali-cuda130            # or nvidia-dali-cuda120
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tailfin.views.recipes import ViewRecipe

AHEAD = 2
"""Batches under way at once: DALI's own default."""


def pairs(
    photos: Path,
    recipe: ViewRecipe,
    size: int,
    batch: int,
    workers: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Both views of batches of all images in a random order, every operation DALI's own.

    As in its docs one graph holds reading, decoding, once for both views, random resized crops with antialiasing, and
    flip, normalisation and layout in one operation. Its `color_twist` makes colour jitter and greyscale in one pass:
    in a fixed order, and with contrast about mid grey in place of the image's own. The Gaussian blur is conditional.

    Batches are asked for one by one, for DALI's iterator would begin the next epoch before the end of this one. They
    are copied, as that iterator does too: DALI writes the next ones where they lie.

    Args:
        photos: Folder of class folders.
        recipe: Of both views.
        size: Side of a view in pixels.
        batch: Images a batch. Where the images are no multiple of it, the last one is filled up with more of them,
            which are cut off here but were made.
        workers: Threads.
        mean, std: Of the channels, of values in [0, 1].
    """
    count = sum(1 for _ in photos.rglob("*.jpg"))
    graph = graph_of(
        str(photos),
        recipe,
        size,
        [255 * each for each in mean],
        [255 * each for each in std],
        batch_size=min(batch, count),
        num_threads=workers,
        device_id=None,
        seed=int(torch.randint(2**31, ())),
        prefetch_queue_depth=AHEAD,
    )
    graph.build()
    batches = math.ceil(count / batch)
    for _ in range(min(AHEAD, batches)):
        graph.schedule_run()
    for place in range(batches):
        first, second = (from_dlpack(views.as_tensor()).clone() for views in graph.share_outputs())
        graph.release_outputs()
        if place + AHEAD < batches:
            graph.schedule_run()
        left = count - place * batch
        yield first[:left], second[:left]


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def graph_of(folder: str, recipe: ViewRecipe, size: int, mean: list[float], std: list[float]) -> Any:
    """DALI's graph of both views."""
    files, _ = fn.readers.file(file_root=folder, random_shuffle=True)
    images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
    return view_of(images, recipe, size, mean, std), view_of(images, recipe, size, mean, std)


def view_of(images: Any, recipe: ViewRecipe, size: int, mean: list[float], std: list[float]) -> Any:
    """DALI's graph of one view."""
    view = fn.random_resized_crop(
        images, size=size, random_area=list(recipe.scale), random_aspect_ratio=list(recipe.ratio)
    )
    jitter, coloured = drawn(recipe.jitter), 1 - drawn(recipe.greyscale)
    view = fn.color_twist(
        view,
        brightness=1 + jitter * uniform(recipe.brightness),
        contrast=1 + jitter * uniform(recipe.contrast),
        saturation=coloured * (1 + jitter * uniform(recipe.saturation)),
        hue=jitter * uniform(360 * recipe.hue),
    )
    if fn.random.coin_flip(probability=recipe.blur, dtype=types.BOOL):
        sigma = fn.random.uniform(range=list(recipe.blur_sigma))
        view = fn.gaussian_blur(view, sigma=sigma, window_size=recipe.blur_kernel)
    return fn.crop_mirror_normalize(
        view,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=mean,
        std=std,
        mirror=fn.random.coin_flip(probability=recipe.flip),
    )


def drawn(probability: float) -> Any:
    """1 with this probability, or else 0, by image."""
    return fn.random.coin_flip(probability=probability, dtype=types.INT32)


def uniform(strength: float) -> Any:
    """A number in [-strength, strength] by image."""
    return fn.random.uniform(range=[-strength, strength]) if strength else 0.0
