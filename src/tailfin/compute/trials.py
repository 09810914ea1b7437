"""The fastest sound precision and memory format on this machine: tried by a process of its own, and remembered."""

import hashlib
import json
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tailfin.compute.device import FORMATS, MemoryFormat, Precision
from tailfin.errors import UserError, printable
from tailfin.files import make_folder, write_json

PROGRAM = (sys.executable, "-P", "-m", "tailfin.compute.trial")
START_SECONDS, PATIENCE_SECONDS = 300.0, 120.0
"""Longest silence of a trial before its first word, which comes after some seconds, and from then on: a step of the
largest nets on two cores takes half of it. Once a candidate has answered it is `SLOWER` times as long as that took,
but `LEAST_SECONDS` at least."""
SLOWER, LEAST_SECONDS = 20.0, 30.0
LAYOUT = 1


@dataclass(frozen=True)
class Question:
    """What the answer depends on, beside the machine and torch.

    Attributes:
        backbone: Its name.
        image_size: Side of the views in pixels.
        channels: Of the images.
        images: In the batch that is timed.
        device: Where.
        precision, memory_format: Kept where given.
    """

    backbone: str
    image_size: int
    channels: int
    images: int
    device: str
    precision: Precision | None
    memory_format: MemoryFormat | None

    @property
    def candidates(self) -> list[tuple[Precision, MemoryFormat]]:
        """What to choose from, the preferred one first."""
        precisions: list[Precision] = [self.precision] if self.precision else ["fp32", "bf16"]
        # channels_last was the faster for ResNets, each time and by 3 to 29 %; with contiguous first, the least of
        # these was taken for a tie.
        formats: list[MemoryFormat] = (
            [self.memory_format] if self.memory_format else ["channels_last", "contiguous"]
        )
        return list(product(precisions, formats))


