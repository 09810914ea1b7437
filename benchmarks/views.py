"""Views a second of SimCLR's recipe: ours (batched) against torchvision a sample (PIL, v2) and kornia (batched).

python benchmarks/views.py                 # 32 px and 224 px, one thread
python benchmarks/views.py --device cuda   # ours and kornia on the GPU, torchvision still on a CPU core
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import in_turn, ratio, save, spread, words
from torch import Tensor

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.views import recipes
from tailfin.views.augment import Augment
from tailfin.views.recipes import ViewRecipe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
COUNT = {32: 256, 224: 16}


def main() -> None:
    """Measure and print one row a size and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    figures: dict[str, Any] = {}
    for size, count in COUNT.items():
        count *= 1 if device.type == "cpu" else 16
        recipe = recipes.simclr(size)[0]
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        arms = arms_of(images, recipe, size, device)
        seconds = in_turn(arms, asked.rounds, device)
        for name, times in seconds.items():
            rates, over = spread([count / spent for spent in times]), ratio(times, seconds["ours"])
            figures[f"{size} px, {name}"] = {"views_per_second": rates, "ours_over_it": over}
            print(
                f"{size:>4} px  {name:<20}{rates['median']:>10,.0f} views/s; ours is {words(over, '.1f')} times as "
                f"fast, n = {len(times)}",
                flush=True,
            )
    save("views", device, figures, asked.out)


def arms_of(
    images: Tensor, recipe: ViewRecipe, size: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """One view of every image, by arm."""
    augment = Augment([recipe], size=size, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(0)
    here = images.to(device)
    arms: dict[str, Callable[[], Any]] = {"ours": lambda: augment(here, generator)}
    arms["torchvision, PIL"] = partial(per_sample_pil, images, torchvision_of(recipe, size, "v1"))
    arms["torchvision, v2"] = partial(per_sample, images, torchvision_of(recipe, size, "v2"))
    try:
        arms["kornia, batched"] = kornia_of(here, recipe, size)
    except ImportError:
        print("kornia is not installed: left out")
    return arms


def torchvision_of(recipe: ViewRecipe, size: int, api: str) -> Callable[[Any], Tensor]:
    """The same recipe in torchvision."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    t: Any = v1 if api == "v1" else v2
    steps = [
        t.RandomResizedCrop(size, scale=recipe.scale, ratio=recipe.ratio),
        t.RandomHorizontalFlip(recipe.flip),
        t.RandomApply(
            [t.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)], recipe.jitter
        ),
        t.RandomGrayscale(recipe.greyscale),
    ]
    if recipe.blur:
        steps.append(t.RandomApply([t.GaussianBlur(recipe.blur_kernel, recipe.blur_sigma)], recipe.blur))
    last = [t.ToTensor()] if api == "v1" else [t.ToDtype(torch.float32, scale=True)]
    return t.Compose([*steps, *last, t.Normalize(MEAN, STD)])  # type: ignore[no-any-return]


def per_sample_pil(images: Tensor, transform: Callable[[Any], Tensor]) -> Tensor:
    """As a DataLoader's worker does with a dataset of arrays, its collation included."""
    from PIL import Image

    return torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])


def per_sample(images: Tensor, transform: Callable[[Any], Tensor]) -> Tensor:
    """The same on tensors."""
    return torch.stack([transform(image) for image in images])


def kornia_of(images: Tensor, recipe: ViewRecipe, size: int) -> Callable[[], Tensor]:
    """The same recipe in kornia."""
    import kornia.augmentation as k

    steps = [
        k.RandomResizedCrop((size, size), scale=recipe.scale, ratio=recipe.ratio),
        k.RandomHorizontalFlip(p=recipe.flip),
        k.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue, p=recipe.jitter),
        k.RandomGrayscale(p=recipe.greyscale),
    ]
    if recipe.blur:
        kernel = (recipe.blur_kernel, recipe.blur_kernel)
        steps.append(k.RandomGaussianBlur(kernel, recipe.blur_sigma, p=recipe.blur))
    steps.append(k.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    transform = k.AugmentationSequential(*steps, data_keys=["input"])

    def run() -> Tensor:
        with torch.no_grad():
            return transform(images.float() / 255)  # type: ignore[no-any-return]

    return run


if __name__ == "__main__":
    main()
