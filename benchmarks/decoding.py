"""From a folder of JPEGs (500x400) to SimCLR views at 224 px: ours against torchvision's ImageFolder and DataLoader.

python benchmarks/decoding.py

The first epoch decodes; further ones read the cache. torchvision decodes in every epoch.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import ratio, save
from torch.utils.data import DataLoader

from tailfin.data.load import load
from tailfin.training.device import keep_freed_memory
from tailfin.views import recipes
from tailfin.views.augment import Augment
from views import MEAN, STD, torchvision_of

SIZE = 224


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
        write(photos, asked.images)
        arms = {
            "torchvision, an epoch": lambda: torchvision_epoch(photos, asked.workers),
            "ours, first epoch": lambda: ours(photos, cache, asked.workers, fresh=True),
            "ours, further epochs": lambda: ours(photos, cache, asked.workers, fresh=False),
            "decoding alone": lambda: decoding_alone(photos, asked.workers),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(asked.rounds + 1):
            for name, run in arms.items():
                spent = run()
                if turn:
                    seconds[name].append(spent)
    figures = {}
    for name, times in seconds.items():
        over = ratio(seconds["torchvision, an epoch"], times)
        figures[name] = {"images_per_second": asked.images / median(times), "over_torchvision": over}
        print(
            f"{name:<24}{asked.images / median(times):>8.1f} images/s, {over['median']:.2f} "
            f"({over['low']:.2f} to {over['high']:.2f}) of torchvision",
            flush=True,
        )
    save("decoding", torch.device("cpu"), figures, asked.out)


def write(folder: Path, count: int) -> None:
    """Pictures with detail at several scales, so that a file has a photo's size: about 60 kB."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for place in range(count):
        picture = torch.zeros(1, 3, 400, 500)
        for side in (4, 16, 64, 200):
            noise = torch.randn(1, 3, side, side, generator=generator)
            picture += torch.nn.functional.interpolate(noise, (400, 500), mode="bicubic") * (4 / side) ** 0.5
        pixels = (128 + 60 * picture[0]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        path = folder / f"class{place % 2}" / f"{place:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)


def torchvision_epoch(photos: Path, workers: int) -> float:
    """Seconds of two views of every image through an ImageFolder and a DataLoader."""
    from torchvision.datasets import ImageFolder

    one = torchvision_of(recipes.simclr(SIZE)[0], SIZE, "v1")
    start = time.perf_counter()
    data = ImageFolder(str(photos), lambda image: (one(image), one(image)))
    for _ in DataLoader(data, batch_size=64, shuffle=True, num_workers=workers):
        pass
    return time.perf_counter() - start


def ours(photos: Path, cache: Path, workers: int, *, fresh: bool) -> float:
    """Seconds from the folder to two views of every image."""
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    start = time.perf_counter()
    data = load(str(photos), image_size=SIZE, seed=0, tolerate=0.0, cache=cache, workers=workers).train
    augment = Augment(recipes.simclr(SIZE), size=SIZE, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(0)
    for rows in torch.randperm(len(data)).split(64):
        augment(data.images[rows], generator, None if data.aspect is None else data.aspect[rows])
    return time.perf_counter() - start


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
