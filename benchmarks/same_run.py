"""Whether two commits compute, write and say the same: each command run by both, what differs named.

python benchmarks/same_run.py OLD NEW        # commits; NEW may be "." for the working tree

Weights, logs and settings are compared to the byte, results and the screen's lines but for times and versions. A
change that moves code passes with no difference; one that is meant to change a figure shows which. Exits with 1 where
something differs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = "--limit 300 --epochs 3 --batch-size 60 --backbone resnet10w4 --image-size 16 --precision fp32".split()
STUDY = """\
tailfin_study = 1
title = "Same"
question = "Does the same code give the same table?"

[settings]
limit = 200
epochs = 2
batch_size = 50
backbone = "resnet10w4"
image_size = 16
precision = "fp32"
memory_format = "contiguous"

[grid]
momentum = ["none", "stopgrad", "projector"]
seed = [0, 1]
"""
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("pretrain", *TINY, "--out", "plain"),
    ("pretrain", *TINY, "--out", "byol", "--method", "byol", "--momentum", "layer3:", "--accumulate", "2"),
    ("pretrain", *TINY, "--out", "dino", "--method", "dino", "--local-views", "2", "--clip-grad", "1"),
    ("pretrain", *TINY, "--out", "auto", "--method", "mocov2plus", "--momentum", "auto", "--gap", "0.1"),
    ("pretrain", "--resume", "plain"),
    ("evaluate", "byol", "--limit", "200"),
    ("report", "dino"),
    ("advise", *TINY, "--method", "byol"),
    ("study", "study.toml", "--out", "study", "--jobs", "1"),
    ("list",),
    ("pretrain", *TINY, "--out", "wrong", "--momentum", "layer5:"),
)
BY_TIME = {
    "images_per_second",
    "seconds",
    "measured",
    "target_cost_measured",
    "data_wait",
    "versions",
    "minutes",
    "source",
    "finished",
}
"""Keys and columns of results that the clock or the code's own version decides."""
TIMES = re.compile(
    r"\d+ % of the time spent waiting|[\d.,]+ images/s|data wait +\d+ %|left \S+|[\d.,]+ % measured"
    r"|[\d.]+ (s|min|minutes|h)\b|\d+:\d\d:\d\d"
)


def run(tree: Path, folder: Path) -> dict[str, bytes]:
    """What all commands say and write, by name, with the code of `tree`."""
    (folder / "study.toml").write_text(STUDY)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    found: dict[str, bytes] = {}
    for number, words in enumerate(COMMANDS):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tailfin", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if "Traceback" in done.stderr:
            sys.exit(f"tailfin {' '.join(words)}, by the code in {tree}:\n{done.stderr}")
        said = TIMES.sub("<time>", done.stdout + done.stderr).replace(str(folder), "<folder>")
        said = re.sub(r" {2,}", "  ", said)  # columns move with the width of a time
        found[f"{number} tailfin {' '.join(words)}"] = f"{said}code {done.returncode}\n".encode()
    for path in sorted(folder.rglob("*")):
        if (
            path.is_file()
            and "cache" not in path.relative_to(folder).parts[:1]
            and not path.name.startswith(".")
        ):
            found.update(_contents(path, str(path.relative_to(folder)), str(folder)))
    return found


def _contents(path: Path, name: str, folder: str) -> Iterator[tuple[str, bytes]]:
    if path.name == "checkpoint.safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            for key in sorted(file.keys()):
                yield f"{name} {key}", file.get_tensor(key).numpy().tobytes()
            progress = json.loads(file.metadata()["progress"])
        progress["lengths"].pop("timing")
        yield f"{name} progress", json.dumps(progress).replace(folder, "").encode()
    elif path.suffix in (".json", ".jsonl") and path.name != "timing.jsonl":
        rows = (
            [json.loads(line) for line in path.read_text().splitlines()]
            if path.suffix == ".jsonl"
            else [json.loads(path.read_text())]
        )
        yield (
            name,
            TIMES.sub("<time>", json.dumps([_timeless(row) for row in rows])).replace(folder, "").encode(),
        )
    elif path.suffix == ".csv":
        import csv

        with path.open(newline="") as file:
            table = [
                {
                    key: value
                    for key, value in row.items()
                    if key not in BY_TIME and not key.startswith("version")
                }
                for row in csv.DictReader(file)
            ]
        yield name, json.dumps(table).encode()
    elif path.suffix in (".safetensors", ".toml", ".tsv"):
        yield name, path.read_bytes()
    else:  # pages and tables that hold times: that they are there
        yield f"{name} exists", b""


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in BY_TIME}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for side, commit in (("old", asked.old), ("new", asked.new)):
            tree = ROOT
            if commit != ".":
                tree = Path(scratch) / f"{side}-tree"
                tree.mkdir()
                packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
                subprocess.run(["tar", "x", "-C", tree], input=packed.stdout, check=True)
            # One place for both, one after the other: paths are part of what is compared.
            folder = Path(scratch) / "runs"
            folder.mkdir()
            found.append(run(tree, folder))
            folder.rename(Path(scratch) / side)
    old, new = found
    differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    for name in differing:
        print(f"differs: {name}")
        if name in old and name in new and len(old[name]) < 20_000:
            before, after = (each[name].decode(errors="replace").splitlines() for each in (old, new))
            for one, other in zip(before, after, strict=False):
                if one != other:
                    place = max(
                        0,
                        next(
                            (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
                            0,
                        )
                        - 100,
                    )
                    print(f"  - {one[place : place + 200]}\n  + {other[place : place + 200]}")
                    break
    print(f"{len(old.keys() | new.keys())} outputs of {len(COMMANDS)} commands, {len(differing)} differ")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
