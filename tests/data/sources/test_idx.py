"""IDX files: pixels and labels exactly, and every lie of a header found out."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailfin.data import load
from tailfin.data.sources.idx import list_idx
from tailfin.errors import UserError


def idx(array, kind=0x08):
    return (
        struct.pack(">BBBB", 0, 0, kind, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 4), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dash", ["-", "."])
def test_a_folder_of_idx_files(folder, packed, dash):
    images = {"train": pixels(6), "t10k": pixels(3, 1)}
    labels = {"train": np.array([0, 1, 2, 0, 1, 2], np.uint8), "t10k": np.array([2, 0, 1], np.uint8)}
    for split in images:
        for what, array in (("images", images[split]), ("labels", labels[split])):
            content = idx(array)
            name = f"{split}-{what}{dash}idx{array.ndim}-ubyte"
            folder.put(name + (".gz" if packed else ""), gzip.compress(content) if packed else content)
    data = load(str(folder.root))
    np.testing.assert_array_equal(data.train.images[:, 0], images["train"])
    np.testing.assert_array_equal(data.test.images[:, 0], images["t10k"])
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test.labels.tolist() == [2, 0, 1]
    assert data.train.classes == ("0", "1", "2")


def test_one_file_of_images_without_labels(folder):
    array = pixels(4)
    data = load(str(folder.put("faces.gz", gzip.compress(idx(array)))))
    np.testing.assert_array_equal(data.train.images[:, 0], array)
    assert (data.name, data.train.labels, data.test) == ("faces", None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"hello world", "not an IDX file; it begins with 0x68656c6c"),
        (idx(pixels(2).astype(">i4"), kind=0x0C), "IDX type 0x0c with 3 dimensions; allowed: 0x08"),
        (idx(np.zeros(7, np.uint8)), "IDX type 0x08 with 1 dimensions"),
        (idx(pixels(2))[:-1], "2 x 5 x 4 = 40 bytes, it holds 39"),
        (idx(pixels(2)) + b"x", "2 x 5 x 4 = 40 bytes, it holds more"),
        (idx(pixels(2))[:9], "cut short inside its header"),
        (idx(pixels(0)), "empty; its header tells 0 x 5 x 4"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "it holds 0"),
        (gzip.compress(idx(pixels(2)), mtime=0)[:-12], "gzip"),
        (b"\x1f\x8b" + bytes(30), "gzip"),
    ],
)
def test_a_wrong_header_or_length_is_said(folder, content, message):
    folder.put("train-images-idx3-ubyte", content)
    with pytest.raises(UserError, match=message):
        load(str(folder.root))


@given(cut=st.integers(0, 55), packed=st.booleans())
@settings(deadline=None, max_examples=40)
def test_no_cut_goes_unnoticed(tmp_path_factory, cut, packed):
    content = gzip.compress(idx(pixels(2)), mtime=0) if packed else idx(pixels(2))
    file = tmp_path_factory.mktemp("cut") / "train-images-idx3-ubyte"
    file.write_bytes(content[: min(cut, len(content) - 1)])
    with pytest.raises(UserError):
        list_idx(file)


def test_counts_of_images_and_labels_must_agree(folder):
    folder.put("train-images-idx3-ubyte", idx(pixels(3)))
    folder.put("train-labels-idx1-ubyte", idx(np.zeros(4, np.uint8)))
    with pytest.raises(UserError, match="4 labels for 3 images"):
        load(str(folder.root))


def test_a_test_file_alone_is_said(folder):
    folder.put("t10k-images-idx3-ubyte", idx(pixels(3)))
    with pytest.raises(UserError, match="no train-images-idx3-ubyte"):
        load(str(folder.root))
