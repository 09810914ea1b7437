"""Folders: classes, splits, what is passed over, what is broken, and the order."""

import json
import os
import struct
import zlib

import pytest
import torch
from PIL import Image

from tailfin import cli
from tailfin.data import load
from tailfin.data.sources.folder import list_folder
from tailfin.errors import UserError


def names(listing):
    return [listing.images.name(i) for i in range(listing.images.count)]


def test_class_folders_are_labels_and_fifteen_percent_is_held_out(folder):
    for kind in ("cat", "dog"):
        for i in range(20):
            folder.put(f"{kind}/{i:02}.png", seed=i)
    data = load(str(folder.root))
    assert data.name == "photos"
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels.bincount().tolist() == [17, 17]
    assert data.test.labels.bincount().tolist() == [3, 3]
    assert data.train.aspect is None
    assert tuple(data.train.images.shape) == (34, 3, 16, 20)


def test_a_flat_folder_has_no_labels_and_no_test_split(folder):
    for i in (2, 0, 1):
        folder.put(f"{i}.png")
    data = load(str(folder.root))
    assert (len(data.train), data.train.labels, data.train.classes, data.test) == (3, None, None, None)
    assert names(list_folder(folder.root)) == ["0.png", "1.png", "2.png"]


def test_images_beside_folders_mean_no_labels_and_none_is_lost(folder):
    for name in ("a/1.png", "b/2.png", "3.png"):
        folder.put(name)
    listing = list_folder(folder.root)
    assert listing.labels is None
    assert sorted(names(listing)) == ["3.png", "a/1.png", "b/2.png"]


@pytest.mark.parametrize("held", ["test", "val", "valid", "validation"])
def test_train_and_test_folders_are_splits(folder, held):
    for name in ("train/a/1.png", "train/b/2.png", "train/b/deep/3.png", f"{held}/b/4.png"):
        folder.put(name)
    listing = list_folder(folder.root)
    assert names(listing) == ["train/a/1.png", "train/b/2.png", "train/b/deep/3.png", f"{held}/b/4.png"]
    assert listing.labels.tolist() == [0, 1, 1, 1]
    assert listing.test.tolist() == [False, False, False, True]


def test_an_unlabelled_test_folder_gives_way_to_a_labelled_one(folder):
    for name in ("train/a/1.png", "train/b/2.png", "test/3.png", "val/a/4.png"):
        folder.put(name)
    assert names(list_folder(folder.root))[2:] == ["val/a/4.png"]


def test_a_class_called_train_beside_others_is_a_class(folder):
    for name in ("bus/1.png", "car/2.png", "train/3.png"):
        folder.put(name)
    assert list_folder(folder.root).classes == ("bus", "car", "train")


def test_a_test_class_unknown_to_training_names_the_nearest(folder):
    for name in ("train/cat/1.png", "train/dog/2.png", "test/dogs/3.png"):
        folder.put(name)
    with pytest.raises(UserError, match=r"unknown class folder 'dogs'.*did you mean 'dog'"):
        list_folder(folder.root)


def test_a_folder_around_the_folder_is_looked_through(folder):
    for name in ("archive/data/a/1.png", "archive/data/b/2.png"):
        folder.put(name)
    assert list_folder(folder.root).classes == ("a", "b")


def test_one_class_alone_is_no_label(folder):
    folder.put("archive/1.png")
    folder.put("archive/2.png")
    assert list_folder(folder.root).labels is None


def test_hidden_and_other_files_are_passed_over(folder):
    folder.put("1.png")
    for name in ("notes.txt", "meta.json", ".DS_Store", "Thumbs.db", ".hidden.png", ".cache/2.png"):
        folder.put(name, b"x")
    assert names(list_folder(folder.root)) == ["1.png"]


def test_link_loops_end_and_dead_links_are_reported(folder):
    for i in range(3):
        folder.put(f"a/{i}.png")
    os.symlink(folder.root, folder.root / "a" / "loop")
    os.symlink(folder.root / "nowhere.png", folder.root / "a" / "dead.png")
    data = load(str(folder.root), tolerate=0.5)
    assert len(data.train) == 3
    assert [(each.name, each.reason) for each in data.skipped] == [("a/dead.png", "no such file")]


