"""The generated data set: ten kinds of shapes, told apart by their outline and by nothing else.

Each image holds four copies of one kind, each with its own place, size, turn, colours and texture, on a
textured ground. So two crops of an image share their kind and little more: telling images apart under
augmentation teaches the kind, while nearest neighbours in raw pixels find colours and places.
"""

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from tailfin.data.source import Listing

SIDE: Final = 32
TRAIN: Final = 6_000
TEST: Final = 2_000

_ROWS: Final = 2
_COPIES: Final = _ROWS**2
_CHUNK: Final = 500
_RADIUS: Final = (5.0, 7.5)
_JITTER: Final = 3.5
_GROUND: Final = (0.45, 0.55)
_GAP: Final = (0.3, 0.5)
_HUE: Final = 0.05
_TEXTURE: Final = 0.05


def _box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(u.abs() - width, v.abs() - height)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.75, 0.75)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    half, root = 0.5, math.sqrt(0.75)
    return torch.maximum(torch.maximum(root * u + half * v, -root * u + half * v), -v) - 0.52


def _star(u: Tensor, v: Tensor) -> Tensor:
    turn = torch.atan2(v, u).mul(5 / (2 * math.pi))
    inward = (turn - turn.round()).abs() * 2
    return (torch.hypot(u, v) - (1.15 - 0.75 * inward)) * 0.7


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 1.0, 0.28), _box(u, v, 0.28, 1.0))


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.75).abs() - 0.2


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.8 - torch.hypot(u - 0.5, v))


def _bars(u: Tensor, v: Tensor) -> Tensor:
    return _box(u.abs() - 0.55, v, 0.22, 0.9)


def _bow_tie(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum((v.abs() - u.abs()) * 0.7, u.abs() - 0.85)


def _angle(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u + 0.55, v, 0.25, 0.85), _box(u, v + 0.6, 0.8, 0.25))


# Distance to the outline in units of the radius, negative inside; u and v are coordinates about the centre.
_KINDS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "bars": _bars,
    "bow tie": _bow_tie,
    "angle": _angle,
}
CLASSES: Final = tuple(_KINDS)
# Makes the areas equal (1.75 squared radii), so that brightness does not betray the kind.
_SCALE: Final = (0.88, 0.88, 1.12, 0.93, 0.95, 0.965, 1.155, 1.05, 1.10, 1.12)


def list_shapes(seed: int) -> Listing:
    """The data set of a seed: 6,000 training and 2,000 test images, 32 x 32 RGB, ten classes of equal
    size."""
    images, labels = draw(TRAIN + TEST, seed)
    return Listing("shapes", images, labels, CLASSES, torch.arange(TRAIN + TEST) >= TRAIN)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 3, 32, 32] and labels int64 [count], the classes in turn.

    Equal seeds give equal images, on every machine up to the last bit of its sines and exponentials.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, count, _CHUNK):
        part = labels[start : start + _CHUNK]
        images[start : start + _CHUNK] = _render(part, generator).mul_(255).round_().to(torch.uint8)
    return images, labels


def _uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def _render(labels: Tensor, generator: torch.Generator) -> Tensor:
    """float32 [N, 3, 32, 32] in [0, 1]."""
    count = len(labels)
    pixels = torch.arange(SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")

    # Each copy about the middle of one quarter of a torus that is shifted as a whole: every crop of some size
    # shows most of one copy, and no place in the image is likelier to be covered than another.
    spots = torch.arange(_ROWS) * (SIDE / _ROWS)
    quarter = torch.cartesian_prod(spots, spots)
    shift = _uniform(generator, count, 1, 2, high=SIDE)
    centre = quarter + shift + _uniform(generator, count, _COPIES, 2, low=-_JITTER, high=_JITTER)
    radius = _uniform(generator, count, _COPIES, low=_RADIUS[0], high=_RADIUS[1])
    turn = _uniform(generator, count, _COPIES, high=2 * math.pi)
    cos, sin = turn.cos() / radius, turn.sin() / radius
    dy, dx = _wrap(y - centre[..., 0, None, None]), _wrap(x - centre[..., 1, None, None])
    u = cos[..., None, None] * dx + sin[..., None, None] * dy
    v = cos[..., None, None] * dy - sin[..., None, None] * dx
    distance = torch.empty_like(u)
    for label, outline in enumerate(_KINDS.values()):
        members = labels == label
        scale = _SCALE[label]
        distance[members] = outline(u[members] / scale, v[members] / scale) * scale
    # Within half a pixel of the outline, shape and ground mix.
    cover = (0.5 - distance * radius[..., None, None]).clamp_(0, 1)

    colours = _colours(count, generator)
    image = colours[:, 0, :, None, None] + _texture(count, x, y, generator)[:, None]
    for copy in range(_COPIES):
        ink = colours[:, copy + 1, :, None, None] + _texture(count, x, y, generator)[:, None]
        image = torch.lerp(image, ink, cover[:, copy, None])
    return image.clamp_(0, 1)


def _wrap(offset: Tensor) -> Tensor:
    return torch.remainder(offset + SIDE / 2, SIDE) - SIDE / 2


def _colours(count: int, generator: torch.Generator) -> Tensor:
    """Ground and ink colours, float32 [N, 1 + copies, 3]; each ink is lighter or darker than the ground."""
    level = _uniform(generator, count, 1, 1, low=_GROUND[0], high=_GROUND[1])
    gap = _uniform(generator, count, _COPIES, 1, low=_GAP[0], high=_GAP[1])
    sign = torch.rand(count, _COPIES, 1, generator=generator) < 0.5
    ink = torch.where(sign, level - gap, level + gap)
    hue = _uniform(generator, count, _COPIES, 3, low=-_HUE, high=_HUE)
    ink = ink + hue - hue.mean(dim=2, keepdim=True)
    return torch.cat([level.expand(-1, -1, 3), ink], dim=1).clamp_(0, 1)


def _texture(count: int, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """A gradient, stripes, a checker or noise of zero mean for each image, float32 [N, 32, 32]."""
    direction = _uniform(generator, count, 1, 1, high=2 * math.pi)
    phase = _uniform(generator, count, 2, 1, 1, high=2 * math.pi)
    pitch = _uniform(generator, count, 1, 1, low=0.8, high=1.6)
    amplitude = _uniform(generator, count, 1, 1, high=_TEXTURE)
    kind = torch.randint(4, (count, 1, 1), generator=generator)
    along = direction.cos() * x + direction.sin() * y
    across = direction.cos() * y - direction.sin() * x
    waves = (pitch * along + phase[:, 0]).sin()
    checker = waves * (pitch * across + phase[:, 1]).sin()
    gradient = (along + phase[:, 0] - along.mean(dim=(1, 2), keepdim=True)) / SIDE * 2
    noise = torch.randn(count, SIDE, SIDE, generator=generator)
    chosen = torch.where(
        kind == 0, gradient, torch.where(kind == 1, waves, torch.where(kind == 2, checker, noise))
    )
    return chosen * amplitude
