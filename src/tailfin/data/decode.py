"""From the bytes of one image file to uint8 pixels, with errors in words."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tailfin.data.source import Unreadable

MAX_SIDE: Final = 20_000
MAX_PIXELS: Final = 100_000_000

# Formats are named so that no decoder which runs other programs (EPS) is ever reached.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_SIGNATURES: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_GREY_MODES: Final = {"1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N"}
_ALPHA_MODES: Final = {"LA", "PA", "RGBA", "RGBa"}
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """Width and height in pixels as displayed (after EXIF orientation), and whether it is grey alone."""

    width: int
    height: int
    grey: bool


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's size and metadata warnings around a pass: what is too large gets a reason here."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        yield


def read_header(source: bytes | Path) -> Header:
    """Size and colour of an image, without decoding its pixels.

    Raises:
        Unreadable: With the reason, for what is no image, empty, cut short in the header, or too large.
    """
    with _open(source) as image:
        turned = _orientation(image) >= 5
        width, height = image.size
        return Header(*((height, width) if turned else (width, height)), image.mode in _GREY_MODES)


def decode(source: bytes | Path, size: tuple[int, int], channels: int) -> tuple[NDArray[np.uint8], float]:
    """Pixels uint8 [channels, height, width] of an image, and width / height of the original.

    The image is turned as its EXIF orientation says and, where it is not of `size` already, squashed to it
    with antialiasing. Transparency is composited on white, 16-bit grey is scaled to 8 bits, of several frames
    the first is taken.

    Args:
        source: The file's bytes, or its path; the format is found from the content, never from the name.
        size: Width and height of the result.
        channels: 3 for RGB, 1 for grey.

    Raises:
        Unreadable: With the reason.
    """
    with _open(source) as image:
        aspect = image.width / image.height
        try:
            # Scales a JPEG down by 2, 4 or 8 inside the decoder, to no less than `size`; other formats ignore
            # it.
            image.draft(image.mode, size)
            image.load()
            orientation = _orientation(image)
            if orientation >= 5:
                aspect = 1 / aspect
            flat = _flatten(image, channels)
            if orientation in _UPRIGHT:
                flat = flat.transpose(_UPRIGHT[orientation])
            if flat.size != size:
                flat = flat.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            pixels = np.asarray(flat)
        except Unreadable:
            raise
        # Pillow's decoders raise whatever they meet in damaged data: OSError, SyntaxError, struct.error,
        # zlib.error, ...
        except Exception as error:
            raise Unreadable(_in_words(error)) from error
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), aspect


def _open(source: bytes | Path) -> Image.Image:
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Unreadable(_unidentified(source)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: more than {MAX_PIXELS // 10**6} million pixels") from error
    except FileNotFoundError as error:
        raise Unreadable("no such file") from error
    except Exception as error:
        raise Unreadable(_in_words(error)) from error
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        image.close()
        raise Unreadable(
            f"too large: {width} x {height} pixels; at most {MAX_SIDE} on a side"
            f" and {MAX_PIXELS // 10**6} million in all"
        )
    return image


def _unidentified(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        start = source[:16]
    else:
        with source.open("rb") as file:
            start = file.read(16)
    if not start:
        return "empty: 0 bytes"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return f"cut short or damaged: begins like a {kind} file, but cannot be read as one"
    if start[4:8] == b"ftyp":
        return "HEIC, AVIF or video: not readable here; convert it to JPEG or PNG"
    return "not an image"


def _in_words(error: Exception) -> str:
    words = str(error) or type(error).__name__
    if "truncated" in words.lower():
        return "cut short: the image data end too early"
    return f"damaged: {words}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that is still to be applied."""
    # Pillow turns a TIFF itself, and decodes a whole PNG to look for metadata behind the pixels.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    # Damaged metadata, which raise as many things as damaged pixels, must not cost the image.
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB: opaque, 8 bits."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise Unreadable("floating-point pixels: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow would clip at 255 instead of scaling.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise Unreadable("32-bit pixels: convert it to 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        return (
            Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB").convert(mode)
        )
    return image if image.mode == mode else image.convert(mode)
