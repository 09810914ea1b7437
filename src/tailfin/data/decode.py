"""From the bytes of one image file to uint8 pixels, with errors in words."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tailfin.data.bounds import IN_FLIGHT, MAX_PIXELS, Budget, check_scans, check_size
from tailfin.data.saying import Log, Stderr
from tailfin.data.source import Unreadable

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
ALPHA_MODES: Final = {"LA", "PA", "RGBA", "RGBa"}
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
_BYTES_A_PIXEL: Final = {"JPEG2000": 20, "AVIF": 20, "WEBP": 16}
"""That a decoder and what comes after take; 12 for others: Pillow holds 4, in up to three images."""
_COEFFICIENTS: Final = 3
"""Bytes a pixel of a JPEG of several scans, whatever the size to which it is decoded."""
_BAND: Final = 2**22
"""Pixels at a time, where an image is brought to 8 bits and opaque by way of wider types."""
_BUDGET: Final = Budget(IN_FLIGHT)
_LOG, _STDERR = Log(), Stderr()


@dataclass(frozen=True)
class Header:
    """Width and height in pixels as displayed (after EXIF orientation), and whether it is grey alone."""

    width: int
    height: int
    grey: bool


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings and log around a pass: what is wrong with an image gets a reason here."""
    Image.init()
    with warnings.catch_warnings(), _LOG.listening():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        yield


def read_header(source: bytes | Path) -> Header:
    """Size and colour of an image, without decoding its pixels.

    Raises:
        Unreadable: With the reason, for what is no image, empty, cut short in the header, or too large.
    """
    with open_image(source) as image:
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
    with open_image(source) as image:
        aspect = image.width / image.height
        try:
            needs = 0
            if image.format in ("JPEG", "MPO"):
                check_scans(source, *image.size)
                needs = _COEFFICIENTS * image.width * image.height
            # Scales a JPEG down by 2, 4 or 8 inside the decoder, to no less than `size`; other formats ignore
            # it.
            image.draft(image.mode, size)
            needs += _BYTES_A_PIXEL.get(image.format or "", 12) * image.width * image.height
            with _BUDGET.taking(needs):
                _load(image, source)
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


def _load(image: Image.Image, source: bytes | Path) -> None:
    """Decode; what libtiff writes to the terminal by itself is kept from it, and is the reason where it fails."""
    if image.format != "TIFF":
        image.load()
        return
    try:
        with _STDERR.led_away():
            image.load()
    except Exception as error:
        said: list[str] = []
        # Once more, for only one thread at a time can be heard.
        with _STDERR.heard(said), suppress(Exception), open_image(source) as again:
            again.load()
        if said:
            raise Unreadable(f"damaged: {said[-1]}") from error
        raise


def open_image(source: bytes | Path) -> Image.Image:
    """An image whose header is read, and whose pixels are not.

    Raises:
        Unreadable: As `read_header`.
    """
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Unreadable(_unidentified(source)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too large: more than {MAX_PIXELS // 10**6} million pixels") from error
    except Exception as error:
        raise Unreadable(_in_words(error)) from error
    try:
        check_size(image.format, *image.size)
    except Unreadable:
        image.close()
        raise
    return image


def _unidentified(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        start = source[:16]
    else:
        with source.open("rb") as file:
            start = file.read(16)
    if not start:
        return "empty: 0 bytes"
    if said := _LOG.last():
        return f"not readable here: {said}"
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            return f"cut short or damaged: begins like a {kind} file, but cannot be read as one"
    if start[4:8] == b"ftyp":
        return "HEIC, AVIF or video: not readable here; convert it to JPEG or PNG"
    return "not an image"


def _in_words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
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
        return _banded(image, "L", _of_16_bits).convert(mode)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _banded(image, "RGB", _opaque).convert(mode)
    return image if image.mode == mode else image.convert(mode)


def _banded(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image of `mode` made band by band, for the way there takes several times the memory of the result."""
    width, height = image.size
    rows = max(1, _BAND // width)
    if rows >= height:
        return change(image)
    whole = Image.new(mode, image.size)
    for top in range(0, height, rows):
        whole.paste(change(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return whole


def _of_16_bits(image: Image.Image) -> Image.Image:
    """From 16 bits to mode L by scaling; Pillow would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise Unreadable("32-bit pixels: convert it to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """In mode RGB, on white."""
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
