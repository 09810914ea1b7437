"""The distribution that one view's augmentation is drawn from, and the published pairs of views."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from tailfin.errors import UserError, unknown

LARGEST_SMALL_IMAGE = 64
"""Up to this side, in pixels, the CIFAR variant of a recipe is used: no Gaussian blur."""


@dataclass(frozen=True)
class ViewRecipe:
    """Distribution of one view; operations happen in the order of the fields.

    Attributes:
        scale: Crop area, as a share of the image's area; uniform in this interval.
        ratio: Crop width / height; log-uniform in this interval.
        flip: Probability of a horizontal flip.
        jitter: Probability of the colour jitter, whose four operations come in a random order.
        brightness, contrast, saturation: Strength s; the factor is uniform in [max(0, 1 - s), 1 + s].
        hue: Strength s in [0, 0.5], in turns of the colour circle; the shift is uniform in [-s, s].
        greyscale: Probability of removing the colour.
        blur: Probability of the Gaussian blur.
        blur_kernel: Side of the blur's kernel in pixels, odd.
        blur_sigma: Standard deviation of the blur in pixels; uniform in this interval.
        solarise: Probability of the solarisation.
        threshold: Values in [0, 1] from here on are inverted by the solarisation.

    Raises:
        UserError: A value lies outside what its line above says.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    greyscale: float = 0.0
    blur: float = 0.0
    blur_kernel: int = 23
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        intervals = {"scale": (0.0, 1.0), "ratio": (0.0, float("inf")), "blur_sigma": (0.0, float("inf"))}
        for name, (low, high) in intervals.items():
            first, last = getattr(self, name)
            if not low < first <= last <= high:
                raise UserError(
                    f"view {name} is ({first:g}, {last:g}); allowed: {low:g} < first <= last <= {high:g}"
                )
        upper = {"hue": 0.5, "brightness": float("inf"), "contrast": float("inf"), "saturation": float("inf")}
        for field in fields(self):
            if field.type is float:
                value, high = getattr(self, field.name), upper.get(field.name, 1.0)
                if not 0.0 <= value <= high:
                    raise UserError(f"view {field.name} is {value:g}; allowed: 0 to {high:g}")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise UserError(f"view blur_kernel is {self.blur_kernel}; allowed: odd and positive")


def simclr(size: int) -> tuple[ViewRecipe, ViewRecipe]:
    """Both views of SimCLR (arXiv 2002.05709, appendix A), for images of `size` pixels.

    On small images no blur and colour distortion at half strength (appendix B.9). Strength 1 there, as some
    libraries have it, needs long runs: after 8 epochs on 5,000 CIFAR-10 images kNN was 26.2 %, at half 31.8 %.
    """
    strength = 0.5 if size <= LARGEST_SMALL_IMAGE else 1.0
    colour = 0.8 * strength
    view = ViewRecipe(
        jitter=0.8, brightness=colour, contrast=colour, saturation=colour, hue=0.2 * strength, greyscale=0.2
    )
    view = _blurred(view, size, 0.5)
    return view, view


def byol(size: int) -> tuple[ViewRecipe, ViewRecipe]:
    """The two differing views of BYOL (arXiv 2006.07733, appendix B, table 6), for images of `size` pixels.

    The first is always blurred, the second rarely, but solarised at times; small images are never blurred.
    """
    view = ViewRecipe(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, greyscale=0.2)
    return _blurred(view, size, 1.0), _blurred(replace(view, solarise=0.2), size, 0.1)


def mocov2(size: int) -> tuple[ViewRecipe, ViewRecipe]:
    """Both views of MoCo v2 (arXiv 2003.04297, section 3), for images of `size` pixels.

    Large crops cover a fifth of the image at least, as in the authors' code; on small images the crop reaches
    down to .08, as in solo-learn's CIFAR recipe, and there is no blur.
    """
    scale = (0.08, 1.0) if size <= LARGEST_SMALL_IMAGE else (0.2, 1.0)
    view = ViewRecipe(
        scale=scale, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, greyscale=0.2
    )
    view = _blurred(view, size, 0.5)
    return view, view


def ressl(size: int) -> tuple[ViewRecipe, ViewRecipe]:
    """The strong and the weak view of ReSSL (arXiv 2107.09282), for images of `size` pixels.

    The weak one is cropped and flipped, no more. The strong one is MoCo v2's, as in the authors' code; on small
    images with the saturation of solo-learn's CIFAR recipe.
    """
    strong = mocov2(size)[0]
    if size <= LARGEST_SMALL_IMAGE:
        strong = replace(strong, saturation=0.2)
    return strong, ViewRecipe(scale=strong.scale)


PUBLISHED: dict[str, Callable[[int], tuple[ViewRecipe, ...]]] = {
    "simclr": simclr,
    "byol": byol,
    "mocov2": mocov2,
    "ressl": ressl,
}
"""What a method's recipe can name."""


def named(name: str, size: int, where: str = "") -> tuple[ViewRecipe, ...]:
    """The views that a method's recipe names, for images of `size` pixels.

    Args:
        name: One of `PUBLISHED`.
        size: Side of the views.
        where: What names them, for the message.

    Raises:
        UserError: There are no such views.
    """
    if name not in PUBLISHED:
        raise unknown("views", str(name), PUBLISHED, where=where)
    return PUBLISHED[name](size)


def local(view: ViewRecipe, size: int) -> ViewRecipe:
    """`view` as a small crop of `size` pixels: 5 to 40 % of the image, never solarised (DINO's, arXiv 2104.14294)."""
    small = replace(view, scale=(0.05, 0.4), blur=0.0, solarise=0.0)
    return _blurred(small, size, 0.5) if view.blur else small


def _blurred(recipe: ViewRecipe, size: int, probability: float) -> ViewRecipe:
    """`recipe` with a blur whose kernel spans a tenth of the image (SimCLR, appendix A); none if it is small."""
    if size <= LARGEST_SMALL_IMAGE:
        return recipe
    return replace(recipe, blur=probability, blur_kernel=2 * (size // 20) + 1)
