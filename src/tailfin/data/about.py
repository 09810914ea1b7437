"""What one image file is: its kind, its size, and what of its depth and bands training does not see."""

from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from tailfin.data.decode import ALPHA_MODES, decode, open_image, read_header
from tailfin.data.source import Blob, Unreadable

SUFFIX_OF: Final = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "TIFF": "tiff",
    "PPM": "ppm",
    "JPEG2000": "jp2",
    "AVIF": "avif",
}
_MOST_BYTES: Final = 2**30
_TIFF_BITS, _TIFF_BANDS = 258, 277


@dataclass(frozen=True)
class About:
    """What an image file tells of itself.

    Attributes:
        kind: Its format, by content: a key of `SUFFIX_OF`.
        mode: Pillow's name for its pixels: L, RGB, P, CMYK, ...
        width, height: In pixels, as displayed.
        grey: Whether it is grey alone.
        bits: Bits a channel; training sees 8.
        dropped: Bands beyond the third that are no transparency, and that training does not see.
        transparent: Whether it has transparency, which is put on white.
    """

    kind: str
    mode: str
    width: int
    height: int
    grey: bool
    bits: int
    dropped: int
    transparent: bool


def look(content: bytes) -> About:
    """What a file's content tells in its header; pixels are not decoded.

    Raises:
        Unreadable: As `decode.read_header`.
    """
    header = read_header(content)
    with open_image(content) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        transparent = image.mode in ALPHA_MODES or "transparency" in image.info
        bands = _bands(image)
        dropped = bands - 3 if bands > 3 and image.mode in ("RGB", "RGBX") else 0
        return About(
            kind,
            image.mode,
            header.width,
            header.height,
            header.grey,
            _bits(image, content),
            dropped,
            transparent,
        )


def read_whole(blob: Blob) -> bytes:
    """The bytes of an image, wherever they are.

    Raises:
        Unreadable: There are none, or too many.
    """
    if isinstance(blob, Unreadable):
        raise blob
    if isinstance(blob, bytes):
        return blob
    try:
        if (size := blob.stat().st_size) > _MOST_BYTES:
            raise Unreadable(f"too large: {size:,} bytes; at most {_MOST_BYTES:,}")
        return blob.read_bytes()
    except FileNotFoundError:
        raise Unreadable("no such file") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def check_pixels(content: bytes, about: About, side: int = 64) -> None:
    """Decode an image, small where its format can be decoded small: is it whole?

    Raises:
        Unreadable: It is not.
    """
    decode(content, fitted(about, side), 3)


def fitted(about: About, side: int) -> tuple[int, int]:
    """Width and height of an image that is brought to at most `side` on its longest side, and never enlarged."""
    shrink = min(1.0, side / max(about.width, about.height))
    return max(1, round(about.width * shrink)), max(1, round(about.height * shrink))


def _bands(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", None)
    told = tags.get(_TIFF_BANDS) if tags is not None and image.format == "TIFF" else None
    return told if isinstance(told, int) else len(image.getbands())


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits a channel in the file: Pillow brings colours to 8 without a word."""
    if image.mode == "1":
        return 1
    if image.mode.startswith("I;16"):
        return 16
    if image.mode == "F":
        return 32
    if image.format == "PNG":
        # The header's chunk stands first: depth follows width and height.
        return max(8, content[24]) if content[12:16] == b"IHDR" else 8
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        told = tags.get(_TIFF_BITS, 8)
        return max(told) if isinstance(told, tuple) and told else int(told or 8)
    if image.format == "JPEG2000":
        # The image header box has height, width, channels; a bare codestream has none, and its sizes lie at 40.
        box = content[:4096].find(b"ihdr")
        place = box + 14 if box >= 0 else 42
        return (content[place] & 0x7F) + 1 if len(content) > place else 8
    if image.format == "PPM":
        tiles: Any = getattr(image, "tile", None)
        args = tiles[0][3] if tiles else ()
        most = (
            max((each for each in args if isinstance(each, int)), default=255)
            if isinstance(args, tuple)
            else 255
        )
        return 16 if most > 255 or image.mode == "I" else 8
    return 16 if image.mode == "I" else 8
