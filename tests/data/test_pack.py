"""Packing: whatever a source holds comes back the same, shards are kept, and what cannot be read is named."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailfin import cli
from tailfin.commands.pack import pack
from tailfin.data import load
from tailfin.data.packing import shards
from tailfin.data.packing.shards import Packing
from tailfin.errors import UserError


@pytest.fixture
def out(tmp_path):
    return tmp_path / "shards"


def put_classes(folder, count=6):
    places = (
        (split, kind, i) for split in ("train", "test") for kind in ("cat", "do|g") for i in range(count)
    )
    for seed, (split, kind, i) in enumerate(places):
        folder.put(f"{split}/{kind}/{i}.png", seed=seed)


def members(path):
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}


def same(one, other):
    for a, b in ((one.train, other.train), (one.test, other.test)):
        assert torch.equal(a.images, b.images)
        assert a.labels is b.labels or torch.equal(a.labels, b.labels)
        assert a.classes == b.classes


def test_what_is_packed_comes_back_the_same(folder, out):
    put_classes(folder)
    found = pack(str(folder.root), out, Packing())
    assert (found.images, found.shards, found.skipped, found.kept) == (24, 2, 0, 0)
    assert sorted(os.listdir(out)) == ["README.md", "shards.json", "test-000000.tar", "train-000000.tar"]
    same(load(str(folder.root)), load(str(out)))
    # Bytes as they are.
    assert (
        members(out / "train-000000.tar")["000000000.png"] == (folder.root / "train/cat/0.png").read_bytes()
    )
    assert load(str(out / "test-000000.tar")).train.classes == ("cat", "do|g")


def test_pixels_of_generated_images_come_back_the_same(out):
    pack("shapes", out, Packing())
    same(load("shapes"), load(str(out)))


def test_checksums_and_a_card_say_what_is_there(folder, out):
    put_classes(folder)
    pack(str(folder.root), out, Packing())
    told = json.loads((out / "shards.json").read_text())
    assert told["classes"] == ["cat", "do|g"]
    for shard in told["shards"]:
        content = (out / shard["name"]).read_bytes()
        assert (shard["sha256"], shard["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        assert (shard["images"], shard["sides"]) == (12, [16, 20])
    card = (out / "README.md").read_text()
    for words in (
        "# photos",
        "24 images in 2 tar shards",
        "| 1 | do\\|g | 12 |",
        "16 to 20 pixels",
        "bytes as they are",
    ):
        assert words in card


def test_unreadable_images_are_listed_and_left_out(folder, out):
    for i in range(4):
        folder.put(f"{i}.png", seed=i)
    (folder.root / "1.png").write_bytes((folder.root / "1.png").read_bytes()[:100])
    folder.put("x\n.png", b"")
    found = pack(str(folder.root), out, Packing())
    assert (found.images, found.skipped) == (3, 2)
    rows = (out / "skipped.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["1.png", r"x\n.png"]
    assert rows[1].endswith("empty: 0 bytes")
    assert load(str(out)).skipped == ()


def test_only_unreadable_images_are_an_error(folder, out):
    folder.put("1.png", b"")
    with pytest.raises(UserError, match=r"none of 1 images can be read: 1\.png: empty"):
        pack(str(folder.root), out, Packing())


def test_larger_images_are_shrunk_and_smaller_ones_stay(folder, out):
    folder.put("a.png", size=(100, 50))
    small = folder.put("b.png", size=(30, 40)).read_bytes()
    pack(str(folder.root), out, Packing(longest=40))
    found = members(out / "train-000000.tar")
    assert found["000000001.png"] == small
    image = Image.open(io.BytesIO(found["000000000.jpg"]))
    assert (image.format, image.size) == ("JPEG", (40, 20))


def test_recompressed_images_are_jpeg_upright_and_what_they_lose_is_said(folder, out):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = folder.picture(40, 20)
    folder.put("a.jpg", folder.encode(turned, "JPEG", exif=exif))
    folder.put("b.png", folder.encode(Image.fromarray(np.full((8, 8), 30_000, np.uint16))))
    said = []
    pack(str(folder.root), out, Packing(quality=80), tell=said.append)
    found = [Image.open(io.BytesIO(content)) for content in members(out / "train-000000.tar").values()]
    assert [(image.format, image.mode, image.size) for image in found] == [
        ("JPEG", "RGB", (20, 40)),
        ("JPEG", "L", (8, 8)),
    ]
    assert said == ["1 image (b.png): 16 bits a channel become 8"]


def noise(folder, count, side=400):
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        folder.put(f"{i:02}.png", folder.encode(Image.fromarray(pixels)))


def test_shards_are_no_larger_than_was_asked(folder, out):
    noise(folder, 7)
    found = pack(str(folder.root), out, Packing(shard_mb=1))
    assert found.shards == 4
    assert all(file.stat().st_size <= 10**6 for file in out.glob("*.tar"))
    assert [len(members(file)) for file in sorted(out.glob("*.tar"))] == [2, 2, 2, 1]


def test_a_packing_that_was_stopped_goes_on_and_ends_the_same(folder, out, tmp_path, monkeypatch):
    noise(folder, 7)
    (folder.root / "03.png").write_bytes(b"x")
    whole = pack(str(folder.root), tmp_path / "whole", Packing(shard_mb=1))
    real = shards.TarWriter.finish

    def stops(tar):
        if tar.path.name == "train-000002.tar":
            raise KeyboardInterrupt
        return real(tar)

    monkeypatch.setattr(shards.TarWriter, "finish", stops)
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder.root), out, Packing(shard_mb=1))
    assert sorted(os.listdir(out)) == ["shards.json", "train-000000.tar", "train-000001.tar"]
    assert len(load(str(out), say=(said := []).append).train) == 4
    assert "has not finished" in said[0]
    monkeypatch.undo()
    kept = (out / "train-000000.tar").stat().st_ino
    (out / ".train-000002.tar.0123abcd").write_bytes(b"left by a killed run")
    found = pack(str(folder.root), out, Packing(shard_mb=1))
    assert (found.kept, found.images, found.skipped) == (2, whole.images, 1)
    assert (out / "train-000000.tar").stat().st_ino == kept
    for name in os.listdir(tmp_path / "whole"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_a_shard_that_was_lost_is_made_again(folder, out):
    noise(folder, 5)
    pack(str(folder.root), out, Packing(shard_mb=1))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "train-000001.tar").unlink()
    with pytest.raises(
        UserError, match=r"train-000001\.tar: missing, and shards\.json beside it tells of it"
    ):
        load(str(out))
    assert pack(str(folder.root), out, Packing(shard_mb=1)).kept == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert pack(str(folder.root), out, Packing(shard_mb=1)).kept == 3


def test_a_shard_of_another_size_is_refused_by_its_reader(folder, out):
    noise(folder, 2, 20)
    pack(str(folder.root), out, Packing())
    with (out / "train-000000.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=r"train-000000\.tar: .* bytes, and shards\.json beside it tells of"):
        load(str(out))


def edited(out, key, value):
    told = json.loads((out / "shards.json").read_text())
    (out / "shards.json").write_text(json.dumps(told | {key: value}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder, out: ({"quality": 80}, out), "was packed with other settings (shard_mb 500)"),
        (lambda folder, out: folder.put("9.png") and ({}, out), "was packed from other images"),
        (lambda folder, out: ({}, folder.root / "in"), "lies in"),
        (
            lambda folder, out: edited(out, "skipped", [[7, "a", "b"]]) or ({}, out),
            "is damaged: it tells of more",
        ),
        (lambda folder, out: edited(out, "shards", 3) or ({}, out), "is damaged"),
        (lambda folder, out: ({"longest": 0}, out), "--longest is 0"),
        (lambda folder, out: ({"quality": 101}, out), "--quality is 101"),
        (lambda folder, out: ({"shard_mb": 0}, out), "--shard-mb is 0"),
        (lambda folder, out: ({}, folder.root.parent), "holds photos and no shards.json"),
        (lambda folder, out: ({}, out / "shards.json"), "cannot make the folder"),
    ],
)
def test_what_cannot_be_is_one_line(folder, out, change, words):
    folder.put("0.png")
    pack(str(folder.root), out, Packing())
    how, where = change(folder, out)
    with pytest.raises(UserError) as error:
        pack(str(folder.root), where, Packing(**how))
    assert words in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"layout": "tailfin shards, 1"}', '{"layout": "other"}'])
def test_a_damaged_or_foreign_shards_json_is_one_line(folder, out, content):
    folder.put("0.png")
    out.mkdir()
    (out / "shards.json").write_text(content)
    with pytest.raises(UserError, match=r"shards\.json"):
        pack(str(folder.root), out, Packing())


def test_webdataset_reads_what_is_packed(folder, out):
    wds = pytest.importorskip("webdataset")
    put_classes(folder, 3)
    pack(str(folder.root), out, Packing())
    shard = str(out / "train-000000.tar")
    theirs = list(wds.WebDataset(shard, shardshuffle=False, empty_check=False).decode("rgb8"))
    ours = load(str(folder.root)).train
    assert [each["cls"] for each in theirs] == ours.labels.tolist()
    for each, image in zip(theirs, ours.images, strict=True):
        assert np.array_equal(each["png"], image.permute(1, 2, 0).numpy())


def test_the_command_says_what_it_did(folder, out, capsys):
    put_classes(folder, 2)
    folder.put("train/cat/x.png", b"")
    with pytest.raises(SystemExit) as stop:
        cli.main(["pack", str(folder.root), str(out), "--longest", "10"])
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("packed      8 images in 2 shards, ")
    assert lines[1] == f"            1 image could not be read: {Path(out) / 'skipped.tsv'}"
