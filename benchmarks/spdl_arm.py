"""Two views of each JPEG of a folder with SPDL: an arm of decoding.py.

pip install spdl                           # and FFmpeg's shared libraries, from the system's packages
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from tailfin.views.recipes import ViewRecipe
from views import torchvision_of


def runs() -> bool:
    """Whether SPDL finds FFmpeg's shared libraries, of a major version from 4 to 9."""
    try:
        spdl.io.decode_config()
    except RuntimeError:
        return False
    return True


def pairs(
    photos: Path, recipe: ViewRecipe, size: int, batch: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Both views of batches of all images in a random order, each image in one of SPDL's threads.

    As in its docs a filter with random numbers crops, resizes and flips what was decoded, here once for both views,
    and a pipeline with as many threads as the other arms have workers makes batches of it. It has no colour jitter,
    greyscale and Gaussian blur as torchvision draws them: torchvision's v2 makes them, an image at a time.

    Its filter resizes the image's luminance and its halved chrominance each by themselves, from an even pixel on.

    Args:
        photos: Folder of class folders.
        recipe: Of both views.
        size: Side of a view in pixels.
        batch: Images a batch; the last one has what is left.
        workers: Threads.
    """
    paths = [str(path) for path in photos.rglob("*.jpg")]
    random.shuffle(paths)
    colours = v2.Compose(torchvision_of(recipe, size, "v2").transforms[2:])  # type: ignore[attr-defined]

    def views(path: str) -> tuple[Tensor, Tensor]:
        first, second = crops(path, recipe, size)
        return colours(first), colours(second)

    def together(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([first for first, _ in items]), torch.stack([second for _, second in items])

    builder: Any = PipelineBuilder()
    pipeline = (
        builder.add_source(paths)
        .pipe(views, concurrency=workers)
        .aggregate(batch)
        .pipe(together)
        .add_sink()
        .build(num_threads=workers, max_failures=0)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of each thread of the pipeline, as in a DataLoader's workers
    try:
        with pipeline.auto_stop():
            yield from pipeline
    finally:
        torch.set_num_threads(threads)


def crops(path: str, recipe: ViewRecipe, size: int) -> tuple[Tensor, Tensor]:
    """Two crops of a file, resized and flipped, uint8 of shape (3, size, size)."""
    packets = spdl.io.demux_image(path)
    codec: Any = packets.codec
    filters = [f"{spdl.io.get_buffer_desc(codec)} [image]", "[image] split [whole0][whole1]"]
    for view in (0, 1):
        chain = crop(codec.width, codec.height, recipe, size)
        filters += [f"[whole{view}] {chain} [view{view}]", f"[view{view}] buffersink@view{view}"]
    graph: Any = spdl.io.FilterGraph(";".join(filters))
    graph.add_frames(spdl.io.decode_packets(packets, filter_desc=None))
    graph.flush()
    frames = [graph.get_frames(key=f"buffersink@view{view}") for view in (0, 1)]
    first, second = (spdl.io.to_torch(spdl.io.convert_frames(each))[0].permute(2, 0, 1) for each in frames)
    return first, second


def crop(width: int, height: int, recipe: ViewRecipe, size: int) -> str:
    """FFmpeg's filters of one view's random crop and flip."""
    empty = torch.empty(0, height, width)  # its shape alone is read
    top, left, tall, wide = v1.RandomResizedCrop.get_params(empty, list(recipe.scale), list(recipe.ratio))
    flip = "hflip," if torch.rand(()) < recipe.flip else ""
    return f"crop={wide}:{tall}:{left}:{top},scale={size}:{size}:flags=bilinear,{flip}format=rgb24"
