"""A method in a file of the user's own."""

import re
import runpy
from pathlib import Path

import pytest

from tailfin import cli, methods

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
SMALL = ["--limit", "64", "--epochs", "1", "--batch-size", "16", "--image-size", "16", "--device", "cpu"]


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
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert run("pretrain", *SMALL, "--method", mine, "--momentum", "projector", "--out", out) == 0
    (tmp_path / "run" / "result.json").unlink()  # else there is nothing to go on with
    capsys.readouterr()
    for words in (["pretrain", "--resume", out], ["evaluate", out]):
        monkeypatch.setattr(methods, "_trusted", {})  # another day
        assert run(*words) == 2
        assert f"say so again to run it: --method {mine}" in capsys.readouterr().err
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
