"""The command line: `tailfin pretrain`, `advise`, `bench`, `evaluate`, `report`, `list`, `cache`, `data`,
`pack`, `study`.

Words in, exit code out. What needs torch is imported when a command is called: help comes at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tailfin.cli import options
from tailfin.cli.options import Cache, Data, Evaluate, List, Pack, Pretrain, Report, Settings, Study
from tailfin.cli.parsing import given, parse
from tailfin.errors import Diverged, Failed, Lost, OfProcess, UserError, unknown


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
        if _leads() or isinstance(error, OfProcess):
            print(f"tailfin: {error}", file=sys.stderr)
        sys.exit(2)
    except Failed as error:
        said = isinstance(error, Diverged) and not _leads()  # the loss is the same everywhere
        if isinstance(error, Lost):
            from tailfin.compute.launch import MARK

            said = MARK in os.environ
        if not said:
            print(f"tailfin: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print("tailfin: interrupted", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:
        sys.exit(141)


def _leads() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


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
        "data": _data,
        "pack": _pack,
        "study": _study,
    }
    if command not in commands:
        raise unknown("command", command, commands)
    return commands[command](rest)


def _pretrain(words: list[str]) -> int:
    typed = given(Pretrain, words, "pretrain", options.PRETRAIN)
    file, resume = typed.pop("config", None), typed.pop("resume", None)
    devices = typed.pop("devices", None)
    _trust(typed.get("method"))
    from tailfin.cli.progress import best, decoding
    from tailfin.cli.saying import say
    from tailfin.commands.pretrain import pretrain
    from tailfin.commands.several import start_processes
    from tailfin.training.loop import Stopped

    if (
        devices is not None
        and (code := start_processes(words, devices, typed, file=file, resume=resume)) is not None
    ):
        return code
    try:
        outcome = pretrain(typed, file=file, resume=resume, tell=say, decoding=decoding(), progress=best())
    except Stopped as stop:
        return 128 + stop.signal
    if _leads():
        say(outcome)
    return 0


def _advise(words: list[str]) -> int:
    typed = given(Settings, words, "advise", options.ADVISE)
    file = typed.pop("config", None)
    _trust(typed.get("method"))
    from tailfin.cli.progress import decoding
    from tailfin.cli.saying import say
    from tailfin.commands.measure import advise

    say(advise(typed, file=file, tell=say, decoding=decoding()))
    return 0


def _bench(words: list[str]) -> int:
    typed = given(Settings, words, "bench", options.BENCH)
    file = typed.pop("config", None)
    _trust(typed.get("method"))
    from tailfin.cli.progress import decoding
    from tailfin.cli.saying import say
    from tailfin.commands.measure import bench

    say(bench(typed, file=file, tell=say, decoding=decoding()))
    return 0


def _evaluate(words: list[str]) -> int:
    chosen = parse(Evaluate, words, "evaluate", options.EVALUATE)
    _trust(chosen.method)
    from tailfin.cli.progress import decoding
    from tailfin.cli.saying import say
    from tailfin.commands.evaluate import evaluate

    run = Path(chosen.run)
    say(evaluate(run, chosen.data, chosen.limit, chosen.device, tell=say, decoding=decoding()))
    return 0


def _report(words: list[str]) -> int:
    chosen = parse(Report, words, "report", options.REPORT)
    from tailfin.commands.report import report

    lost: list[str] = []
    print(f"report: {report(Path(chosen.run), lost)}")
    for line in lost:
        print(f"tailfin: not drawn: {line}", file=sys.stderr)
    return 0


def _list(words: list[str]) -> int:
    chosen = parse(List, words, "list", options.LIST)
    from tailfin.cli import saying
    from tailfin.commands import lists

    if chosen.what in ("methods", "all"):
        saying.say_methods(lists.list_methods())
    if chosen.what in ("backbones", "all"):
        saying.say_backbones()
    if chosen.what in ("placements", "all"):
        listed = lists.list_placements(chosen.backbone, chosen.image_size)
        saying.say_placements(chosen.backbone, chosen.image_size, listed)
    return 0


def _cache(words: list[str]) -> int:
    chosen = parse(Cache, words, "cache", options.CACHE)
    from tailfin.cli import saying
    from tailfin.commands import cache

    folder = cache.find_cache(chosen.folder)
    print(f"cache       {folder}")
    saying.say(cache.remove_leftovers(folder))
    if chosen.action == "check":
        checked = cache.check(folder, saying.say)
        saying.say(checked)
        return 1 if checked.damaged else 0
    saying.say(cache.clear(folder) if chosen.action == "clear" else cache.contents(folder))
    return 0


def _data(words: list[str]) -> int:
    chosen = parse(Data, words, "data", options.DATA)
    from tailfin.cli.progress import decoding
    from tailfin.cli.saying import say
    from tailfin.cli.saying_data import say_inventory
    from tailfin.commands.data import look_through

    found = look_through(
        chosen.source,
        follow_links=chosen.follow_links,
        workers=chosen.workers,
        tell=say,
        progress=decoding("looked at"),
    )
    say_inventory(found)
    return 1 if found.damaged else 0


def _pack(words: list[str]) -> int:
    chosen = parse(Pack, words, "pack", options.PACK)
    from tailfin.cli.progress import decoding
    from tailfin.cli.saying import say
    from tailfin.cli.saying_data import say_packed
    from tailfin.commands.pack import pack
    from tailfin.data.packing.shards import Packing

    how = Packing(chosen.shard_mb, chosen.longest, chosen.quality)
    packed = pack(
        chosen.source,
        Path(chosen.out).expanduser(),
        how,
        follow_links=chosen.follow_links,
        workers=chosen.workers,
        tell=say,
        progress=decoding("packing"),
    )
    say_packed(packed)
    return 0


def _study(words: list[str]) -> int:
    chosen = parse(Study, words, "study", options.STUDY)
    trusted = _trust(chosen.method)
    from tailfin.cli.saying import say
    from tailfin.study.command import Options, study

    if chosen.method is not None and trusted is None:
        raise UserError(
            f"--method {chosen.method} is no FILE.py:CLASS; the study file says which methods run, and --method "
            "that one of them is in a file of yours"
        )
    asked = Options(
        Path(chosen.file),
        None if chosen.out is None else Path(chosen.out),
        chosen.data,
        chosen.jobs,
        chosen.seeds,
        chosen.limit_minutes,
        chosen.plan,
        chosen.reuse,
        chosen.method,
    )
    return study(asked, say)


def _trust(named: str | None) -> str | None:
    """Run the code of the user's own method that was typed; returns its whole name, None where there is none."""
    from tailfin import methods

    return methods.trust(named) if named is not None and methods.is_file(named) else None
