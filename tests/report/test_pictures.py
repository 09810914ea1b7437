import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tailfin.report.pictures import LARGEST_SIDE, data_uri, neighbours, views

from .document import read


def decoded(uri: str) -> "np.ndarray[Any, Any]":
    head, body = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_pixels_survive(channels: int, height: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=draw)
    found = decoded(data_uri(image))
    expected = image[0] if channels == 1 else image.permute(1, 2, 0)
    np.testing.assert_array_equal(found, expected.numpy())


def test_large_images_are_shrunk() -> None:
    image = torch.zeros(3, 300, 600, dtype=torch.uint8)
    image[0, :, 300:] = 255
    found = decoded(data_uri(image))
    assert found.shape == (LARGEST_SIDE // 2, LARGEST_SIDE, 3)
    assert found[:, :50].max() == 0
    assert found[:, -50:, 0].min() == 255


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)])
def test_other_tensors_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        data_uri(image)


def test_sheet_of_views_keeps_the_order() -> None:
    images = torch.arange(6, dtype=torch.uint8).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
    found = read(views(images)).all("img")
    assert [int(decoded(each.attributes["src"])[0, 0]) for each in found] == list(range(6))
    assert found[4].attributes["alt"] == "image 2, view 1"
    assert found[0].attributes["class"] == "pixels"


def test_neighbours_are_marked_right_or_wrong_by_symbol() -> None:
    images = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    sheet = read(neighbours(images, [["cat", "cat", "dog"], ["dog", "cat", "cat"]]))
    cells = [each.text() for each in sheet.all(kind="cell")]
    assert cells == ["cat", "✓ cat", "✗ dog", "dog", "✗ cat", "✗ cat"]
    assert "1 of 4 neighbours" in sheet.text()
    assert [each.attributes["alt"] for each in sheet.all("img")][2] == "test image 1, neighbour 2: dog, wrong"


def test_a_neighbour_without_a_label_is_neither_right_nor_wrong() -> None:
    page = neighbours(torch.zeros(1, 4, 3, 4, 4, dtype=torch.uint8), [["cat", "cat", "", "dog"]])
    assert "1 of 2 neighbours" in page
    assert page.count("no label") == 2  # beneath the picture, and for who cannot see it


def test_names_must_fit_the_images() -> None:
    images = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="neighbour_names"):
        neighbours(images, [["cat", "cat", "dog"]])
