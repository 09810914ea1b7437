"""What a run writes: by one process, into its own folder alone, never lost to a full disk, a kill or a hang-up."""

import errno
import io
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tailfin import cli, files
from tailfin.errors import UserError
from tailfin.files import lock, writing
from tailfin.run import checkpoint
from tailfin.run.folder import Log, RunFolder
from tailfin.training.listeners import Metrics, Taken, Validation
from tailfin.training.loop import Loop
from tailfin.training.step import Step

TINY = (
    "--backbone resnet10w1 --batch-size 16 --epochs 2 --optimizer sgd --lr 0.5 --precision fp32 --device cpu "
    "--memory-format contiguous --method-options hidden 4 out 4 --momentum layer4: --checkpoint-minutes 0 "
    "--judge nothing --workers 1"
).split()
WRITTEN = (
    *(
        "config.toml",
        "metrics.jsonl",
        "timing.jsonl",
        "stability.jsonl",
        "checkpoint.safetensors",
        "skipped.tsv",
    ),
    *(
        "encoder.safetensors",
        "encoder-momentum.safetensors",
        "pictures.safetensors",
        "result.json",
        "report.html",
    ),
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tailfin(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 tiny images in two classes, and one that cannot be read."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    draws = torch.Generator().manual_seed(0)
    for place in range(40):
        name = folder / "ab"[place % 2] / f"{place}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(torch.randint(0, 255, (12, 12, 3), generator=draws, dtype=torch.uint8).numpy()).save(
            name
        )
    (folder / "a" / "none.png").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def asked(images: Path) -> list[str]:
    return ["pretrain", "--data", str(images), "--tolerate", "0.1", *TINY]


@pytest.fixture(scope="module")
def whole(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.raises(SystemExit) as stop:
        cli.main([*asked, "--out", str(out)])
    assert not stop.value.code
    assert {path.name for path in out.iterdir()} == {*WRITTEN, ".lock"}
    return out


def same(one: Path, other: Path) -> None:
    first, second = (checkpoint.load(path / "checkpoint.safetensors").tensors for path in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for name in ("metrics.jsonl", "stability.jsonl", "encoder.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_second_run_into_the_same_folder_is_refused_and_leaves_nothing(
    tailfin: Run, asked: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    holder = lock.acquire(out / ".lock")
    assert holder is not None
    code, _, said = tailfin(*asked, "--out", out)
    assert (code, said.count("\n")) == (2, 1)
    assert "is being written by another process" in said
    assert [path.name for path in out.iterdir()] == [".lock"]
    lock.release(holder)
    assert tailfin(*asked, "--out", out)[0] == 0


def test_a_run_that_still_goes_is_not_resumed_but_may_be_read(
    tailfin: Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    original, said = Validation.after_step, []

    def meanwhile(listener: Validation, taken: Taken) -> None:
        if not said:
            said.append(tailfin("pretrain", "--resume", out))
            said.append(tailfin("report", out))
        original(listener, taken)

    monkeypatch.setattr(Validation, "after_step", meanwhile)
    assert tailfin(*asked, "--out", out)[0] == 0
    assert said[0][0] == 2
    assert "is being written by another process" in said[0][2]
    assert said[1][0] == 0


def test_a_run_that_fails_before_it_begins_leaves_no_folder(
    tailfin: Run, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert (
        tailfin("pretrain", "--data", images, "--tolerate", 0.1, "--batch-size", 4096, "--out", out)[0] == 2
    )
    assert not out.exists()


def test_a_lock_whose_file_is_removed_while_it_is_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = tmp_path / ".lock", []

    def removed_at_first(handle: int, _: int) -> None:
        times.append(handle)
        if len(times) == 1:
            path.unlink()

    monkeypatch.setattr(lock.fcntl, "flock", removed_at_first)
    handle = lock.acquire(path)
    assert handle is not None
    assert len(times) == 2
    assert os.path.samestat(path.stat(), os.fstat(handle))
    lock.release(handle)


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "stability.jsonl", ".lock"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_nothing_is_written_through_a_link_in_a_run_folder(
    tailfin: Run, asked: list[str], whole: Path, tmp_path: Path, name: str, kind: str
) -> None:
    out, victim = tmp_path / "run", tmp_path / "victim"
    out.mkdir()
    for each in ("config.toml", "checkpoint.safetensors", "metrics.jsonl", "timing.jsonl", "stability.jsonl"):
        (out / each).write_bytes((whole / each).read_bytes())
    (out / name).unlink(missing_ok=True)
    victim.write_text("precious\n" * 1000)
    if kind == "link":
        (out / name).symlink_to(victim)
    elif kind == "hard link":
        (out / name).hardlink_to(victim)
    else:
        os.mkfifo(out / name)
    code, _, said = tailfin("pretrain", "--resume", out)
    assert victim.read_text() == "precious\n" * 1000
    if name != ".lock" or kind == "link":  # a lock file is never written
        assert (code, said.count("\n")) == (2, 1)
        assert name in said


@pytest.mark.parametrize(
    "name", ["config.toml", "checkpoint.safetensors", "encoder.safetensors", "report.html"]
)
def test_a_link_in_place_of_a_whole_file_is_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    files.write_atomically(tmp_path / name, b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "whole", b"")
        Log(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("whole", "log")} == {mode}


@pytest.fixture
def disk_full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Has the disk be full when the n-th write to a file of this name is half done."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc that tells the names of open files")
    write_all = writing._write_all

    def fill(name: str, number: int) -> None:
        count = 0

        def write(file: io.FileIO, content: bytes) -> None:
            nonlocal count
            written = Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).name
            count += written == name or written.startswith(f".{name}.")
            if count == number:
                file.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write_all(file, content)

        monkeypatch.setattr(writing, "_write_all", write)

    return fill


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("number", [1, 2])
def test_a_disk_that_fills_costs_one_line_and_no_work(
    disk_full_at: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    tailfin: Run,
    asked: list[str],
    whole: Path,
    tmp_path: Path,
    name: str,
    number: int,
) -> None:
    if number == 2 and not name.endswith(("jsonl", "checkpoint.safetensors")):
        pytest.skip("written once")
    out = tmp_path / "run"
    disk_full_at(name, number)
    code, _, said = tailfin(*asked, "--out", out)
    assert code == 2
    assert said == f"tailfin: cannot write {out / name}: No space left on device\n"
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert left <= {*WRITTEN, ".lock"}
    monkeypatch.undo()
    again = ("pretrain", "--resume", out) if (out / "config.toml").exists() else (*asked, "--out", out)
    code, _, said = tailfin(*again)
    assert (code, said) == (0, "")
    same(whole, out)


def test_a_real_full_disk(tailfin: Run, asked: list[str], whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (whole / "checkpoint.safetensors").stat().st_size * 3 // 2
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        code, _, said = tailfin(*asked, "--out", disk / "run")
        assert (code, said.count("\n")) == (2, 1)
        assert "No space left on device" in said
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert tailfin("pretrain", "--resume", disk / "run")[0] == 0
        same(whole, disk / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from tailfin import cli
from tailfin.commands import pretrain
from tailfin.files import writing
words, name, moment = json.loads(sys.argv[1])
write_all, replace, seen = writing._write_all, os.replace, [0]
def write(file, content):
    path = os.readlink(f"/proc/self/fd/{file.fileno()}")
    seen[0] += f"/.{name}." in path or path.endswith(f"/{name}")
    if seen[0] == 2 and moment == "write":
        file.write(content[:len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write_all(file, content)
def rename(source, target):
    if seen[0] == 2 and moment == "rename" and str(target).endswith(f"/{name}"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
writing._write_all, os.replace = write, rename
cli.main(words)
"""


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("checkpoint.safetensors", "write"),
        pytest.param("checkpoint.safetensors", "rename", marks=pytest.mark.ci),
        pytest.param("metrics.jsonl", "write", marks=pytest.mark.ci),
    ],
)
def test_a_kill_in_the_midst_of_a_write_costs_nothing_and_leaves_nothing(
    tailfin: Run, asked: list[str], whole: Path, tmp_path: Path, name: str, moment: str
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc that tells the names of open files")
    import json

    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([[*asked, "--out", str(out)], name, moment])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    code, said, _ = tailfin("pretrain", "--resume", out)
    assert code == 0
    same(whole, out)
    assert {path.name for path in out.iterdir()} == {*WRITTEN, ".lock"}
    assert ("MB that a killed run had left" in said) == (name == "checkpoint.safetensors")


def test_a_closed_terminal_saves_and_says_how_to_go_on(
    tailfin: Run, asked: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Metrics.after_step

    def hang_up(listener: Metrics, taken: Taken) -> None:
        if taken.step == 2:
            os.kill(os.getpid(), signal.SIGHUP)
        original(listener, taken)

    monkeypatch.setattr(Metrics, "after_step", hang_up)
    code, said, _ = tailfin(*asked, "--out", tmp_path / "run")
    assert code == 128 + signal.SIGHUP
    assert "stopped after step 2; go on with: tailfin pretrain --resume" in said
    monkeypatch.undo()
    assert tailfin("pretrain", "--resume", tmp_path / "run")[0] == 0
    same(whole, tmp_path / "run")


def test_a_run_started_by_nohup_goes_on_when_the_terminal_is_closed(
    tailfin: Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    original = Metrics.after_step

    def hang_up(listener: Metrics, taken: Taken) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        original(listener, taken)

    monkeypatch.setattr(Metrics, "after_step", hang_up)
    try:
        assert tailfin(*asked, "--out", tmp_path / "run")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_full_memory_on_a_cpu_gets_advice(
    tailfin: Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "run", lambda *_: torch.empty(2**60))
    code, _, said = tailfin(*asked, "--out", tmp_path / "run")
    assert code == 1
    assert said == (
        "tailfin: the device's memory is full at --batch-size 16; cut it into micro-batches with --accumulate 2\n"
    )


@pytest.mark.parametrize("command", ["advise", "bench"])
def test_full_memory_gets_advice_whatever_trains(
    tailfin: Run, asked: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Step, "__call__", lambda *_: torch.empty(2**60))
    words = [word for word in asked[1:] if word not in ("--momentum", "layer4:")]
    code, _, said = tailfin(command, *words)
    assert code == 1
    assert said.startswith("tailfin: the device's memory is full at --batch-size 16; cut it into")
    assert said.count("\n") == 1


def test_a_folder_that_may_not_be_written_is_named(tailfin: Run, asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, said = tailfin(*asked, "--out", tmp_path / "file" / "run")
    assert (code, said.count("\n")) == (2, 1)
    with pytest.raises(UserError, match=r"cannot write .*result\.json: Not a directory"):
        files.write_json(RunFolder(tmp_path / "file").result, {})
