"""What a file tells of its depth and bands, which training does not see."""

import struct

import numpy as np
import pytest
from PIL import Image

from tailfin.data.about import fitted, look

GREY_16 = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7))
RGB = Image.new("RGB", (7, 5), (1, 2, 3))


def png_of_16_bits(folder):
    """Pillow writes no colours of 16 bits: the header of an 8-bit file, changed."""
    content = bytearray(folder.encode(RGB))
    content[24] = 16
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_of_grey_are_seen(folder, kind):
    about = look(folder.encode(GREY_16, kind))
    assert (about.kind, about.bits, about.grey, about.width, about.height) == (kind, 16, True, 7, 5)


def test_16_bits_of_colours_are_seen_though_pillow_says_rgb(folder):
    for content in (png_of_16_bits(folder), b"P6 2 1 65535 " + bytes(12)):
        about = look(content)
        assert (about.mode, about.bits) == ("RGB", 16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_plain_colours_lose_nothing(folder, kind):
    about = look(folder.encode(RGB, kind))
    assert (about.kind, about.bits, about.dropped, about.transparent) == (kind, 8, 0, False)


def test_a_fourth_band_is_told_from_transparency_and_from_inks(folder):
    fourth = look(folder.encode(Image.new("RGBX", (7, 5)), "TIFF"))
    assert (fourth.dropped, fourth.transparent) == (1, False)
    clear = look(folder.encode(Image.new("RGBA", (7, 5)), "TIFF"))
    assert (clear.dropped, clear.transparent) == (0, True)
    inks = look(folder.encode(Image.new("CMYK", (7, 5)), "TIFF"))
    assert (inks.dropped, inks.transparent) == (0, False)


def test_sizes_are_those_that_are_displayed(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    about = look(folder.encode(RGB, "JPEG", exif=exif))
    assert (about.width, about.height) == (5, 7)
    assert fitted(about, 70) == (5, 7)
    assert fitted(look(folder.encode(Image.new("L", (400, 1)))), 100) == (100, 1)