def test_a_pipe_does_not_block(folder):
    folder.put("1.png")
    os.mkfifo(folder.root / "2.png")
    assert names(list_folder(folder.root)) == ["1.png"]


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_says_what_it_looked_for(folder, name):
    if name is not None:
        folder.put(name, b"x")
    with pytest.raises(UserError, match=r"no images; looked for the suffixes .jpg"):
        load(str(folder.root))


def huge(width, height):
    def chunk(kind, content):
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


def shade(index):
    """A colour of its own for each image, far enough from the next to survive JPEG: 13 levels a channel."""
    return tuple(20 * (index // 13**power % 13) + 7 for power in range(3))


def test_four_hundred_mixed_images_of_which_twenty_are_broken(folder, tmp_path, capsys):
    suffixes, kinds = (
        ("png", "jpg", "webp", "bmp", "gif", "tiff"),
        ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"),
    )
    sizes = ((40, 30), (30, 40), (64, 64), (21, 57), (90, 33))
    broken = {}
    for i in range(400):
        name = f"{'' if i % 2 else 'more/'}{i:04}.{suffixes[i % 6]}"
        image = Image.new("RGB", sizes[i % 5], shade(i))
        kind = kinds[i % 6]
        # Every tenth JPEG is called .png: the content counts.
        data = folder.encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
        if kind == "JPEG" and i % 10 == 1:
            name = name.replace(".jpg", ".jpg.png")
        if i % 20 == 10:
            reason, data = [
                ("empty: 0 bytes", b""),
                ("not an image", b"only words"),
                ("cut short", folder.encode(folder.picture(64, 64), "JPEG")[:-150]),
                ("too large: 30000 x 1", huge(30_000, 1)),
                ("cut short", folder.encode(folder.picture(64, 64), "PNG")[:300]),
            ][i // 20 % 5]
            broken[name] = reason
        folder.put(name, data)
    assert len(broken) == 20

    data = load(str(folder.root), image_size=32, tolerate=0.05)

    assert {each.name for each in data.skipped} == set(broken)
    for each in data.skipped:
        assert broken[each.name] in each.reason
    assert tuple(data.train.images.shape) == (380, 3, 48, 48)
    assert data.test is None
    found = data.train.images.float().mean(dim=(2, 3)).sub(7).div(20).round().long()
    index = found @ torch.tensor([1, 13, 169])
    order = sorted(range(400), key=lambda i: ("" if i % 2 else "more/") + f"{i:04}")
    expected = [i for i in order if i % 20 != 10]
    assert index.tolist() == expected
    aspect = torch.tensor([sizes[i % 5][0] / sizes[i % 5][1] for i in expected])
    torch.testing.assert_close(data.train.aspect, aspect)

    # And the whole command trains on it, names what it lost, and loses nothing else.
    out = tmp_path / "run"
    options = (
        "--tolerate 0.05 --image-size 32 --backbone resnet10w2 --epochs 1 --batch-size 64 --precision fp32 "
        "--memory-format contiguous --method-options hidden 16 out 8"
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", "--data", str(folder.root), "--out", str(out), *options.split()])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "380 training images, no test images, 32 px, 20 unreadable" in said
    assert "20 images could not be read" in said
    assert all(name in said for name in broken)
    rows = dict(row.split("\t") for row in (out / "skipped.tsv").read_text().splitlines())
    assert rows.keys() == broken.keys()
    assert all(broken[name] in reason for name, reason in rows.items())
    assert json.loads((out / "result.json").read_text())["skipped"] == 20


def test_more_broken_images_than_tolerated_stop_with_the_way_out(folder):
    for i in range(10):
        folder.put(f"{i}.png", b"" if i < 2 else None)
    with pytest.raises(UserError, match=r"2 of 10 images .* 0.png: empty: 0 bytes; 1.png: .*--tolerate 0.2$"):
        load(str(folder.root))
    assert len(load(str(folder.root), tolerate=0.2).train) == 8


def test_no_readable_image_stops_whatever_is_tolerated(folder):
    folder.put("0.png", b"")
    with pytest.raises(UserError, match=r"none of 1 images can be read: 0.png: empty"):
        load(str(folder.root), tolerate=1.0)
