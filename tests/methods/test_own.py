"""A method in a file of the user's own."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tailfin import cli, methods
from tailfin.commands import pretrain
from tailfin.errors import UserError
from tailfin.run.config import Config
from tailfin.study.execution import compute, probe, runner
from tailfin.training.model import make_method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
SMALL = (
    "--limit 64 --epochs 1 --batch-size 16 --image-size 16 --backbone resnet10w2 --precision fp32 "
    "--memory-format contiguous --device cpu"
).split()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    return int(stop.value.code or 0)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    [code] = re.findall(r"```python\n(# mine\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 45
    (tmp_path / "mine.py").write_text(code)
    return f"{tmp_path / 'mine.py'}:Spread"


def test_the_page_is_what_the_methods_say() -> None:
    made = runpy.run_path(str(PAGE.with_name("make_methods.py")))["made"]
    assert PAGE.read_text() == made(PAGE.read_text()), "run: python docs/make_methods.py"
    for name in methods.names():
        assert f"`--method {name}`" in PAGE.read_text()


def test_the_one_in_the_docs_trains_and_runs_again_only_if_named_again(
    mine: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "run")
    words = ["--data", str(photos), "--method", mine, "--momentum", "projector", "--out", out]
    assert run("pretrain", *SMALL, *words) == 0
    (tmp_path / "run" / "result.json").unlink()  # else there is nothing to go on with
    capsys.readouterr()
    for words in (["pretrain", "--resume", out], ["evaluate", out]):
        monkeypatch.setattr(methods, "_trusted", {})  # another day
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert (
            "this run's method is in a file of yours; its code runs only if you name it: add --method"
            in error
        )
        assert error.rstrip().endswith(mine)
        assert run(*words, "--method", mine) == 0


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "mine.py:Mine", "there is no file"),
        ("x = (", "mine.py:Mine", "SyntaxError"),
        ("raise ValueError('no')", "mine.py:Mine", "ValueError: no"),
        (
            "from tailfin.methods.base import Method\nclass Mine(Method): pass",
            "mine.py:Mien",
            "did you mean 'Mine'",
        ),
        (
            "from tailfin.methods.base import Method\nclass Mine(Method): pass",
            "mine.py:Mine",
            "has no recipe",
        ),
        ("", "mine.py", "name the class too: "),
        ("", "mine.py:", "mine.py:CLASS"),
    ],
)
def test_a_file_that_is_no_method_is_one_line(
    code: str | None, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    assert run("pretrain", "--method", str(tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'optimizer="sgd"',
            'optimizer="adam"',
            "Spread's recipe: unknown optimizer 'adam'; allowed: sgd, lars, adamw; did you mean 'adamw'?",
        ),
        ("lr=0.3", 'lr="0.3"', "Spread's recipe has lr '0.3'; it must be of type float"),
        ('views="simclr"', 'views="simclrr"', "allowed: simclr, byol, mocov2, ressl; did you mean 'simclr'?"),
        ("    recipe = Recipe(", "    large = Recipe(", "Spread has no recipe"),
        ("    stop_gradient = False", "    stop = False", "Spread has no stop_gradient = True or False"),
        ("stop_gradient = False", 'stop_gradient = "no"', "Spread has no stop_gradient = True or False"),
        ("def loss(self", "def los(self", "Spread has no loss; define loss(self, online, target)"),
        ("weight: float = 1.0", "weight: float", "weight of its constructor needs a default"),
        ("hidden: int | None = None, out:", "width: int | None = None, out:", "cannot be made: "),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "bench"])
def test_what_a_method_lacks_is_told_before_any_image_is_read(
    command: str,
    old: str,
    new: str,
    message: str,
    mine: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretrain, "load_data", pytest.fail)
    file = Path(mine.rpartition(":")[0])
    code = file.read_text().replace("super().__init__(hidden, out)", "super().__init__(None, out)")
    assert old in code
    file.write_text(code.replace(old, new))
    assert run(command, *SMALL, "--method", mine) == 2
    said, error = capsys.readouterr()
    assert message in error
    assert (said, error.count("\n")) == ("", 1)


def test_a_constructor_may_pass_further_arguments_on_and_its_own_mistakes_keep_their_line(mine: str) -> None:
    file = Path(mine.rpartition(":")[0])
    code = file.read_text()
    head = next(line for line in code.splitlines() if "def __init__" in line)
    file.write_text(code.replace(head, head.replace(") -> None", ", **more: float) -> None")))
    cls = methods.load(methods.trust(mine))
    method = make_method(cls, Config(method=mine, method_options={"weight": 2.0}), features=8, images=64)
    assert (method.hidden, method.weight) == (32, 2.0)
    monster = type("Monster", (cls,), {"__init__": lambda self, hidden=None, out=None: len(3)})
    with pytest.raises(TypeError, match="has no len"):
        make_method(monster, Config(method=mine), features=8, images=64)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("torch.stack(total)", "floating-point scalar, got torch.float32 of shape [2]"),
        ("torch.stack(total).mean().long()", "floating-point scalar, got torch.int64 of shape []"),
        ("1.0", "floating-point scalar, got float"),
        ("total[0].detach()", "no gradient comes from loss"),
    ],
)
def test_a_loss_that_is_none_is_one_line(
    end: str, message: str, mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(mine.rpartition(":")[0])
    code = file.read_text()
    assert "sum(total[1:], total[0]) / len(total)" in code
    file.write_text("import torch\n" + code.replace("sum(total[1:], total[0]) / len(total)", end))
    assert run("pretrain", *SMALL, "--method", mine, "--out", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_measures_the_cells_of_a_study_runs_the_methods_that_it_is_given_and_no_other(
    mine: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        """The process of the probe, in this one."""

        returncode = 0

        def __init__(self, words: list[str], **_: object) -> None:
            monkeypatch.setattr(methods, "_trusted", {})
            place = words.index("tailfin.study.execution.probe")
            asked, told, *own = words[place + 1 :]
            probe.main(Path(asked), Path(told), own if named else [])

        def communicate(self) -> tuple[str, str]:
            return "", ""

    monkeypatch.setattr(compute.subprocess, "Popen", Here)
    small = Config(
        data=str(photos), batch_size=8, image_size=16, backbone="resnet10w2", precision="fp32",
        memory_format="contiguous", device="cpu", method=methods.trust(mine),
    )  # fmt: skip
    named = True
    [told] = compute.measure([[small]], 1, steps=1, judging=False, say=print)
    assert told["training"] > 0
    named = False
    with pytest.raises(UserError, match="its code runs only if you name it"):
        compute.measure([[small]], 1, steps=1, judging=False, say=print)


LOADING = """
import sys
from pathlib import Path
from tailfin import methods
from tailfin.run.config import read
methods.trust(sys.argv[sys.argv.index("--method") + 1])
config = Path(sys.argv[2]) / "config.toml" if sys.argv[1] == "--resume" else Path(sys.argv[2])
sys.exit(f"loaded {methods.load(read(config).method).__name__} {sys.argv[1]}")
"""


def test_the_cells_of_a_study_load_it_if_it_is_named(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-c", LOADING))
    (tmp_path / "s.toml").write_text(
        'tailfin_study = 1\ntitle = "T"\nquestion = "Q?"\n[settings]\nmethod = "mine.py:Spread"\n'
        'backbone = "resnet10w2"\nprecision = "fp32"\nmemory_format = "contiguous"\ndevice = "cpu"\n'
        '[grid]\nmomentum = ["none"]\n[control]\nmomentum = "none"\n'
    )
    assert run("study", "s.toml") == 2
    assert "its code runs only if you name it: add --method mine.py:Spread" in capsys.readouterr().err
    assert run("study", "s.toml", "--method", "simclr") == 2
    assert "the study file says which methods run" in capsys.readouterr().err
    for how in ("--config", "--resume"):  # begun, and then interrupted
        assert run("study", "s.toml", "--method", mine, "--jobs", "1") == 1
        said = capsys.readouterr().out
        assert re.search(rf"failed: mine\.py_Spread-none-seed0: loaded Spread {how};", said)
        [folder] = (tmp_path / "results" / "s" / "cells").glob("mine*")
        shutil.copy(folder / "asked.toml", folder / "config.toml")
    assert f"tailfin study s.toml --method {mine}" in (tmp_path / "results" / "s" / "report.md").read_text()
