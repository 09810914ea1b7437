"""`advise` and `bench` as functions: from settings to what a few steps on this machine say; nothing is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailfin.commands.checking import check, memory_of
from tailfin.commands.told import Note, Tell
from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.errors import UserError
from tailfin.measuring import advice, timing
from tailfin.measuring.advice import Advice
from tailfin.measuring.timing import Bench
from tailfin.run.config import Config
from tailfin.run.layers import base, layered
from tailfin.training.misfits import AUTO
from tailfin.training.setup import load_data


@dataclass(frozen=True)
class Measures:
    """What is about to be measured, `what`, on `images` images."""

    what: str
    images: int


def advise(
    typed: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    tell: Tell = lambda _: None,
    decoding: Callable[[int, int], None] | None = None,
) -> Advice:
    """Where momentum would steady a training most, from a short phase of it.

    Args:
        typed, file, tell, decoding: As for `pretrain`; a placement in `file` is passed over, for it is what is asked.

    Raises:
        UserError: As `pretrain`, a placement or a run folder among `typed`, or a run too short to measure anything.
        MemoryFull: On the device or the host.
    """
    # A finished run's file names the placement that it had.
    config = layered(replace(base(file), momentum=Config().momentum), typed)
    if config.momentum not in ("published", AUTO):
        raise UserError(f"advise chooses where momentum goes; leave out --momentum {config.momentum}")
    if config.out is not None:
        raise UserError(f"advise keeps nothing; leave out --out {config.out}")
    config = replace(config, momentum=AUTO)
    check(config)
    keep_freed_memory()
    data = load_data(config, find_device(config.device), progress=decoding, say=lambda line: tell(Note(line)))
    tell(Measures("advise", len(data.train)))
    with memory_of(config):
        return advice.advise(config, data)


def bench(
    typed: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    tell: Tell = lambda _: None,
    decoding: Callable[[int, int], None] | None = None,
) -> Bench:
    """Where a step's time goes on this machine, what each placement costs on it, and what to change.

    Args:
        typed, file, tell, decoding: As for `pretrain`.

    Raises:
        UserError: As `pretrain`, or the placement auto or a run folder among `typed`.
        MemoryFull: On the device or the host.
    """
    config = layered(base(file), typed)
    if config.momentum == AUTO:
        raise UserError("bench measures every placement; leave out --momentum, or name one")
    if config.out is not None:
        raise UserError(f"bench keeps nothing; leave out --out {config.out}")
    check(config)
    keep_freed_memory()
    data = load_data(config, find_device(config.device), progress=decoding, say=lambda line: tell(Note(line)))
    tell(Measures("bench", len(data.train)))
    with memory_of(config):
        return timing.bench(config, data)
