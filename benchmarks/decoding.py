"""From a folder of JPEGs (500x400) to SimCLR views at 224 px: ours against torchvision, SPDL and NVIDIA DALI.

python benchmarks/decoding.py

Ours decodes in the first epoch alone; a further one is a second pass over what was loaded, which lies in memory or,
where it takes more than a third of it, in a memory-mapped cache: here by force, in arms of their own. The others
decode in every epoch. Views alone are made from batches that were picked before: a further epoch cannot take less.
No image has a label, so that none is held out and every arm sees all of them.

SPDL (pip install spdl, and FFmpeg's shared libraries) and DALI (pip install nvidia-dali-cuda130) run where they are
installed, on the CPU; what their views have otherwise is said in spdl_arm.py and dali_arm.py.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from common import in_turn, ratio, save, spread, words
from torch import Tensor
from torch.utils.data import DataLoader

from tailfin.compute.device import keep_freed_memory
from tailfin.data import store
from tailfin.data.load import load
from tailfin.data.types import ImageSet
from tailfin.views import recipes
from tailfin.views.augment import Augment
from views import MEAN, STD, torchvision_of

Picked = tuple[Tensor, Tensor | None]
Pairs = Callable[[], Iterator[tuple[Tensor, Tensor]]]

SIZE, BATCH = 224, 64
TORCHVISION, FURTHER, VIEWS = "torchvision, an epoch", "ours, further epoch, in memory", "views alone"


def main() -> None:
    """Measure and print one row an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        photos, cache = Path(folder) / "photos", Path(folder) / "cache"
        write(photos / "all", asked.images)
        arms = arms_of(photos, cache, asked.images, asked.workers)
        seconds = in_turn(arms, asked.rounds, torch.device("cpu"), warm=1)
    figures = {}
    for name, times in seconds.items():
        rates, over = spread([asked.images / spent for spent in times]), ratio(seconds[TORCHVISION], times)
        figures[name] = {"images_per_second": rates, "over_torchvision": over}
        print(f"{name:<34}{rates['median']:>8.1f} images/s, {words(over)} of torchvision", flush=True)
    share = ratio(seconds[VIEWS], seconds[FURTHER])
    print(f"views alone take {words(share)} of a further epoch in memory, n = {asked.rounds}")
    figures["views_of_further_epoch"] = share
    save("decoding", torch.device("cpu"), figures, asked.out)


def arms_of(photos: Path, cache: Path, count: int, workers: int) -> dict[str, Callable[[], float]]:
    """Seconds over every image, by arm."""
    kept = loaded(photos, cache, count, workers)
    mapped = loaded(photos, cache, count, workers, mapped=True)
    picked = [batch_of(kept, rows) for rows in order(count)]
    return {
        TORCHVISION: partial(torchvision_epoch, photos, workers),
        **{f"{name}, an epoch": partial(peer_epoch, pairs, count) for name, pairs in peers(photos, workers)},
        "ours, first epoch, in memory": partial(first_epoch, photos, cache / "new", count, workers),
        "ours, first epoch, mapped": partial(first_epoch, photos, cache / "new", count, workers, mapped=True),
        FURTHER: partial(epoch, kept),
        "ours, further epoch, mapped": partial(epoch, mapped),
        "ours, next run, mapped": partial(first_epoch, photos, cache, count, workers, mapped=True),
        VIEWS: partial(views_of, picked),
        "decoding alone": partial(decoding_alone, photos, workers),
    }


