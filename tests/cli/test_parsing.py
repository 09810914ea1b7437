"""From words to options: what argparse tells apart, and what is made of it here."""

import dataclasses
from typing import Any

import pytest

from tailfin.cli import options
from tailfin.cli.parsing import given, parse
from tailfin.errors import UserError
from tailfin.run.config import Config


def typed(words: str, kind: type = options.Pretrain) -> dict[str, Any]:
    return given(kind, words.split(), "pretrain", "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", {}),
        ("--lr 0.5 --epochs 3", {"lr": 0.5, "epochs": 3}),
        ("--lr=0.5 --batch_size=4", {"lr": 0.5, "batch_size": 4}),
        ("--lr 1 --lr 2", {"lr": 2.0}),
        ("--lr -1e-3 --seed -4", {"lr": -1e-3, "seed": -4}),
        ("--through --no-compile", {"through": True, "compile": False}),
        ("--data a=b --out --lr=2", None),
        ("--data a=b_c", {"data": "a=b_c"}),
        (
            "--method-options temperature 0.2 hidden 64",
            {"method_options": {"temperature": 0.2, "hidden": 64.0}},
        ),
        ("--method-options a -1e-3", None),
        ("--optimizer adamw --precision bf16", {"optimizer": "adamw", "precision": "bf16"}),
        ("--resume runs/x", {"resume": "runs/x"}),
    ],
)
def test_what_is_typed_is_what_is_given_and_nothing_else(words: str, found: dict[str, Any] | None) -> None:
    if found is None:
        with pytest.raises(UserError, match=r"--out needs a value|Unrecognized options: -1e-3"):
            typed(words)
    else:
        assert typed(words) == found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("a.toml", options.Study("a.toml")),
        (
            "a.toml --data x y=z --jobs 2 --plan",
            options.Study("a.toml", data=("x", "y=z"), jobs=2, plan=True),
        ),
        ("--seeds 3 a.toml", options.Study("a.toml", seeds=3)),
    ],
)
def test_what_has_no_name_may_stand_before_and_behind(words: str, found: options.Study) -> None:
    assert parse(options.Study, words.split(), "study", "") == found


@pytest.mark.parametrize(
    "kind", [options.Pretrain, options.Evaluate, options.Study, options.List, options.Cache]
)
def test_help_has_every_option_with_its_text(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        given(kind, ["--help"], "name", "What it does: 100 %.\n\nexamples:\n  tailfin name")
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "What it does: 100 %.\n\nexamples:\n  tailfin name\n" in said
    for each in dataclasses.fields(kind):
        name = each.name if each.metadata.get("positional") else "--" + each.name.replace("_", "-")
        assert name in said or name.upper() in said or "{" in said
    words = " ".join(said.split())
    assert words.count(". ") + words.count(".") > len(dataclasses.fields(kind))


def test_every_setting_has_a_text_and_a_type_that_words_can_have() -> None:
    for each in dataclasses.fields(Config):
        if each.default is False:
            assert typed(f"--{each.name}") == {each.name: True}
        elif each.name != "method_options":
            with pytest.raises(UserError, match="needs a value"):
                typed(f"--{each.name}")
