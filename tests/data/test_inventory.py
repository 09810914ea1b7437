"""What `tailfin data` says of a source: counts, sizes, what is lost, what is there twice, what cannot be read."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tailfin import cli
from tailfin.commands.data import Spread, look_through
from tailfin.commands.pack import pack
from tailfin.data import channel_statistics, load
from tailfin.data.packing.shards import Packing
from tailfin.errors import UserError


def said(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", *map(str, words)])
    return int(stop.value.code or 0), capsys.readouterr().out


def test_counts_splits_classes_and_sizes(folder):
    for seed, name in enumerate(("train/a/1", "train/a/2", "train/b/3", "test/b/4")):
        folder.put(f"{name}.png", size=(20 + 10 * seed, 16), seed=seed)
    found = look_through(str(folder.root))
    assert found.images == {"train": 3, "test": 1}
    assert found.classes == (("a", {"train": 2, "test": 0}), ("b", {"train": 1, "test": 1}))
    assert (found.width, found.height) == (Spread(20, 35, 50), Spread(16, 16, 16))
    assert found.kinds == (("PNG RGB of 8 bits", 4),)
    assert (found.duplicates.count, found.skipped, found.deep, found.dropped) == (0, (), 0, 0)
    assert found.bytes == sum(file.stat().st_size for file in folder.root.rglob("*.png"))


def test_statistics_are_those_that_training_uses(folder):
    for seed in range(9):
        folder.put(f"{seed}.png", seed=seed)
    found = look_through(str(folder.root))
    mean, std = channel_statistics(load(str(folder.root)).train.images)
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)
    assert found.sampled == 9


def test_grey_images_have_one_channel(folder):
    for seed in range(3):
        folder.put(f"{seed}.png", folder.encode(folder.picture(9, 9, seed).convert("L")))
    assert len(look_through(str(folder.root)).mean) == 1


def test_generated_images_are_pixels(capsys):
    code, lines = said(capsys, "shapes")
    assert code == 0
    assert "8,000 images (6,000 train, 2,000 test)\n" in lines
    assert "kind        pixels RGB of 8 bits: 8,000" in lines


def test_lost_depth_and_bands_are_said_aloud(folder, capsys):
    folder.put("deep.png", folder.encode(Image.fromarray(np.full((8, 8), 30_000, np.uint16))))
    folder.put("four.tif", folder.encode(Image.new("RGBX", (8, 8)), "TIFF"))
    folder.put("clear.png", folder.encode(Image.new("RGBA", (8, 8))))
    folder.put("plain.png")
    _, lines = said(capsys, folder.root)
    assert "DEPTH LOST  1 image of more than 8 bits a channel" in lines
    assert "BANDS LOST  1 image of more than three bands; training sees the first three" in lines
    assert "BANDS LOST  1 image with transparency, which is put on white" in lines
    assert "kind        PNG I;16 of 16 bits: 1" in lines


def test_duplicates_are_named_and_those_across_splits_and_labels_counted(folder, capsys):
    for seed, name in enumerate(("train/a/1", "train/b/2", "train/b/3", "test/b/4")):
        folder.put(f"{name}.png", seed=seed)
    shutil.copy(folder.root / "train/a/1.png", folder.root / "train/b/5.png")
    shutil.copy(folder.root / "train/b/2.png", folder.root / "test/b/6.png")
    same = look_through(str(folder.root)).duplicates
    assert (same.count, same.across, same.contradicting) == (2, 1, 1)
    assert same.groups == (("train/a/1.png", "train/b/5.png"), ("train/b/2.png", "test/b/6.png"))
    _, lines = said(capsys, folder.root)
    assert "1 test image also among the training images" in lines
    assert "train/a/1.png = train/b/5.png" in lines


def test_unreadable_files_are_named_with_their_reasons(folder, capsys):
    folder.put("1.png")
    folder.put("2.png", b"")
    folder.put("3\n.jpg", b"hello")
    code, lines = said(capsys, folder.root)
    assert code == 0
    assert (
        "unreadable  2 images\n            2.png: empty: 0 bytes\n            3\\n.jpg: not an image\n"
        in lines
    )


def test_none_readable_is_an_error(folder):
    folder.put("1.png", b"")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        look_through(str(folder.root))


def test_the_checksums_of_shards_are_compared(folder, tmp_path, capsys):
    for seed in range(4):
        folder.put(f"{seed}.png", seed=seed)
    out = tmp_path / "shards"
    pack(str(folder.root), out, Packing())
    code, lines = said(capsys, out)
    assert (code, "checksums   1 shard compared, 0 damaged" in lines) == (0, True)
    shard = out / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[-3000] ^= 1
    shard.write_bytes(content)
    code, lines = said(capsys, out)
    assert (code, "damaged     train-000000.tar" in lines) == (1, True)
