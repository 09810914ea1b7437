"""Tar shards: samples, labels, class folders, splits, what is passed over, damage, and what an image takes."""

import io
import json
import os
import tarfile
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tailfin.data import load
from tailfin.data.sources.tar import list_tar
from tailfin.errors import UserError


def pixel(folder, value):
    return folder.encode(Image.new("RGB", (4, 2), (value, 2 * value, 0)))


def write(path, members):
    """A tar of named contents; a content of None is a link to the first member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            if content is None:
                about.type, about.linkname = tarfile.SYMTYPE, members[0][0]
            else:
                content = content if isinstance(content, bytes) else str(content).encode()
                about.size = len(content)
            tar.addfile(about, io.BytesIO(content or b""))
    return path


def samples(folder, values, labels=None):
    """WebDataset's layout: a `.png` and a `.cls` for each value shown."""
    members = []
    for place, value in enumerate(values):
        members.append((f"{place:06}.png", pixel(folder, value)))
        if labels is not None:
            members.append((f"{place:06}.cls", labels[place]))
    return members


def shown(images):
    """The value that each image shows."""
    assert torch.equal(images.images[:, 1].long(), 2 * images.images[:, 0].long())
    return images.images[:, 0, 0, 0].tolist()


def names(listing):
    return [listing.images.name(i) for i in range(listing.images.count)]


def test_shards_are_read_with_their_splits_and_labels(folder):
    write(folder.root / "train-000.tar", samples(folder, [1, 2, 3], [7, 9, 7]))
    write(folder.root / "train-001.tar", samples(folder, [4], [9]))
    write(folder.root / "val-000.tar", samples(folder, [5], [7]))
    write(folder.root / "test-000.tar", samples(folder, [6, 7], [9, 9]))
    data = load(str(folder.root))
    assert (shown(data.train), data.train.labels.tolist()) == ([1, 2, 3, 4], [0, 1, 0, 1])
    assert (shown(data.test), data.test.labels.tolist()) == ([6, 7], [1, 1])
    assert data.train.classes == ("7", "9")
    assert names(list_tar(folder.root))[3] == "train-001.tar/000000.png"


def test_a_test_split_without_labels_gives_way_to_one_that_has_them(folder):
    write(folder.root / "train-0.tar", samples(folder, [1, 2], [0, 1]))
    write(folder.root / "test-0.tar", samples(folder, [3], [-1]))
    write(folder.root / "val" / "0.tar", samples(folder, [4], [1]))
    assert shown(load(str(folder.root)).test) == [4]


@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_class_folders_in_a_plain_tar_are_labels(folder, top):
    members = [(f"{top}{kind}/{i}.png", pixel(folder, i)) for kind in ("dog", "cat") for i in range(4)]
    listing = list_tar(write(folder.root / "x.tar", [(f"{top}readme", b"hello"), *members]))
    assert (listing.classes, listing.labels.tolist()) == (("cat", "dog"), [1] * 4 + [0] * 4)


def test_train_and_test_folders_in_a_tar_are_splits(folder):
    members = [
        (f"set/{name}.png", pixel(folder, i))
        for i, name in enumerate(("test/a/1", "train/a/1", "val/b/1", "train/b/1"), start=1)
    ]
    data = load(str(write(folder.root / "x.tar", members)))
    assert (shown(data.train), shown(data.test)) == ([2, 4], [1])
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1], [0])


def test_a_test_class_unknown_to_training_names_the_nearest(folder):
    members = [(f"{name}/1.png", pixel(folder, 1)) for name in ("train/cat", "train/dog", "test/dogs")]
    with pytest.raises(UserError, match=r"unknown class folder 'dogs'.*did you mean 'dog'"):
        list_tar(write(folder.root / "x.tar", members))


def test_images_without_folders_or_labels_have_none(folder):
    data = load(str(write(folder.root / "x.tar", samples(folder, [1, 2]))))
    assert (shown(data.train), data.train.labels, data.test) == ([1, 2], None, None)


def test_labels_of_json_are_numbers_or_names(folder):
    members = [("0.png", pixel(folder, 1)), ("0.json", json.dumps({"label": "fig"}))]
    members += [("1.json", json.dumps({"label": "pear"})), ("1.png", pixel(folder, 2))]
    members += [("2.png", pixel(folder, 3)), ("2.json", json.dumps({"label": None}))]
    listing = list_tar(write(folder.root / "x.tar", members))
    assert (listing.classes, listing.labels.tolist()) == (("fig", "pear"), [0, 1, -1])
    members = [("0.png", pixel(folder, 1)), ("0.json", json.dumps({"label": 4})), ("0.cls", 3)]
    assert list_tar(write(folder.root / "y.tar", members)).classes == ("3",)


