"""The generated data set: ten kinds of shapes, told apart by their outlines and by nothing else.

Each image is a window on an endless pattern of one kind: nine copies, each with its own place, size, turn, colour
and texture, on grey noise. Two crops of an image share the kind of shape and nothing else that lasts under
augmentation, so telling images apart teaches the kind, while nearest neighbours in raw pixels find places and
colours. A ground with a colour of its own image by image would undo that: a contrastive encoder then learns the
ground and not the kind (kNN accuracy 15 % in place of 39 % in a trial of a few epochs).
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

_ROWS: Final = 3
_COPIES: Final = _ROWS**2
_CHUNK: Final = 500
# All lengths in pixels, all colours in [0, 1].
_RADIUS: Final = (3.2, 4.8)
_WANDER: Final = 2.0
_GROUND: Final = 0.5
_GAP: Final = (0.3, 0.5)
_HUE: Final = 0.15
_TEXTURE: Final = 0.12
_NOISE: Final = 0.02


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
    # A grid on a torus, shifted as a whole: every crop of some size shows most of a copy, and no place is likelier to
    # be covered than another.
    spots = torch.arange(_ROWS) * (SIDE / _ROWS)
    shift = _uniform(generator, count, 1, 2, high=SIDE)
    wander = _uniform(generator, count, _COPIES, 2, low=-_WANDER, high=_WANDER)
    centre = torch.cartesian_prod(spots, spots) + shift + wander
    radius = _uniform(generator, count, _COPIES, low=_RADIUS[0], high=_RADIUS[1])
    turn = _uniform(generator, count, _COPIES, high=2 * math.pi)
    ink = _inks(count, generator)

    # Each pixel belongs to the nearest copy.
    dy = _wrap(pixels[:, None] - centre[..., 0, None, None])
    dx = _wrap(pixels - centre[..., 1, None, None])
    owner = (dy.square() + dx.square()).argmin(dim=1)
    dy = dy.expand(-1, -1, -1, SIDE).gather(1, owner[:, None])[:, 0]
    dx = dx.expand(-1, -1, SIDE, -1).gather(1, owner[:, None])[:, 0]

    def owned(values: Tensor) -> Tensor:
        return values.gather(1, owner.flatten(1)).view(count, SIDE, SIDE)

    cos, sin, size = owned(turn.cos()), owned(turn.sin()), owned(radius)
    u, v = (cos * dx + sin * dy) / size, (cos * dy - sin * dx) / size
    distance = torch.empty_like(u)
    for label, outline in enumerate(_KINDS.values()):
        members = labels == label
        distance[members] = outline(u[members], v[members])
    # Within half a pixel of the outline, shape and ground mix.
    cover = (0.5 - distance * size).clamp_(0, 1)[:, None]

    colour = torch.stack([owned(ink[..., channel]) for channel in range(3)], dim=1)
    colour += _texture(u * size, v * size, owned, generator)[:, None]
    ground = _GROUND + _NOISE * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    return torch.lerp(ground, colour, cover).clamp_(0, 1)


def _wrap(offset: Tensor) -> Tensor:
    return torch.remainder(offset + SIDE / 2, SIDE) - SIDE / 2


def _inks(count: int, generator: torch.Generator) -> Tensor:
    """float32 [N, copies, 3]; each is lighter or darker than the ground."""
    gap = _uniform(generator, count, _COPIES, 1, low=_GAP[0], high=_GAP[1])
    lighter = torch.rand(count, _COPIES, 1, generator=generator) < 0.5
    hue = _uniform(generator, count, _COPIES, 3, low=-_HUE, high=_HUE)
    return torch.where(lighter, _GROUND + gap, _GROUND - gap) + hue - hue.mean(dim=2, keepdim=True)


def _texture(u: Tensor, v: Tensor, owned: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Nothing, a gradient, stripes or a checker for each copy, float32 [N, 32, 32]; `u` and `v` in pixels."""
    shape = (len(u), _COPIES)
    pitch, phase = (
        owned(_uniform(generator, *shape, low=0.8, high=1.6)),
        owned(_uniform(generator, *shape, high=6.3)),
    )
    amplitude = owned(_uniform(generator, *shape, high=_TEXTURE))
    kind = owned(torch.randint(4, shape, generator=generator))
    stripes = (pitch * u + phase).sin()
    checker = stripes * (pitch * v).sin()
    gradient = u / _RADIUS[1]
    choice = torch.where(kind == 1, gradient, torch.where(kind == 2, stripes, checker))
    return choice.mul_(amplitude).masked_fill_(kind == 0, 0)