@dataclass(frozen=True)
class Answer:
    """What to compute with, and what a run should not be computed with here.

    Attributes:
        precision, memory_format: The fastest sound ones.
        left_out: A line for each candidate that crashed, hung, or computed wrong gradients.
    """

    precision: Precision
    memory_format: MemoryFormat
    left_out: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The choice."""
        return f"{self.precision}, {self.memory_format}"


def fastest(question: Question, cache: Path) -> Answer:
    """The fastest candidate whose gradient is right; what was asked before on this machine is not tried again.

    Where both precision and memory format are given, they are checked and kept whatever the check says.

    Raises:
        torch.OutOfMemoryError: Nothing fits in the device's memory.
        UserError: Nothing works.
    """
    asked = {**asdict(question), "machine": machine(question.device), "layout": LAYOUT}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
    file = cache / "trials" / f"{name}.json"
    if (known := _remembered(file, asked)) is not None:
        return known
    answer = _try(question)
    with suppress(UserError):  # a cache that cannot be written costs the next run its time, and nothing else
        make_folder(file.parent)
        words = f"{question.backbone} at {question.image_size} px on {question.device}: {answer.words}"
        write_json(file, {"asked": asked, "found": asdict(answer), "words": words})
    return answer


def machine(device: str) -> dict[str, Any]:
    """What is computed with: torch, and the processor or GPU with what decides about its kernels."""
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        return found | {"gpu": torch.cuda.get_device_name(device)}
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text()
        told = re.findall(r"^(?:model name|flags|Features)\s*: (.*)$", lines, re.MULTILINE)
        processor = hashlib.sha256("\n".join(dict.fromkeys(told)).encode()).hexdigest()[:16]
    chosen = {
        name: os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if name in os.environ
    }
    return found | {"machine": platform.machine(), "processor": processor, **chosen}


def _remembered(file: Path, asked: Mapping[str, Any]) -> Answer | None:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        found = held["found"]
        answer = Answer(found["precision"], found["memory_format"], tuple(map(str, found["left_out"])))
        sound = (
            held["asked"] == asked
            and answer.precision in ("fp32", "bf16")
            and answer.memory_format in FORMATS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if sound else None


def _try(question: Question) -> Answer:
    """Run trials until one comes to its end, each without the candidates that ended the ones before."""
    left = question.candidates
    lines: list[str] = []
    full = False
    while left:
        trial = _Trial(question, left)
        best = trial.run()
        if not trial.began:
            # Nothing can be said of the candidates, and a run that works all the same should not fail for it.
            usual = (question.precision or "fp32", question.memory_format or "contiguous")
            return Answer(
                *usual, (*lines, f"precisions and memory formats could not be tried: {trial.reason}")
            )
        full = full or bool(trial.full)
        lines += [
            f"{', '.join(left[n])}: gradients are off by {100 * by:.0f} %" for n, by in trial.wrong.items()
        ]
        if best is not None:
            return Answer(*left[best], tuple(lines))
        if trial.reason:
            lines.append(f"{', '.join(left[trial.on])}: {trial.reason}")
        gone = {*trial.full, *trial.wrong, *([trial.on] if trial.reason else [])}
        left = [each for n, each in enumerate(left) if n not in gone]
    if question.precision and question.memory_format:
        return Answer(question.precision, question.memory_format, tuple(lines))
    if full:
        raise torch.OutOfMemoryError("no precision and memory format fits in the device's memory")
    raise UserError(
        f"no precision and memory format works with --backbone {question.backbone}: {'; '.join(lines)}"
    )


class _Trial:
    """One process that tries the candidates.

    Attributes:
        began: Whether it came to the first candidate.
        on: The candidate that it worked on last.
        full, wrong: Candidates that do not fit in memory; whose gradients are wrong, and by how much.
        reason: Why it came to no end; empty where it did.
    """

    def __init__(self, question: Question, left: list[tuple[Precision, MemoryFormat]]) -> None:
        self.asked = {**asdict(question), "candidates": left, "threads": torch.get_num_threads()}
        self.began, self.on, self.reason = False, 0, ""
        self.full: list[int] = []
        self.wrong: dict[int, float] = {}
        self.patience = START_SECONDS

    def run(self) -> int | None:
        """The best candidate; None where the trial came to no end, or all that it tried are unfit."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*PROGRAM, json.dumps(self.asked)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other one
            )
            try:
                best, ended = self._follow(process)
            finally:
                process.kill()
                process.communicate()
            if ended:
                return best
            if not self.reason:
                errors.seek(0)
                self.reason = _how_it_ended(process.returncode, errors.read())
            return None

    def _follow(self, process: subprocess.Popen[bytes]) -> tuple[int | None, bool]:
        """Take note of what it says; returns the best candidate, and whether it said that it has ended."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        said, heard = b"", time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                wait = heard + self.patience - time.monotonic()
                if wait <= 0:
                    self.reason = f"no answer within {self.patience:.0f} s: it hangs, or is far too slow"
                    return None, False
                if not selector.select(wait):
                    continue
                piece = process.stdout.read()
                if not piece:
                    process.wait()
                    return None, False
                *lines, said = (said + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line) if line.startswith(b"{") else {}
                    if "best" in event:
                        return event["best"], True
                    self._note(event, time.monotonic() - heard)
                if lines:
                    heard = time.monotonic()

    def _note(self, event: Mapping[str, Any], seconds: float) -> None:
        if not self.began:
            self.patience = PATIENCE_SECONDS
        elif self.patience == PATIENCE_SECONDS:
            self.patience = min(PATIENCE_SECONDS, max(LEAST_SECONDS, SLOWER * seconds))
        if "trying" in event:
            self.began, self.on = True, int(event["trying"])
        elif "full" in event:
            self.full.append(int(event["full"]))
        elif "wrong" in event:
            self.wrong[int(event["wrong"])] = float(event["by"])


def _how_it_ended(code: int, errors: bytes) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return printable(lines[-1]) if lines else f"it ended with code {code}"
