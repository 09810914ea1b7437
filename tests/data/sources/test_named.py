"""Sets by name: layouts of torchvision's arrays, files found where they lie, and no network."""

import socket
import struct
from types import SimpleNamespace

import numpy as np
import pytest

import tailfin.data.sources.named as named
from tailfin.data import load
from tailfin.errors import UserError


@pytest.mark.parametrize(
    ("name", "layout", "extra"),
    [
        ("cifar10", (0, 2, 3, 1), {"targets": [1, 0, 1], "classes": ["cat", "dog"]}),
        ("stl10", (0, 1, 2, 3), {"labels": np.array([1, 0, 1], np.uint8), "classes": ["cat", "dog"]}),
    ],
)
def test_arrays_become_channels_first(name, layout, extra, monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 5), dtype=np.uint8)
    made = SimpleNamespace(data=pixels.transpose(layout), **extra)
    monkeypatch.setattr(named, "_makers", lambda: {name: lambda root, train: made})
    data = load(name, cache=tmp_path)
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.images, pixels)
        assert split.labels.tolist() == [1, 0, 1]
        assert split.classes == ("cat", "dog")


def test_files_put_there_by_hand_are_read(tmp_path):
    raw = tmp_path / "downloads" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, *pixels.shape)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI4B", 0, 0, 8, 1, 4, 9, 0, 1, 2))
    data = load("fashion_mnist", cache=tmp_path)
    np.testing.assert_array_equal(data.train.images[:, 0], pixels)
    assert data.test.labels.tolist() == [9, 0, 1, 2]
    assert data.train.classes[9] == "Ankle boot"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashion_mnist"])
def test_without_a_network_the_folder_is_named(name, monkeypatch, tmp_path, capsys):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(
        UserError, match=f"^{name}: not found and not downloaded .*put .* into {tmp_path}/downloads"
    ):
        load(name, cache=tmp_path)
    assert socket.getdefaulttimeout() is None
