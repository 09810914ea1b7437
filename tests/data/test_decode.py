"""Every kind of file becomes the pixels that it shows, or a reason in words."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from tailfin.data.decode import decode, read_header
from tailfin.data.source import Unreadable


def huge_png(width: int, height: int) -> bytes:
    """A file of a few bytes whose header tells a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_come_back_exactly(folder, kind):
    pixels = np.random.default_rng(0).integers(0, 2, (6, 9, 3), dtype=np.uint8) * 255
    options = {"lossless": True} if kind == "WEBP" else {}
    data = folder.encode(Image.fromarray(pixels), kind, **options)
    found, aspect = decode(data, (9, 6), 3)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))
    assert aspect == 1.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(folder, kind, orientation):
    image = folder.picture(24, 16, seed=3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = folder.encode(image, kind, exif=exif)
    path = folder.put("image.bin", data)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    header = read_header(data)
    assert (header.width, header.height) == expected.size
    found, aspect = decode(path, expected.size, 3)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))
    assert aspect == pytest.approx(expected.width / expected.height)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_costs_the_orientation_not_the_image(folder):
    data = folder.encode(folder.picture(24, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_header(data).width == 24
    assert decode(data, (24, 16), 3)[0].shape == (3, 16, 24)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(folder, mode):
    alpha = np.array([[0, 64, 255]], dtype=np.uint8)
    if mode == "RGBA":
        image = Image.fromarray(np.dstack([np.full((1, 3, 3), 100, np.uint8), alpha[..., None]]))
    elif mode == "LA":
        image = Image.fromarray(np.dstack([np.full((1, 3), 100, np.uint8), alpha]), "LA")
    else:
        image = Image.new("P", (3, 1))
        image.putpalette([100, 100, 100] * 3)
        image.putdata([0, 1, 2])
    options = {"transparency": bytes([0, 64, 255])} if mode == "P" else {}
    found, _ = decode(folder.encode(image, "PNG", **options), (3, 1), 3)
    # alpha * 100 + (1 - alpha) * 255
    expected = alpha / 255 * 100 + (1 - alpha / 255) * 255
    np.testing.assert_allclose(found[0], expected, atol=1)
    np.testing.assert_array_equal(found[0], found[1])


def test_sixteen_bit_grey_is_scaled_not_clipped(folder):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    data = folder.encode(Image.fromarray(values), "PNG")
    assert read_header(data).grey
    np.testing.assert_array_equal(decode(data, (4, 1), 1)[0], [[[0, 1, 128, 255]]])
    np.testing.assert_array_equal(decode(data, (4, 1), 3)[0][2], [[0, 1, 128, 255]])


@pytest.mark.parametrize("mode", ["CMYK", "P", "1", "L"])
def test_other_modes_become_what_they_show(folder, mode):
    image = folder.picture(12, 10, seed=1).convert(mode)
    data = folder.encode(image, "TIFF" if mode == "CMYK" else "PNG")
    found, _ = decode(data, (12, 10), 3)
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert read_header(data).grey == (mode in ("1", "L"))


def test_floating_point_pixels_are_refused_in_words(folder):
    data = folder.encode(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(Unreadable, match="floating-point"):
        decode(data, (4, 4), 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_squashing_is_antialiased_and_close_to_a_full_resize(folder, kind):
    image = folder.picture(701, 333, seed=5)
    found, aspect = decode(folder.encode(image, kind), (96, 96), 3)
    expected = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - expected).max() <= 6
    assert aspect == pytest.approx(701 / 333)
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (333, 350)))
    even, _ = decode(folder.encode(stripes, "PNG"), (96, 96), 1)
    assert even.min() > 110
    assert even.max() < 145


def test_the_format_is_found_from_the_content(folder):
    jpeg = folder.put("misnamed.png", folder.encode(folder.picture(20, 16), "JPEG"))
    assert decode(jpeg, (20, 16), 3)[0].shape == (3, 16, 20)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda f: b"", "empty: 0 bytes"),
        (lambda f: b"these are words, not pixels", "not an image"),
        (lambda f: f.encode(f.picture(64, 64), "JPEG")[:-200], "cut short"),
        (lambda f: f.encode(f.picture(64, 64), "JPEG")[:12], "cut short"),
        (lambda f: f.encode(f.picture(64, 64), "PNG")[:400], "cut short"),
        (lambda f: b"\x89PNG\r\n\x1a\n", "cut short or damaged: begins like a PNG file"),
        (lambda f: f.encode(f.picture(64, 64), "WEBP")[:60], "damaged: "),
        (lambda f: huge_png(30_000, 10), "30000 x 10 pixels; at most 20000 on a side"),
        (lambda f: huge_png(12_000, 12_000), "too large: 12000 x 12000"),
        (lambda f: huge_png(30_000, 30_000), "too large: more than 100 million"),
        (lambda f: b"\0\0\0\x18ftypheic" + bytes(100), "convert it to JPEG or PNG"),
        (lambda f: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_has_a_reason(folder, make, reason):
    data = make(folder)
    for source in (data, folder.put("broken.jpg", data)):
        with pytest.raises(Unreadable, match=reason):
            decode(source, (32, 32), 3)


def test_a_missing_file_has_a_reason(tmp_path):
    with pytest.raises(Unreadable, match="no such file"):
        read_header(tmp_path / "gone.png")
