"""The run folder: what lies where, and the two logs."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from tailfin.data.types import Skipped
from tailfin.errors import UserError
from tailfin.files import (
    append,
    cannot_write,
    lock,
    open_to_append,
    remove_unfinished,
    write_atomically,
)
from tailfin.files.reading import read_json, read_json_lines, read_tensors, read_text
from tailfin.momentum import MomentumEncoder
from tailfin.momentum.placement import PROJECTOR
from tailfin.run import config as settings
from tailfin.run.config import Config


class RunFolder:
    """Paths of one run. `metrics.jsonl` holds what follows from the settings alone; timings have a file of their own,
    so that an interrupted and resumed run has the same metrics to the byte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.timing = path / "timing.jsonl"
        self.stability = path / "stability.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self.encoder = path / "encoder.safetensors"
        self.advice = path / "advice.json"
        self.result = path / "result.json"
        self.report = path / "report.html"
        self.skipped = path / "skipped.tsv"
        self.pictures = path / "pictures.safetensors"
        self.encoder_momentum = path / "encoder-momentum.safetensors"
        self.lock = path / ".lock"
        self.launch = path / ".launch"

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """A new folder, at `config.out` or at the next free name under runs/.

        Raises:
            UserError: The folder holds a run already, or cannot be made.
        """
        path = Path(config.out).expanduser() if config.out else Path("runs")
        folder = cls(path)
        if folder.config.exists():
            raise holds_a_run(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not config.out:
                folder = cls(_claim(path, config))
        except OSError as error:
            raise UserError(f"cannot make the run folder {path}: {error.strerror}") from None
        return folder

    @classmethod
    def latest(cls, config: Config, launch: str) -> "RunFolder | None":
        """The folder of the run that a launch began with these settings; None where it began none."""
        if config.out:
            found = [Path(config.out).expanduser()]
        else:
            found = [path for path in _names(Path("runs"), config, most=1000) if path.exists()]
        folders = [cls(path) for path in found]
        return next(
            (
                folder
                for folder in reversed(folders)
                if folder.config.exists() and folder.launch.exists() and read_text(folder.launch) == launch
            ),
            None,
        )

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of an existing run.

        Raises:
            UserError: There is no run at `path`.
        """
        folder = cls(path.expanduser())
        if not folder.config.exists():
            reason = "holds no config.toml" if folder.path.is_dir() else "does not exist"
            raise UserError(f"no run at {path}: the folder {reason}")
        return folder

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Be the only process that writes the run; readers go on as they like.

        Yields the bytes that a killed writer had left and that were removed. A folder that never became a run is not
        left behind.

        Raises:
            UserError: Another process writes it, or it cannot be written.
        """
        try:
            handle = lock.acquire(self.lock)
        except OSError as error:
            raise cannot_write(self.lock, error) from None
        if handle is None:
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or choose another --out"
            )
        try:
            # Not the report: `tailfin report` writes it too, at any time.
            yield remove_unfinished(path for path in self._files() if path != self.report)
        finally:
            if not any(path.exists() for path in self._files()):
                with suppress(OSError):
                    self.lock.unlink()
                    self.path.rmdir()
            lock.release(handle)

    def _files(self) -> list[Path]:
        return [path for name, path in vars(self).items() if name not in ("path", "lock", "launch")]

    def read_config(self) -> Config:
        """The run's settings, `out` being where the folder lies now."""
        return replace(settings.read(self.config), out=str(self.path))

    def save_encoder(self, encoder: MomentumEncoder, about: Mapping[str, object]) -> None:
        """Write the backbone under its own library's keys, online weights; momentum weights, where there are any,
        go to a file of their own.

        Args:
            encoder: Both branches.
            about: What `backbones.load_encoder` needs to build it again, and how its images are normalised.
        """
        self._save_tensors(self.encoder, encoder.backbone_state_dict(), about)
        if any(name != PROJECTOR for name in encoder.placement.placed):
            self._save_tensors(self.encoder_momentum, encoder.backbone_state_dict(momentum=True), about)

    def save_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Write the images that could not be read, one a line: name, tab, reason."""
        if skipped:
            write_atomically(
                self.skipped,
                "".join(f"{s.name}\t{s.reason}\n" for s in skipped).encode(errors="backslashreplace"),
            )

    def save_pictures(self, views: Tensor, neighbours: Tensor) -> None:
        """Write the report's pictures, uint8 [n, m, C, S, S]."""
        self._save_tensors(self.pictures, {"views": views, "neighbours": neighbours})

    def _save_tensors(
        self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object] | None = None
    ) -> None:
        from safetensors.torch import save

        metadata = None if about is None else {"tailfin": json.dumps(dict(about))}
        plain = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        write_atomically(path, save(plain, metadata=metadata))

    def read_result(self) -> dict[str, Any]:
        """The content of result.json; empty while the run is not finished.

        Raises:
            UserError: It is damaged.
        """
        if not self.result.exists():
            return {}
        try:
            return read_json(self.result)
        except UserError as error:
            raise UserError(f"{error}; remove it, and --resume {self.path} judges the run again") from None

    def read_pictures(self) -> dict[str, Tensor]:
        """The report's pictures; empty while the run is not finished.

        Raises:
            UserError: They are damaged.
        """
        return read_tensors(self.pictures)[0] if self.pictures.exists() else {}

    def read_skipped(self) -> list[tuple[str, str]]:
        """Images that could not be read: name and reason.

        Raises:
            UserError: The list is damaged.
        """
        if not self.skipped.exists():
            return []
        rows = (line.partition("\t") for line in read_text(self.skipped).splitlines())
        return [(name, reason) for name, _, reason in rows]

    def read_metrics(self, lost: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; `lost` as for `read_json_lines`."""
        return read_json_lines(self.metrics, lost)

    def read_timing(self, lost: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of timing.jsonl."""
        return read_json_lines(self.timing, lost)

    def read_stability(self, lost: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of stability.jsonl; none where nothing was monitored."""
        return read_json_lines(self.stability, lost)


def holds_a_run(path: Path) -> UserError:
    """The error of a new run where there is one."""
    return UserError(
        f"--out {path} holds a run already; go on with --resume {path}, or choose another folder"
    )


class Log:
    """A JSON-lines file that grows row by row; `length` bytes of it are kept, the rest belongs to lost steps."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path, self._file = path, open_to_append(path)
        if self._file.seek(0, os.SEEK_END) < length:
            raise UserError(
                f"{path} is shorter than when the checkpoint was written; the run cannot be resumed exactly"
            )
        self._file.truncate(length)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        append(self._file, self.path, (json.dumps(dict(row), allow_nan=False) + "\n").encode())

    def sync(self) -> int:
        """Put all rows on the disk; returns the file's length in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close."""
        self._file.close()


def _claim(runs: Path, config: Config) -> Path:
    """Make the next free folder below `runs`; two runs that start together get one each."""
    for path in _names(runs, config):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _names(runs: Path, config: Config, most: int | None = None) -> Iterator[Path]:
    """Where a run of these settings may lie, in the order in which the names are taken."""
    data = Path(config.data).name or "data"
    method = config.method.rpartition(":")[2]  # of FILE.py:CLASS the class
    name = f"{data}-{method}-{config.momentum}-seed{config.seed}"
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    for number in islice(count(1), most):
        yield runs / (name if number == 1 else f"{name}-{number}")
