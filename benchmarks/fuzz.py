"""Damaged and odd files of every kind that tailfin reads: each is read, or refused in one line, soon and in bounds.

python benchmarks/fuzz.py --inputs 10000
python benchmarks/fuzz.py --inputs 300 --kinds images parquet --seed 7

A child process reads them, so that one which crashes, hangs or fills the memory is counted, named and passed over.
`--keep FOLDER` keeps what was neither read nor refused.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

SECONDS, GIGABYTES = 10.0, 2.0
"""No input may take longer, or bring the process to more memory. The processor's time, so that others' work counts
nothing."""
HANGS_SECONDS, START_SECONDS = 60.0, 240.0
"""Without an answer."""
GOOD = ("read", "refused")

Read = Callable[[Path, random.Random], object]
"""Makes an input in an empty folder and reads it; whatever it raises but a UserError is a defect."""


def damaged(content: bytes, draws: random.Random) -> bytes:
    """Bytes with one to a few bits, bytes or stretches changed, lost, doubled or exchanged."""
    changed = bytearray(content)
    for _ in range(draws.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            return b""
        place, length = draws.randrange(len(changed)), draws.choice((1, 2, 4, 8, 64))
        kind = draws.randrange(8)
        if kind == 0:
            changed[place] ^= 1 << draws.randrange(8)
        elif kind == 1:
            changed[place : place + length] = draws.randbytes(length)
        elif kind == 2:
            changed[place : place + length] = draws.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * length
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length] * draws.choice((1, 2, 100))
        elif kind == 5:
            del changed[place:]
        elif kind == 6:
            number = draws.choice((0, 1, 2**31 - 1, 2**32 - 1, draws.getrandbits(32)))
            changed[place : place + 4] = struct.pack(draws.choice("<>") + "I", number)
        else:
            other = draws.randrange(len(changed))
            changed[place : place + length], changed[other : other + length] = (
                changed[other : other + length],
                changed[place : place + length],
            )
    return bytes(changed)


ODD = (
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    1e308,
    True,
    [[]],
    {"a": None},
    "\x1b[31m\n",
    10**40,
    float("nan"),
    "[" * 5000,
)


def odd(value: Any, draws: random.Random) -> Any:
    """A value in which something is of another kind, gone, or far too much."""
    if isinstance(value, dict) and value and draws.random() < 0.9:
        key = draws.choice(sorted(value))
        if draws.random() < 0.2:
            return {name: each for name, each in value.items() if name != key}
        return value | {key: odd(value[key], draws)}
    if isinstance(value, list) and value and draws.random() < 0.8:
        place = draws.randrange(len(value))
        return [*value[:place], odd(value[place], draws), *value[place + 1 :]]
    return draws.choice(ODD)


def images(scratch: Path) -> Read:
    """A folder of a sound image and a damaged one, of all formats."""
    import numpy as np
    from PIL import Image

    from tailfin.data.load import load

    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 4), dtype=np.uint8)
    smooth = Image.fromarray(pixels[:6, :5]).resize((40, 48))
    modes = {mode: smooth.convert(mode) for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK")}
    modes["I;16"] = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    sound: list[tuple[str, bytes]] = []
    for mode, kind, options in (
        ("RGB", "JPEG", {"exif": exif}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        *((mode, "PNG", {}) for mode in ("RGB", "RGBA", "L", "P", "1", "I;16")),
        ("P", "GIF", {"transparency": 3}),
        ("RGB", "BMP", {}),
        ("RGB", "PPM", {}),
        *(
            (mode, "TIFF", {"compression": how})
            for mode, how in (
                ("RGB", "raw"),
                ("RGB", "tiff_lzw"),
                ("RGBA", "tiff_adobe_deflate"),
                ("1", "group4"),
            )
        ),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "JPEG2000", {}),
        ("RGB", "AVIF", {}),
    ):
        out = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):  # a format that this Pillow was built without
            modes[mode].save(out, kind, **options)
            sound.append((kind.lower().replace("jpeg2000", "jp2"), out.getvalue()))

    def read(folder: Path, draws: random.Random) -> object:
        (folder / "sound.png").write_bytes(sound[3][1])
        suffix, content = draws.choice(sound)
        (folder / f"x.{suffix}").write_bytes(damaged(content, draws))
        data = load(str(folder), image_size=32, tolerate=1.0, workers=2)
        return refuse(data.skipped[0].reason) if data.skipped else "all"

    return read


def parquet(scratch: Path) -> Read:
    """Parquet files of images and labels, their bytes damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tailfin.data.load import load

    picture = _picture()
    image = pa.array([{"bytes": picture, "path": f"{n}.png"} for n in range(30)])
    files = []
    for labels, options in (
        ([n % 3 for n in range(30)], {}),
        (["a", "b", None] * 10, {"compression": "zstd"}),
        (pa.array(["x", "y", "z"] * 10).dictionary_encode(), {"row_group_size": 7, "compression": "none"}),
    ):
        out = io.BytesIO()
        pq.write_table(pa.table({"image": image, "label": labels}), out, **options)
        files.append(out.getvalue())

    def read(folder: Path, draws: random.Random) -> object:
        (folder / "x.parquet").write_bytes(damaged(draws.choice(files), draws))
        return load(str(folder / "x.parquet"), tolerate=1.0, workers=2)

    return read