def write(folder: Path, count: int) -> None:
    """Pictures with detail at several scales, so that a file has a photo's size: about 60 kB."""
    from PIL import Image

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for place in range(count):
        picture = torch.zeros(1, 3, 400, 500)
        for side in (4, 16, 64, 200):
            noise = torch.randn(1, 3, side, side, generator=generator)
            picture += torch.nn.functional.interpolate(noise, (400, 500), mode="bicubic") * (4 / side) ** 0.5
        pixels = (128 + 60 * picture[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{place:05d}.jpg", quality=85)


def torchvision_epoch(photos: Path, workers: int) -> float:
    """Seconds of two views of every image through an ImageFolder and a DataLoader."""
    from torchvision.datasets import ImageFolder

    one = torchvision_of(recipes.simclr(SIZE)[0], SIZE, "v1")
    start = time.perf_counter()
    data = ImageFolder(str(photos), lambda image: (one(image), one(image)))
    for _ in DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=workers):
        pass
    return time.perf_counter() - start


def peers(photos: Path, workers: int) -> Iterator[tuple[str, Pairs]]:
    """Those of SPDL and DALI that run here, and what makes both views of batches of every image."""
    recipe = recipes.simclr(SIZE)[0]
    if find_spec("spdl") and find_spec("spdl.io"):
        import spdl_arm

        if spdl_arm.runs():
            yield "SPDL", partial(spdl_arm.pairs, photos, recipe, SIZE, BATCH, workers)
        else:
            print("SPDL does not find FFmpeg's shared libraries: left out")
    if find_spec("nvidia") and find_spec("nvidia.dali"):
        import dali_arm

        yield "DALI", partial(dali_arm.pairs, photos, recipe, SIZE, BATCH, workers, MEAN, STD)


def peer_epoch(pairs: Pairs, count: int) -> float:
    """Seconds of two views of every image through another library, which is built within them."""
    start = time.perf_counter()
    seen = sum(len(first) for first, _ in pairs())
    spent = time.perf_counter() - start
    if seen != count:
        sys.exit(f"{seen} of {count} images came out")
    return spent


def loaded(photos: Path, cache: Path, count: int, workers: int, *, mapped: bool = False) -> ImageSet:
    """The training images; `mapped` has the library take memory for full, so that it keeps them in its cache."""
    full = patch.object(store, "free_memory", lambda: 0) if mapped else nullcontext()
    with full:
        images = load(str(photos), image_size=SIZE, seed=0, tolerate=0.0, cache=cache, workers=workers).train
    if len(images) != count:
        sys.exit(f"{len(images)} of {count} images were loaded")
    if mapped and not any(cache.glob("decoded/*/images.npy")):
        sys.exit("the images were not kept in the cache")
    return images


def first_epoch(photos: Path, cache: Path, count: int, workers: int, *, mapped: bool = False) -> float:
    """Seconds from the folder to two views of every image; a cache called `new` is empty each time."""
    if cache.name == "new":
        shutil.rmtree(cache, ignore_errors=True)
    start = time.perf_counter()
    epoch(loaded(photos, cache, count, workers, mapped=mapped))
    return time.perf_counter() - start


def epoch(images: ImageSet) -> float:
    """Seconds of a pass over loaded images."""
    start = time.perf_counter()
    make_views(batch_of(images, rows) for rows in order(len(images)))
    return time.perf_counter() - start


def views_of(batches: Sequence[Picked]) -> float:
    """Seconds of the same without picking the images."""
    start = time.perf_counter()
    make_views(batches)
    return time.perf_counter() - start


def order(count: int) -> tuple[Tensor, ...]:
    """The images of each batch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).split(BATCH)


def batch_of(images: ImageSet, rows: Tensor) -> Picked:
    """Images and aspects of a batch."""
    return images.images[rows], None if images.aspect is None else images.aspect[rows]


def make_views(batches: Iterable[Picked]) -> None:
    """Two views of every image."""
    augment = Augment(recipes.simclr(SIZE), size=SIZE, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(0)
    for images, aspect in batches:
        augment(images, generator, aspect)


def decoding_alone(photos: Path, workers: int) -> float:
    """Seconds of torchvision's own decoder over the files, in threads: the limit of a first epoch."""
    from concurrent.futures import ThreadPoolExecutor

    from torchvision.io import decode_jpeg, read_file

    paths = [str(path) for path in photos.rglob("*.jpg")]
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: decode_jpeg(read_file(path)).shape, paths):
            pass
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
