"""The cache of decoded images: damage is found, a full disk is one line, killed writers leave nothing for long."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tailfin import cli
from tailfin.data import entries, store
from tailfin.data.load import load
from tailfin.errors import UserError
from tailfin.files import lock
from tailfin.run import config as settings
from tailfin.run.config import Config


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_memory", lambda: 0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def images(photos: Path, cache: Path, said: list[str] | None = None) -> torch.Tensor:
    said = [] if said is None else said
    return load(str(photos), cache=cache, say=said.append).train.images.clone()


def entry_of(cache: Path) -> Path:
    (entry,) = (path for path in (cache / "decoded").iterdir())
    return entry


def flip(path: Path, place: int) -> None:
    """Changes one bit, and gives the file the times that it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda entry: flip(entry / "images.npy", -1), "images.npy was cut or changed"),
        (lambda entry: cut(entry / "images.npy"), "images.npy was cut or changed"),
        (lambda entry: flip(entry / "aspect.npy", -1), "aspect.npy was cut or changed"),
        (lambda entry: (entry / "aspect.npy").unlink(), "cannot be read: No such file"),
        (lambda entry: cut(entry / "index.json"), "not one that this version can read"),
        (lambda entry: (entry / "index.json").write_text("[" * 10_000), "not one that this version can read"),
        (
            lambda entry: (entry / "index.json").write_text(
                (entry / "index.json").read_text().replace('"squashed": false', '"squashed": true')
            ),
            "its index was changed",
        ),
    ],
)
def test_an_entry_that_was_cut_or_changed_is_named_and_made_again(photos, cache, damage, words) -> None:
    before = images(photos, cache)
    damage(entry_of(cache))
    said: list[str] = []
    assert torch.equal(images(photos, cache, said), before)
    assert len(said) == 1
    assert words in said[0]
    assert str(entry_of(cache)) in said[0]
    said.clear()
    assert torch.equal(images(photos, cache, said), before)
    assert said == []


def test_an_entry_that_was_copied_elsewhere_is_read_through_once(photos, cache, monkeypatch) -> None:
    before = images(photos, cache)
    entry = entry_of(cache)
    for name in ("images.npy", "aspect.npy"):
        content = (entry / name).read_bytes()
        (entry / name).unlink()
        (entry / name).write_bytes(content)
    read: list[str] = []
    checksum = entries._checksum
    monkeypatch.setattr(entries, "_checksum", lambda path: read.append(path.name) or checksum(path))
    for _ in range(2):
        assert torch.equal(images(photos, cache), before)
    assert read == ["images.npy", "aspect.npy"]


def test_what_a_killed_writer_left_is_removed_and_said(photos, cache) -> None:
    left = cache / "decoded" / ".unfinished-0123"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(bytes(3_000_000))
    said: list[str] = []
    images(photos, cache, said)
    assert said == [f"removed 3.0 MB of decoded images that a killed run had left in {cache / 'decoded'}"]
    assert [path.name for path in (cache / "decoded").iterdir()] == [entry_of(cache).name]


def test_what_a_living_writer_writes_is_left_alone(photos, cache) -> None:
    folder = cache / "decoded"
    (folder / ".unfinished-0123").mkdir(parents=True)
    handle = lock.acquire(folder / ".0123.lock")
    assert handle is not None
    said: list[str] = []
    images(photos, cache, said)
    lock.release(handle)
    assert said == []
    assert (folder / ".unfinished-0123").is_dir()


KILLED = """
import os, signal, sys
from pathlib import Path
from tailfin.data import store
from tailfin.data.load import load
store.free_memory = lambda: 0
decode = store.decode
def die(*words):
    os.kill(os.getpid(), signal.SIGKILL)
store.decode = die
load(sys.argv[1], cache=Path(sys.argv[2]))
"""


def test_killed_while_it_decodes_the_next_run_decodes_anew(photos, cache) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(photos), str(cache)], check=False)
    assert done.returncode == -9
    assert [path.name[:12] for path in (cache / "decoded").glob(".unfinished*")] == [".unfinished-"]
    said: list[str] = []
    images(photos, cache, said)
    assert "that a killed run had left" in said[0]
    assert not entry_of(cache).name.startswith(".")


