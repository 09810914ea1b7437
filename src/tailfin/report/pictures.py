"""Sheets of images: augmented views and nearest neighbours, as PNG data URIs."""

import base64
import io
from collections.abc import Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

# Shown at about 100 CSS pixels: 128 stays sharp and keeps a page with a hundred photographs near 3 MB.
LARGEST_SIDE = 128


def data_uri(image: Tensor) -> str:
    """A PNG data URI of one image, shrunk to `LARGEST_SIDE` where it is larger.

    Args:
        image: uint8 [C, H, W], C 1 (grey) or 3 (RGB).

    Raises:
        ValueError: Another dtype or shape.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is uint8 [1 or 3, H, W], not {image.dtype} {list(image.shape)}")
    pixels = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if image.shape[0] == 1 else pixels)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def views(images: Tensor | None) -> str:
    """The sheet of augmented views: uint8 [n, 1 + v, C, S, S], each image and then its views."""
    if images is None or images.shape[0] == 0:
        return '<p class="missing">No augmented views were kept.</p>'
    heads = ["original", *(f"view {index}" for index in range(1, images.shape[1]))]
    rows = [
        [_cell(image, f"image {row}, {head}", head) for image, head in zip(line, heads, strict=True)]
        for row, line in enumerate(images, start=1)
    ]
    return f"<p>Training images, and what the encoder was shown of each.</p>\n{_sheet(rows)}"


def neighbours(images: Tensor | None, names: Sequence[Sequence[str]] | None) -> str:
    """The sheet of nearest neighbours: uint8 [n, 1 + k, C, S, S], each test image and then its neighbours.

    Args:
        images: The images, or None where nothing was looked up.
        names: Class names, n rows of 1 + k, empty for an image without a label; None without labels.

    Raises:
        ValueError: `names` and `images` differ in shape.
    """
    if images is None or images.shape[0] == 0:
        return '<p class="missing">No nearest neighbours were looked up.</p>'
    if names is None:
        rows = [
            [
                _cell(image, f"test image {row}" + (f", neighbour {place}" if place else ""), _place(place))
                for place, image in enumerate(line)
            ]
            for row, line in enumerate(images, start=1)
        ]
        return (
            "<p>Images and their nearest training images, nearest first. Without class names nothing "
            f"says which neighbours are right.</p>\n{_sheet(rows)}"
        )
    if [len(row) for row in names] != [images.shape[1]] * images.shape[0]:
        raise ValueError(
            f"neighbour_names has rows of {[len(row) for row in names]} names for images {list(images.shape)}"
        )
    rows, right, told = [], 0, 0
    for row, (line, (query, *found)) in enumerate(zip(images, names, strict=True), start=1):
        cells = [_cell(line[0], f"test image {row}: {query}", query)]
        for place, name in enumerate(found, start=1):
            if not name:
                cells.append(_cell(line[place], f"test image {row}, neighbour {place}: no label", "no label"))
                continue
            same = name == query
            right, told = right + same, told + 1
            symbol, judged = ("✓", "right") if same else ("✗", "wrong")
            alt = f"test image {row}, neighbour {place}: {name}, {judged}"
            cells.append(_cell(line[place], alt, name, f'<b class="{judged}">{symbol}</b> '))
        rows.append(cells)
    said = f"{right} of {told} neighbours are of the test image's class"
    return (
        f"<p>Images (left) and their nearest training images, nearest first; {said} "
        f'(<b class="right">✓</b> right, <b class="wrong">✗</b> wrong).</p>\n{_sheet(rows)}'
    )


def _place(place: int) -> str:
    return f"neighbour {place}" if place else "test image"


def _cell(image: Tensor, alt: str, caption: str, mark: str = "") -> str:
    # Small images are shown enlarged; smoothing would hide what the encoder sees.
    small = ' class="pixels"' if image.shape[-1] < 96 else ""
    return (
        f'<div class="cell"><img{small} src="{data_uri(image)}" alt="{escape(alt)}">'
        f"<span>{mark}{escape(caption)}</span></div>"
    )


def _sheet(rows: Sequence[Sequence[str]]) -> str:
    lines = "\n".join(f'<div class="line">{"".join(cells)}</div>' for cells in rows)
    return f'<div class="sheet" style="--columns:{len(rows[0])}">\n{lines}\n</div>'
