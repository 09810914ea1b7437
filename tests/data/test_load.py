"""load: what it accepts, stored sizes, held-out splits and limits, and the cache of decoded images."""

import errno
import os

import numpy as np
import pytest
import torch

import tailfin.data.store as store
from tailfin.data import load
from tailfin.data.store import canvas_side
from tailfin.errors import UserError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar01", "unknown data set 'cifar01' in --data; .*did you mean 'cifar100?'"),
        ("{root}/photo", "did you mean '.*photos'"),
        ("{root}/a/b", "no such path .* does not exist either"),
        ("", "no such path ''"),
        ("{root}/notes.txt", "neither a Parquet nor a tar nor an IDX file"),
    ],
)
def test_a_source_that_is_none_is_said_with_the_nearest(folder, spec, message):
    root = folder.root.parent
    (root / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=message):
        load(spec.format(root=root))


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("tolerate", 1.5), ("tolerate", -0.1)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=f"--{option} is {value}"):
        load("shapes", **{option: value})


def test_canvas_is_one_and_a_half_times_the_image_rounded_up_to_sixteen():
    assert [canvas_side(size) for size in (32, 64, 96, 100, 224)] == [48, 96, 144, 160, 336]


@pytest.mark.parametrize(
    ("sizes", "image_size", "stored"),
    [
        ([(96, 40)] * 2, 32, (40, 96)),  # one size, at most 96
        ([(120, 100)] * 2, 80, (100, 120)),  # one size, at most 1.5 times 80
        ([(121, 100)] * 2, 80, (128, 128)),  # one size, but larger
        ([(20, 20), (20, 21)], 32, (48, 48)),  # two sizes
        ([(400, 200)] * 2, None, (336, 336)),  # image size to be chosen: 224
    ],
)
def test_stored_size(folder, sizes, image_size, stored):
    for i, size in enumerate(sizes):
        folder.put(f"{i}.png", size=size)
    images = load(str(folder.root), image_size=image_size).train
    assert tuple(images.images.shape[2:]) == stored
    if stored == sizes[0][::-1]:
        assert images.aspect is None
    else:
        assert images.aspect.tolist() == pytest.approx([width / height for width, height in sizes])


def test_channels_are_one_only_if_every_image_is_grey(folder):
    for i in range(3):
        folder.put(f"{i}.png", folder.encode(folder.picture(8, 8, seed=i).convert("L")))
    grey = load(str(folder.root)).train.images
    folder.put("3.png", size=(8, 8))
    colour = load(str(folder.root)).train.images
    assert (grey.shape[1], colour.shape[1]) == (1, 3)
    np.testing.assert_array_equal(colour[:3], grey.expand(-1, 3, -1, -1))


def test_the_held_out_images_do_not_depend_on_the_limit(folder):
    for i in range(40):
        folder.put(f"{'ab'[i % 2]}/{i}.png", seed=i, size=(4, 4))
    whole, part = load(str(folder.root), seed=5), load(str(folder.root), seed=5, limit=6)
    assert torch.equal(whole.test.images, part.test.images)
    assert part.train.labels.bincount().tolist() == [3, 3]
    kept = {image.numpy().tobytes() for image in whole.train.images}
    assert {image.numpy().tobytes() for image in part.train.images} <= kept
    assert not torch.equal(load(str(folder.root), seed=6).test.images, whole.test.images)


def test_progress_is_told(folder):
    for i in range(70):
        folder.put(f"{i}.png", size=(2, 2))
    told = []
    load(str(folder.root), workers=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70), (70, 70)]


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda: 0)


def test_what_does_not_fit_in_memory_is_mapped_and_found_again(folder, tmp_path, monkeypatch, no_memory):
    cache = tmp_path / "cache"
    for i in range(20):
        folder.put(f"{'ab'[i % 2]}/{i:02}.png", b"" if i == 4 else None, seed=i, size=(30 + i, 20))
    mapped = load(str(folder.root), image_size=16, cache=cache, tolerate=0.1)
    entries = list((cache / "decoded").iterdir())
    assert len(entries) == 1
    assert not entries[0].name.startswith(".")

    monkeypatch.setattr(store, "decode", None)
    again = load(str(folder.root), image_size=16, cache=cache, tolerate=0.1)
    monkeypatch.undo()
    held = load(str(folder.root), image_size=16, cache=cache, tolerate=0.1)
    for other in (again, held):
        for split in ("train", "test"):
            one, two = getattr(mapped, split), getattr(other, split)
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.aspect, two.aspect)
        assert other.skipped == mapped.skipped
    assert [each.name for each in mapped.skipped] == ["a/04.png"]


def test_a_changed_file_or_another_request_is_decoded_anew(folder, tmp_path, no_memory):
    cache = tmp_path / "cache"
    for i in range(3):
        folder.put(f"{i}.png", seed=i, size=(8, 8))
    first = load(str(folder.root), cache=cache).train.images.clone()
    folder.put("1.png", seed=9, size=(9, 8))
    folder.put("1.png", seed=9, size=(8, 8))
    second = load(str(folder.root), cache=cache).train.images
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert len(load(str(folder.root), cache=cache, limit=2).train) == 2


def test_writing_into_mapped_images_changes_no_file(folder, tmp_path, no_memory):
    folder.put("0.png", size=(8, 8))
    images = load(str(folder.root), cache=tmp_path / "cache").train.images
    before = images.clone()
    images.zero_()
    assert torch.equal(load(str(folder.root), cache=tmp_path / "cache").train.images, before)


def test_an_interrupted_decoding_leaves_no_entry(folder, tmp_path, monkeypatch, no_memory):
    folder.put("0.png", size=(8, 8))

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        load(str(folder.root), cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "decoded").iterdir()) == []


def test_a_disk_too_small_is_said_before_it_is_full(folder, tmp_path, monkeypatch, no_memory):
    folder.put("0.png", size=(8, 8))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"GB free .*; use a smaller image size, --limit"):
        load(str(folder.root), cache=tmp_path / "cache")
