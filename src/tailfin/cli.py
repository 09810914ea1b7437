"""The command line: `tailfin pretrain`, `advise`, `bench`, `evaluate`, `report`, `list`, `cache`, `study`."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailfin import options
from tailfin.errors import UserError, unknown
from tailfin.options import Cache, Evaluate, List, Pretrain, Report, Settings, Study
from tailfin.parsing import given, parse
from tailfin.training.config import Config, read

MOVING = ("decay", "decay_end", "buffers")
"""Settings that say how momentum moves, and do nothing where no part has any."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):  # so that what was begun is cleaned up
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
    try:
        sys.exit(_run(words))
    except UserError as error:
        print(f"tailfin: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("tailfin: interrupted", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:
        sys.exit(141)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(options.HELP)
        return 0
    command, rest = words[0], words[1:]
    if command in ("-V", "--version"):
        from tailfin import __version__

        print(f"tailfin {__version__}")
        return 0
    commands = {
        "pretrain": _pretrain,
        "advise": _advise,
        "bench": _bench,
        "evaluate": _evaluate,
        "report": _report,
        "list": _list,
        "cache": _cache,
        "study": _study,
    }
    if command not in commands:
        raise unknown("command", command, commands)
    return commands[command](rest)


def _pretrain(words: list[str]) -> int:
    typed = given(Pretrain, words, "pretrain", options.PRETRAIN)
    resumed = typed.pop("resume", None)
    if resumed is not None and not resumed.strip():
        raise UserError("--resume is empty; it names a folder")
    if resumed and typed.get("config"):
        raise UserError("--config and --resume exclude each other: a resumed run has its own settings")
    base = _from_file(typed)
    if resumed:
        from tailfin.training.folder import RunFolder

        base = RunFolder.open(Path(resumed)).read_config()
    _trust(typed)
    config = dataclasses.replace(base, **typed)

    from tailfin import commands, methods

    if methods.is_file(config.method):
        # The run folder keeps the whole path: the run may be resumed from elsewhere.
        config = dataclasses.replace(config, method=methods.whole(config.method))
    return commands.pretrain(config, base if resumed else None, [name for name in MOVING if name in typed])


def _advise(words: list[str]) -> int:
    typed = given(Settings, words, "advise", options.ADVISE)
    # A finished run's file names the placement that it had, which is what is asked here.
    base = dataclasses.replace(_from_file(typed), momentum=Config().momentum)
    _trust(typed)
    from tailfin import commands

    return commands.advise_only(dataclasses.replace(base, **typed))


def _bench(words: list[str]) -> int:
    typed = given(Settings, words, "bench", options.BENCH)
    base = _from_file(typed)
    _trust(typed)
    from tailfin import commands

    return commands.bench_only(dataclasses.replace(base, **typed))


def _from_file(typed: dict[str, Any]) -> Config:
    """The settings of the file that --config names, without its run folder; the usual ones where there is none."""
    file = typed.pop("config", None)
    if file is None:
        return Config()
    if not file.strip():
        raise UserError("--config is empty; it names a file")
    return dataclasses.replace(read(Path(file)), out=None)


def _evaluate(words: list[str]) -> int:
    chosen = parse(Evaluate, words, "evaluate", options.EVALUATE)
    _trust({"method": chosen.method})
    from tailfin import commands

    return commands.evaluate(Path(chosen.run), chosen.data, chosen.limit, chosen.device)


def _report(words: list[str]) -> int:
    chosen = parse(Report, words, "report", options.REPORT)
    from tailfin import commands

    return commands.report(Path(chosen.run))


def _study(words: list[str]) -> int:
    chosen = parse(Study, words, "study", options.STUDY)
    trusted = _trust({"method": chosen.method})
    from tailfin.study.command import Options, study

    if chosen.method is not None and trusted is None:
        raise UserError(
            f"--method {chosen.method} is no FILE.py:CLASS; the study file says which methods run, and --method "
            "that one of them is in a file of yours"
        )
    out = None if chosen.out is None else Path(chosen.out)
    return study(
        Options(
            Path(chosen.file),
            out,
            chosen.data,
            chosen.jobs,
            chosen.seeds,
            chosen.limit_minutes,
            chosen.plan,
            chosen.reuse,
            chosen.method,
        )
    )


def _list(words: list[str]) -> int:
    chosen = parse(List, words, "list", options.LIST)
    from tailfin import listing

    return listing.show(chosen.what, chosen.backbone, chosen.image_size)


def _cache(words: list[str]) -> int:
    chosen = parse(Cache, words, "cache", options.CACHE)
    from tailfin import cache

    return cache.show(chosen.action, chosen.folder)


def _trust(typed: Mapping[str, Any]) -> str | None:
    """Run the code of the user's own method that was typed; returns its whole name, None where there is none."""
    from tailfin import methods

    named = typed.get("method")
    return methods.trust(named) if named is not None and methods.is_file(named) else None