def test_two_that_ask_for_the_same_images_decode_them_once(photos, cache, monkeypatch) -> None:
    began, waited, decoded = threading.Event(), threading.Event(), []
    decode = store.decode

    def slow(*words):
        began.set()
        assert waited.wait(60)
        decoded.append(words[0])
        return decode(*words)

    monkeypatch.setattr(store, "decode", slow)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        waited.set()

    results = []
    first = threading.Thread(target=lambda: results.append(images(photos, cache)))
    first.start()
    assert began.wait(60)
    results.append(load(str(photos), cache=cache, say=say).train.images)
    first.join()
    assert len(decoded) == 48
    assert torch.equal(*results)
    assert said == [
        f"waits for another process, which decodes the same images into {cache / 'decoded'}",
    ]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["posix_fallocate", "fsync", "rename"])
def test_a_disk_that_fills_while_images_are_decoded_is_one_line(photos, cache, monkeypatch, what) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, what, full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            images(photos, cache)
    assert "\n" not in str(caught.value)
    assert list((cache / "decoded").iterdir()) == []
    assert len(images(photos, cache)) > 0


def test_room_on_the_disk_is_taken_before_the_first_image(photos, cache, monkeypatch) -> None:
    sizes = []

    def fill(self, array):
        status = array.filename and os.stat(array.filename)
        sizes.append((status.st_blocks * 512, status.st_size))
        raise KeyboardInterrupt

    monkeypatch.setattr(store._Filler, "__call__", fill)
    with pytest.raises(KeyboardInterrupt):
        images(photos, cache)
    ((taken, size),) = sizes
    assert taken >= size > 48 * 12 * 12 * 3
    assert list((cache / "decoded").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_rights_is_one_line(photos, cache) -> None:
    cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        images(photos, cache)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["cache", *words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out + captured.err


def test_the_command_lists_checks_and_clears(photos, cache, capsys) -> None:
    images(photos, cache)
    (cache / "trials").mkdir()
    (cache / "trials" / "a.json").write_text('{"words": "resnet18 at 32 px on cpu: bf16, channels_last"}')
    (cache / "trials" / "b.json").write_text("[")
    (cache / "downloads").mkdir()
    (cache / "downloads" / "kept").write_bytes(bytes(2_000_000))
    words = ("--folder", str(cache))
    code, out = run(capsys, *words)
    assert code == 0
    assert f"{photos}: 48 images, 12 x 12" in out
    assert "trial       resnet18 at 32 px on cpu: bf16, channels_last" in out
    assert "b.json: not readable" in out
    assert "downloads   2.0 MB" in out

    assert run(capsys, "check", *words) == (0, f"cache       {cache}\ndecoded     1 checked, 0 damaged\n")
    flip(entry_of(cache) / "images.npy", -1)
    code, out = run(capsys, "check", *words)
    assert code == 1
    assert "images.npy was cut or changed; its next reader makes it again" in out

    handle = lock.acquire(cache / "decoded" / f".{entry_of(cache).name}.lock")
    assert handle is not None
    assert "1 are being written, and stay" in run(capsys, "clear", *words)[1]
    lock.release(handle)
    assert run(capsys, "clear", *words)[0] == 0
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {"kept"}
    assert run(capsys, "--folder", str(cache / "none"))[0] == 2


def test_the_cache_of_a_strangers_settings_is_neither_obeyed_nor_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('tailfin_config = 1\ncache = "/somewhere"\n')
    assert settings.read(path).cache is None
    settings.save(Config(cache="/mine"), path)
    assert "/mine" not in path.read_text()


@pytest.mark.parametrize(
    ("home", "expected"), [("/elsewhere", "/elsewhere/tailfin"), ("relative", "~/.cache/tailfin")]
)
def test_the_cache_is_where_the_user_keeps_caches(home, expected, monkeypatch) -> None:
    from tailfin.files import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cache_folder() == Path(expected).expanduser()
    assert cache_folder("~/mine") == Path("~/mine").expanduser()