def tars(scratch: Path) -> Read:
    """Tar shards of images and labels, their headers and bytes damaged, and their list with odd values."""
    import tarfile

    from tailfin.commands.pack import pack
    from tailfin.data.load import load
    from tailfin.data.packing.shards import Packing

    for n in range(8):
        (scratch / "photos" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        (scratch / "photos" / "ab"[n % 2] / f"{n}.png").write_bytes(_picture(n))
    pack(str(scratch / "photos"), scratch / "shards", Packing(), workers=1)
    packed = (scratch / "shards" / "train-000000.tar").read_bytes()
    told = json.loads((scratch / "shards" / "shards.json").read_text())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for n in range(6):
            for name, content in (
                (f"{'n' * 120}é{n}.png", _picture(n)),
                (f"{n}.json", b'{"label": %d}' % (n % 2)),
            ):
                about = tarfile.TarInfo(f"{n}/{name}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    sound = out.getvalue()

    def read(folder: Path, draws: random.Random) -> object:
        content = (
            packed if (listed := draws.random() < 0.3) else damaged(draws.choice((packed, sound)), draws)
        )
        (folder / "train-000000.tar").write_bytes(content)
        if listed:
            (folder / "shards.json").write_text(json.dumps(odd(told, draws)))
        return load(str(folder), tolerate=1.0, workers=2)

    return read


def idx(scratch: Path) -> Read:
    """IDX files, gzipped or not, their bytes damaged."""
    from tailfin.data.load import load

    content = struct.pack(">4BIII", 0, 0, 8, 3, 40, 9, 8) + random.Random(0).randbytes(40 * 72)
    labels = struct.pack(">4BI", 0, 0, 8, 1, 40) + bytes(n % 4 for n in range(40))

    def read(folder: Path, draws: random.Random) -> object:
        for name, sound in (("train-images-idx3-ubyte", content), ("train-labels-idx1-ubyte", labels)):
            if draws.random() < 0.5:
                (folder / f"{name}.gz").write_bytes(damaged(gzip.compress(sound), draws))
            else:
                (folder / name).write_bytes(damaged(sound, draws))
        return load(str(folder))

    return read


def settings(scratch: Path) -> Read:
    """config.toml and study files: damaged text, and odd values."""
    import tomli_w

    from tailfin.run import config
    from tailfin.study.spec.file import read as read_study

    path = scratch / "config.toml"
    config.save(config.Config(method_options={"temperature": 0.2}), path)
    plain = path.read_bytes()
    study = next(iter(sorted(Path(__file__).parents[1].glob("studies/*.toml")))).read_bytes()

    def read(folder: Path, draws: random.Random) -> object:
        kind, file = draws.randrange(3), folder / "x.toml"
        if kind == 0:
            file.write_bytes(damaged(plain, draws))
        elif kind == 1:
            file.write_bytes(damaged(study, draws))
            return read_study(file)
        else:
            values = odd(config.as_dict(config.Config(method_options={"temperature": 0.2})), draws)
            with contextlib.suppress(Exception):  # what TOML has no word for
                file.write_text(tomli_w.dumps(values), encoding="utf-8", errors="surrogatepass")
            if not file.exists():
                return "all"
        return config.read(file)

    return read


def checkpoints(scratch: Path) -> Read:
    """Checkpoints: damaged bytes; and with a right checksum, odd values and tensors."""
    import torch

    from tailfin.run import checkpoint
    from tailfin.run.folder import RunFolder
    from tailfin.training.listeners import Progress
    from tailfin.training.start import start

    run, setup = _run(scratch)
    sound = (run / "checkpoint.safetensors").read_bytes()
    held = checkpoint.load(run / "checkpoint.safetensors")

    def read(folder: Path, draws: random.Random) -> object:
        for name in ("metrics.jsonl", "timing.jsonl", "stability.jsonl"):
            shutil.copy(run / name, folder / name)
        file = folder / "checkpoint.safetensors"
        kind = draws.randrange(3)
        if kind == 0:
            file.write_bytes(damaged(sound, draws))
        elif kind == 1:
            progress = odd(json.loads(json.dumps(held.progress)), draws)
            checkpoint.save(file, held.tensors, progress if isinstance(progress, dict) else {"": progress})
        else:
            tensors, name = dict(held.tensors), draws.choice(sorted(held.tensors))
            del tensors[name]
            if draws.random() < 0.8:
                shape = draws.choice(((), (0,), (3, 1, 2), tuple(held.tensors[name].shape)))
                kinds = (torch.float32, torch.int64, torch.bool, torch.bfloat16)
                tensors[name] = torch.zeros(shape, dtype=draws.choice(kinds))
            checkpoint.save(file, tensors, held.progress)
        loop = start(setup, RunFolder(folder), None, Progress())
        for listener in loop.listeners:
            listener.close()
        return loop

    return read


def encoders(scratch: Path) -> Read:
    """encoder.safetensors: damaged bytes, and odd metadata."""
    from safetensors.torch import load_file, save_file

    from tailfin.backbones import load_encoder

    run, _ = _run(scratch)
    sound, tensors = (run / "encoder.safetensors").read_bytes(), load_file(run / "encoder.safetensors")
    from tailfin.backbones import encoder_metadata

    about = encoder_metadata(run / "encoder.safetensors")

    def read(folder: Path, draws: random.Random) -> object:
        file = folder / "encoder.safetensors"
        if draws.random() < 0.5:
            file.write_bytes(damaged(sound, draws))
        else:
            save_file(tensors, file, metadata={"tailfin": json.dumps(odd(about, draws))})
        return load_encoder(file)

    return read


def reports(scratch: Path) -> Read:
    """Whole run folders of which one file is damaged or odd, and their report."""
    from tailfin.commands.report import write_report
    from tailfin.run.folder import RunFolder

    run, _ = _run(scratch)
    result = json.loads((run / "result.json").read_text())

    def read(folder: Path, draws: random.Random) -> object:
        shutil.copytree(run, folder, dirs_exist_ok=True)
        logs = ("metrics.jsonl", "timing.jsonl", "stability.jsonl")
        name = draws.choice((*logs, "result.json", "pictures.safetensors", "skipped.tsv"))
        if name == "result.json" and draws.random() < 0.8:
            (folder / name).write_text(json.dumps(odd(result, draws)))
        elif name.endswith("jsonl") and draws.random() < 0.5:
            rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
            place = draws.randrange(len(rows))
            rows[place] = odd(rows[place], draws)
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            (folder / name).write_bytes(damaged((run / name).read_bytes(), draws))
        if draws.random() < 0.9 and name not in logs:
            for log in logs:  # which take most of the time to draw
                (folder / log).unlink()
        lost: list[str] = []
        write_report(RunFolder(folder), lost=lost)
        return refuse(lost[0]) if lost else "all"

    return read


def tables(scratch: Path) -> Read:
    """A study's table.parquet and compute.json, damaged or odd."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tailfin.study.execution.compute import Kept
    from tailfin.study.results import table

    root = Path(__file__).parents[1]
    source = next(iter(sorted(root.glob("results/*/table.parquet"))))
    sound, rows = source.read_bytes(), pq.read_table(source).slice(0, 4).to_pylist()
    compute = {
        "device": "cpu",
        "precision": "fp32",
        "memory_format": "contiguous",
        "memory": 1,
        "images": {"a": "b"},
    }

    def read(folder: Path, draws: random.Random) -> object:
        kind = draws.randrange(4)
        if kind == 0:
            (folder / "table.parquet").write_bytes(damaged(sound, draws))
        elif kind == 1:
            changed = [dict(row) for row in rows]
            row = draws.choice(changed)
            row["settings"] = json.dumps(odd(json.loads(row["settings"]), draws))
            pq.write_table(pa.Table.from_pylist(changed), folder / "table.parquet")
        elif kind == 2:
            (folder / "compute.json").write_text(json.dumps(odd(compute, draws)))
        else:
            (folder / "compute.json").write_bytes(damaged(json.dumps(compute).encode(), draws))
        return table.read(folder), Kept.read(folder)

    return read


def caches(scratch: Path) -> Read:
    """An entry of the cache of decoded images, damaged."""
    from tailfin.data import store
    from tailfin.data.load import load

    store.free_memory = lambda: 0  # so that images are mapped
    photos = scratch / "photos"
    photos.mkdir()
    for place in range(4):
        (photos / f"{place}.png").write_bytes(_picture(place))
    before = load(str(photos), cache=scratch / "cache").train.images.clone()
    entry = next((scratch / "cache" / "decoded").iterdir())

    def read(folder: Path, draws: random.Random) -> object:
        mine = folder / "decoded" / entry.name
        shutil.copytree(entry, mine)
        file = mine / draws.choice(("images.npy", "aspect.npy", "index.json"))
        file.write_bytes(damaged(file.read_bytes(), draws))
        said: list[str] = []
        images = load(str(photos), cache=folder, say=said.append).train.images
        if not images.equal(before):
            raise AssertionError(f"other images than before; said: {said}")
        return refuse(said[0]) if said else "all"

    return read


KINDS: Mapping[str, Callable[[Path], Read]] = {
    each.__name__: each
    for each in (images, parquet, tars, idx, settings, checkpoints, encoders, reports, tables, caches)
}


def refuse(words: str) -> object:
    """A refusal that a reader tells by a value."""
    from tailfin.errors import UserError

    raise UserError(words)


def _picture(seed: int = 0) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.frombytes("RGB", (12, 10), random.Random(seed).randbytes(360)).save(out, "PNG")
    return out.getvalue()


def _run(scratch: Path) -> tuple[Path, Any]:
    """A finished run of a tiny net, and its setup."""
    from tailfin import cli
    from tailfin.run import config
    from tailfin.training.setup import prepare

    photos, out = scratch / "images", scratch / "run"
    for place in range(40):
        (photos / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        (photos / "ab"[place % 2] / f"{place}.png").write_bytes(_picture(place))
    (photos / "a" / "none.png").write_bytes(b"none")
    words = (
        f"pretrain --tolerate 1 --data {photos} --out {out} --backbone resnet10w1 --batch-size 16 --epochs 1 "
        "--precision fp32 --memory-format contiguous --method-options hidden 4 out 4 --device cpu --momentum layer4:"
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main(words.split())
    return out, prepare(config.read(out / "config.toml"))


def child(kind: str, start: int, stop: int, keep: str) -> None:
    """Read the inputs start to stop - 1, and say of each how it ended."""
    import torch

    from tailfin.errors import UserError

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        read = KINDS[kind](scratch)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"ready": base}), flush=True)
        for seed in range(start, stop):
            folder = scratch / f"input{seed}"
            folder.mkdir()
            began, outcome, words = time.process_time(), "read", ""
            try:
                read(folder, random.Random(f"{kind} {seed}"))
            except UserError as error:
                outcome, words = "refused", str(error)
                if "\n" in words:
                    outcome = "several lines"
            except Exception as error:  # what is looked for
                outcome, words = "traceback", f"{type(error).__name__}: {error}"
            seconds = time.process_time() - began
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024 / 1e9
            if outcome not in GOOD and keep:
                shutil.copytree(folder, Path(keep) / f"{kind}-{seed}", dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            row = {
                "seed": seed,
                "outcome": outcome,
                "seconds": seconds,
                "memory": memory,
                "words": words[:300],
            }
            print(json.dumps(row), flush=True)


def follow(kind: str, start: int, stop: int, keep: str) -> Iterator[dict[str, Any]]:
    """The rows of a child; the last one tells how it ended where that was too early."""
    words = [sys.executable, __file__, "--child", kind, str(start), str(stop), "--keep", keep]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: Queue[str | None] = Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    seed, patience = start, START_SECONDS
    try:
        while seed < stop:
            try:
                line = lines.get(timeout=patience)
            except Empty:
                yield {"seed": seed, "outcome": "hang", "words": f"no answer within {patience:.0f} s"}
                return
            if line is None:
                yield {"seed": seed, "outcome": "crash", "words": f"exit code {process.wait()}"}
                return
            row = json.loads(line)
            patience = HANGS_SECONDS
            if "ready" in row:
                continue
            seed = row["seed"] + 1
            if row["seconds"] > SECONDS:
                row["outcome"] = "over 10 s"
            elif row["memory"] > GIGABYTES:
                row["outcome"] = "over 2 GB"
            yield row
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Print the counts by outcome; 1 where something was neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, shared evenly by the kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the first input of each kind")
    parser.add_argument("--keep", default="", help="a folder for inputs that were neither read nor refused")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        kind, start, stop = chosen.child
        child(kind, int(start), int(stop), chosen.keep)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    each, bad = -(-chosen.inputs // len(chosen.kinds)), 0
    print(
        f"{'kind':<14}{'inputs':>8}{'read':>8}{'refused':>9}{'else':>6}{'longest, s':>12}{'memory, GB':>12}",
        flush=True,
    )
    for kind in chosen.kinds:
        counts: Counter[str] = Counter()
        longest = memory = 0.0
        seed, last = chosen.seed, chosen.seed + each
        while seed < last:
            for row in follow(kind, seed, last, chosen.keep):
                seed = row["seed"] + 1
                counts[row["outcome"]] += 1
                longest, memory = max(longest, row.get("seconds", 0)), max(memory, row.get("memory", 0))
                if row["outcome"] not in GOOD:
                    print(
                        f"{kind} {row['seed']}: {row['outcome']}: {row['words']}", file=sys.stderr, flush=True
                    )
        other = sum(counts.values()) - counts["read"] - counts["refused"]
        bad += other
        print(
            f"{kind:<14}{each:>8}{counts['read']:>8}{counts['refused']:>9}{other:>6}{longest:>12.2f}{memory:>12.2f}",
            flush=True,
        )
    print(f"{each * len(chosen.kinds)} inputs, {bad} neither read nor refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