def test_a_label_far_from_its_image_is_found(folder):
    members = samples(folder, [1, 2, 3], [5, 6, 5])
    listing = list_tar(write(folder.root / "x.tar", members[1::2] + members[::2]))
    assert (listing.classes, listing.labels.tolist()) == (("5", "6"), [0, 1, 0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=8), data=st.data())
def test_each_image_has_its_label_however_the_members_are_ordered(folder, labels, data):
    members = [(f"{i % 2}/{i}.png", b"x") for i in range(len(labels))]
    members += [(f"{i % 2}/{i}.cls", label) for i, label in enumerate(labels) if label is not None]
    listing = list_tar(write(folder.root / "x.tar", data.draw(st.permutations(members))))
    found = {
        name.split("/")[-1]: int(label)
        for name, label in zip(names(listing), listing_labels(listing), strict=True)
    }
    if any(label is not None for label in labels):
        told = {name: None if code < 0 else int(listing.classes[code]) for name, code in found.items()}
        assert told == {f"{i}.png": label for i, label in enumerate(labels)}


def listing_labels(listing):
    return [-1] * listing.images.count if listing.labels is None else listing.labels.tolist()


def test_labels_that_cannot_be_read_are_said_and_cost_no_image(folder):
    members = samples(folder, [1, 2, 3, 4, 5], ["dog", "9" * 30, "1" * 100, 3, ""])
    members += [("7.png", pixel(folder, 7)), ("7.json", b"[" * 100_000)]
    listing = list_tar(write(folder.root / "x.tar", members))
    assert listing.labels.tolist() == [-1, -1, -1, 0, -1, -1]
    assert listing.notes == (
        "labels that cannot be read: 5, the first 000000.cls in x.tar: 'dog' is no whole number",
    )


def test_links_hidden_members_and_names_that_lead_outside_are_passed_over(folder):
    image = pixel(folder, 1)
    members = [("a.png", image), ("link.png", None), ("../b.png", image), ("/c.png", image)]
    members += [
        ("._a.png", image),
        (".git/d.png", image),
        ("e.txt", b"x"),
        ("f", b"x"),
        ("g/../h.png", image),
    ]
    listing = list_tar(write(folder.root / "x.tar", members))
    assert names(listing) == ["x.tar/a.png"]
    assert listing.notes == (
        "links that were passed over: 1",
        "names that lead outside, and were passed over: 3",
    )


def test_names_are_printed_without_what_a_terminal_obeys(folder):
    listing = list_tar(write(folder.root / "x.tar", [("\x1b[2J\n.png", pixel(folder, 1))]))
    assert names(listing) == [r"x.tar/\x1b[2J\n.png"]


def test_several_images_of_a_sample_are_all_taken_and_it_is_said(folder):
    members = [("0.left.png", pixel(folder, 1)), ("0.right.png", pixel(folder, 2)), ("0.cls", 4)]
    listing = list_tar(write(folder.root / "x.tar", members))
    assert listing.labels.tolist() == [0, 0]
    assert listing.notes == ("samples of more than one image: 1; each of their images is taken",)


def test_unreadable_images_are_named(folder):
    members = samples(folder, [1, 2, 3])
    members[1] = ("000001.png", members[1][1][:40])
    members.append(("3.jpg", b""))
    data = load(str(write(folder.root / "x.tar", members)), tolerate=1)
    assert shown(data.train) == [1, 3]
    assert [(each.name, each.reason.split(":")[0]) for each in data.skipped] == [
        ("x.tar/000001.png", "cut short or damaged"),
        ("x.tar/3.jpg", "empty"),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, f: p.write_bytes(write(p, samples(f, [1, 2])).read_bytes()[:550]), "cut short or damaged"),
        (lambda p, f: write(p, [("a.txt", b"x")]), "no images in 1 tar file; looked for"),
        (lambda p, f: p.write_bytes(b"\x1f\x8b" + bytes(600)), "compressed by gzip"),
        (lambda p, f: p.write_bytes(b""), "empty: 0 bytes"),
    ],
)
def test_what_is_wrong_is_one_line(folder, make, message):
    path = folder.root / "x.tar"
    make(path, folder)
    with pytest.raises(UserError, match=message) as error:
        load(str(path))
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.zip", "x.tar.zst"])
def test_a_compressed_archive_is_to_be_unpacked(folder, name):
    (folder.root / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name} is compressed; unpack it"):
        load(str(folder.root))
    with pytest.raises(UserError, match="compressed; unpack it"):
        load(str(folder.root / name))


