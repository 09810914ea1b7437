"""Whatever a reader meets in a file of others is one line with the file's name; a report draws the rest."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_tensors

from tailfin import cli
from tailfin.backbones import encoder_metadata, load_encoder
from tailfin.errors import UserError
from tailfin.files.reading import read_json, read_json_lines, read_text, read_toml
from tailfin.report.study_page import StudyContent, Table
from tailfin.run import checkpoint
from tailfin.run import config as settings
from tailfin.study.execution.compute import Kept
from tailfin.study.results import table
from tailfin.study.results.markdown import render
from tailfin.study.spec.file import read as read_study

from .test_writing import TINY, Run, images, tailfin  # noqa: F401


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("finished") / "run"
    words = [*TINY, "--data", str(images), "--tolerate", "0.1", "--out", str(out), "--judge", "encoder"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", *words, "--epochs", "1"])
    assert not stop.value.code
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def one_line(act: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


READERS: list[Callable[[Path], object]] = [
    read_text,
    read_json,
    read_json_lines,
    read_toml,
    settings.read,
    read_study,
    checkpoint.load,
    load_encoder,
    encoder_metadata,
    lambda path: table.read(path.parent) if path.rename(path.parent / "table.parquet") else None,
    lambda path: Kept.read(path.parent) if path.rename(path.parent / "compute.json") else None,
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_one_line(tmp_path: Path, read, make) -> None:
    make(tmp_path / "file")
    one_line(lambda: read(tmp_path / "file"), str(tmp_path))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b"[" * 100_000, b"\xff\xfe{}", b"{}", b"[1]", b'"a"\n', b"1\n"]
)
def test_odd_content_is_one_line(tmp_path: Path, read, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    caught = None
    try:
        read(tmp_path / "file")
    except UserError as error:
        caught = str(error)
    assert caught is None or ("\n" not in caught and str(tmp_path) in caught)


def test_nested_toml_is_one_line(tmp_path: Path) -> None:
    for name, read in (("s.toml", read_study), ("c.toml", settings.read)):
        (tmp_path / name).write_text("tailfin_study = 1\na = " + "[" * 20_000)
        one_line(lambda read=read, name=name: read(tmp_path / name), name, "not valid TOML")


ABOUT = {"backbone": "resnet10w1", "image_size": 12, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    "about",
    [
        "[" * 50_000,
        "[]",
        "null",
        "{}",
        *(json.dumps({key: value for key, value in ABOUT.items() if key != name}) for name in ABOUT),
        *(
            json.dumps(ABOUT | change)
            for change in (
                {"backbone": 3},
                {"backbone": "resnet10w2"},
                {"backbone": "resnet10w99999999"},
                {"backbone": "no_such"},
                {"image_size": "12"},
                {"image_size": 10**9},
                {"image_size": -1},
                {"channels": 1},
                {"channels": 7},
                {"channels": None},
                {"mean": 0.5},
                {"mean": [0.5]},
                {"mean": ["a", "b", "c"]},
                {"std": [0, 1, 1]},
                {"std": [float("inf")] * 3},
                {"std": None},
            )
        ),
    ],
)
def test_what_an_encoder_file_says_of_itself_is_checked(run: Path, about: str) -> None:
    file = run / "encoder.safetensors"
    save_tensors(load_file(file), file, metadata={"tailfin": about})
    with pytest.raises(UserError) as caught:
        load_encoder(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(12))
def test_weights_that_do_not_fit_an_encoder_file_are_one_line(run: Path, seed: int) -> None:
    file, draws = run / "encoder.safetensors", random.Random(seed)
    tensors = load_file(file)
    name = draws.choice(sorted(tensors))
    if seed % 3 == 0:
        del tensors[name]
    elif seed % 3 == 1:
        tensors[name] = torch.zeros(3, 1, 2)
    else:
        tensors[f"more.{name}"] = torch.zeros(1)
    save_tensors(tensors, file, metadata={"tailfin": json.dumps(ABOUT)})
    one_line(lambda: load_encoder(file), "encoder.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, progress: progress.clear(),
        lambda tensors, progress: progress.update(step="x"),
        lambda tensors, progress: progress.update(step=10**9),
        lambda tensors, progress: progress.update(lengths={"metrics": -1, "timing": 0, "stability": 0}),
        lambda tensors, progress: progress.update(config=[]),
        lambda tensors, progress: progress.update(mean=None),
        lambda tensors, progress: tensors.pop("losses"),
        lambda tensors, progress: tensors.update({"optimizer/0/momentum_buffer": torch.zeros(2, 3)}),
        lambda tensors, progress: tensors.update({"optimizer/x/momentum_buffer": torch.zeros(2)}),
        lambda tensors, progress: tensors.update({"monitored.gradient": torch.zeros(3)}),
        lambda tensors, progress: tensors.pop(next(name for name in tensors if name.startswith("encoder/"))),
    ],
)
def test_a_checkpoint_whose_checksum_is_right_and_whose_content_is_not_is_one_line(
    run: Path,
    change: Callable[[Any, Any], object],
    tailfin: Run,  # noqa: F811
) -> None:
    held = checkpoint.load(run / "checkpoint.safetensors")
    change(held.tensors, held.progress)
    checkpoint.save(run / "checkpoint.safetensors", held.tensors, held.progress)
    (run / "result.json").unlink()
    said = [tailfin(*words) for words in (("pretrain", "--resume", run), ("evaluate", run))]
    assert {code for code, *_ in said} <= {0, 2}
    assert [error.count("\n") for _, _, error in said] == [int(code == 2) for code, *_ in said]
    assert any("checkpoint" in error for *_, error in said)


@pytest.mark.draws
@pytest.mark.parametrize(
    "change",
    [
        {"scores": 3, "parts": [{"name": 1}]},
        {"verdict": "fine", "target_cost": [], "versions": None, "unjudged": 7},
        {"fluctuation": {"stem": None}, "neighbour_names": [["a"]], "seconds": 1e308},
    ],
)
def test_an_odd_result_costs_the_report_no_more_than_what_is_odd(
    run: Path,
    change: dict[str, Any],
    tailfin: Run,  # noqa: F811
) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | change))
    code, out, said = tailfin("report", run)
    assert code == 0, said
    assert out.startswith("report: ")
    assert all(line.startswith("tailfin: not drawn: ") for line in said.splitlines())
    page = (run / "report.html").read_text()
    assert "Training curves" in page
    assert "Settings and command" in page


@pytest.mark.draws
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", b"{"),
        ("result.json", b"\0" * 100),
        ("metrics.jsonl", b'{"step": 1, "loss": 3.0}\nno\n{"step": 2, "loss": 2.0}\n'),
        ("metrics.jsonl", b"\0" * 1000 + b"\n"),
        ("metrics.jsonl", b"\xff\n[1]\n"),
        ("timing.jsonl", b"[" * 50_000 + b"\n"),
        ("stability.jsonl", b"no\n"),
        ("skipped.tsv", b"\xff"),
        ("pictures.safetensors", b"\0" * 99),
    ],
)
def test_a_damaged_file_costs_the_report_its_own_part_and_is_named(
    run: Path,
    name: str,
    content: bytes,
    tailfin: Run,  # noqa: F811
) -> None:
    (run / name).write_bytes(content)
    code, _, said = tailfin("report", run)
    assert code == 0
    assert said.startswith("tailfin: not drawn: ")
    assert name in said
    assert "Not drawn: " in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "pictures",
    [
        {"views": torch.zeros(2, 3)},
        {"views": torch.zeros(2, 3, 3, 8, 8)},
        {"neighbours": torch.zeros(0, 7, 3, 8, 8, dtype=torch.uint8)},
        {"neighbours": torch.zeros(2, 2, 5, 8, 8, dtype=torch.uint8)},
        {"neighbours": torch.zeros(3, 2, 3, 8, 8, dtype=torch.uint8)},
        {"views": torch.zeros(2, 3, 3, 0, 8, dtype=torch.uint8)},
    ],
)
def test_odd_pictures_cost_the_report_their_own_part(run: Path, pictures, tailfin: Run) -> None:  # noqa: F811
    save_tensors(pictures, run / "pictures.safetensors")
    code, _, said = tailfin("report", run)
    assert code == 0, said
    assert "Training curves" in (run / "report.html").read_text()


def test_logs_that_judging_needs_are_not_passed_over(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b"{}\nno\n")
    one_line(
        lambda: read_json_lines(run / "metrics.jsonl"), "metrics.jsonl is damaged", "the first is line 2"
    )


def test_what_a_study_file_says_is_no_markup_in_its_report() -> None:
    hostile = "# a | b\n![x](http://e) <script>\x1b[31m `c`"
    content = StudyContent(
        **{
            **dict.fromkeys(StudyContent.__dataclass_fields__, ()),
            **dict.fromkeys(("title", "question", "status", "command"), hostile),
            "arms": Table((hostile,), [(hostile,)], 1),
            "differences": Table((hostile,), [(hostile,)], 1),
            "choices": None,
        }  # type: ignore[arg-type]
    )
    text = render(content)
    assert "![x]" not in text.split("```")[0]
    assert "<script>" not in text.split("```")[0]
    assert "\x1b" not in text.split("```")[0]
    assert text.startswith(r"# # a \| b !\[x](http://e) &lt;script>\\x1b[31m \`c\`")