def test_a_missing_number_in_a_run_of_shards_is_said(folder):
    for number in (0, 1, 3):
        write(folder.root / f"train-{number:03}.tar", samples(folder, [number + 1]))
    said = []
    assert shown(load(str(folder.root), say=said.append).train) == [1, 2, 4]
    assert said == [
        "train-002.tar is missing between the numbers 000 and 003; the 3 shards that are there are read"
    ]


def test_a_missing_last_shard_is_said_where_the_names_tell_how_many(folder):
    for number in range(2):
        write(folder.root / f"train-{number:05}-of-00004.tar", samples(folder, [number + 1]))
    (note,) = list_tar(folder.root).notes
    assert note.startswith("train-00002-of-00004.tar (and 1 more) is missing")


def test_years_and_ids_are_no_run(folder):
    for number in (1440764, 1443537, 1484850):
        write(folder.root / f"n{number:08}.tar", samples(folder, [1]))
    assert list_tar(folder.root).notes == ()


def test_a_tar_that_changed_since_it_was_listed_is_refused(folder):
    path = write(folder.root / "x.tar", samples(folder, [1, 2]))
    images = list_tar(path).images
    before = images.fingerprint()
    write(path, samples(folder, [3, 4, 5]))
    with pytest.raises(UserError, match=r"x\.tar: changed since it was listed"):
        list(images.stream([0]))
    assert list_tar(path).images.fingerprint() != before
    os.unlink(path)
    with pytest.raises(UserError, match="No such file"):
        list(images.stream([0]))


def test_a_tar_that_is_a_link_out_of_the_folder_is_refused(folder):
    write(folder.root.parent / "else.tar", samples(folder, [1]))
    os.symlink(folder.root.parent / "else.tar", folder.root / "x.tar")
    with pytest.raises(UserError, match="a link that leads out"):
        load(str(folder.root))
    assert shown(load(str(folder.root), follow_links=True).train) == [1]


def test_an_archive_beside_what_was_unpacked_from_it_is_passed_over(folder):
    write(folder.root / "photos.tar", samples(folder, [1, 2]))
    folder.put("photos/1.png", pixel(folder, 5))
    said = []
    assert shown(load(str(folder.root), say=said.append).train) == [5]
    assert said[0].startswith("photos.tar beside the images passed over")


def test_an_archive_without_its_end_is_read_and_doubted(folder):
    path = write(folder.root / "x.tar", samples(folder, [1]))
    path.write_bytes(path.read_bytes()[:1024])
    listing = list_tar(path)
    assert listing.images.count == 1
    assert "may be cut short" in listing.notes[0]


def test_the_second_run_takes_the_decoded_images_from_the_cache(folder, tmp_path, monkeypatch):
    from tailfin.data import store

    path = write(folder.root / "x.tar", samples(folder, range(1, 9), [0, 1] * 4))
    monkeypatch.setattr(store, "free_memory", lambda: 0)
    first = load(str(path), cache=tmp_path / "cache")
    monkeypatch.setattr(store, "decode", None)
    assert shown(load(str(path), cache=tmp_path / "cache").train) == shown(first.train)


def test_an_image_takes_less_than_100_bytes_beyond_its_name(folder):
    count = 20_000
    one = tarfile.TarInfo("0.png").tobuf()
    with (folder.root / "x.tar").open("wb") as file:
        for i in range(count):
            file.write(tarfile.TarInfo(f"{i:06}.png").tobuf())
        file.write(bytes(2 * len(one)))
    tracemalloc.start()
    try:
        listing = list_tar(folder.root / "x.tar")
        held = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listing.images.count == count
    assert held[0] < 100 * count
    assert held[1] < 200 * count


def test_webdataset_sees_the_same_samples(folder):
    wds = pytest.importorskip("webdataset")
    path = folder.root / "train-000.tar"
    with wds.TarWriter(str(path)) as sink:
        for i in range(6):
            image = Image.new("RGB", (4, 2), (i, 2 * i, 0))
            sink.write({"__key__": f"sample{i:06}", "png": image, "cls": i % 3, "json": {"label": 7}})
    theirs = list(wds.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("rgb8"))
    ours = list_tar(path)
    assert [each["cls"] for each in theirs] == ours.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert [each["png"][0, 0, 0] for each in theirs] == [
        Image.open(io.BytesIO(blob)).getpixel((0, 0))[0] for blob in ours.images.stream(range(6))
    ]
