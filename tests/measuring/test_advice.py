"""The advice: the tail that holds off most of the output's movement for its cost, and runs that follow it."""

import json
from pathlib import Path

import pytest

from tailfin.cli import main
from tailfin.measuring.advice import choose

FLOPS = {"stem": 10, "layer1": 40, "layer4": 40, "projector": 10}


@pytest.mark.parametrize(
    ("held_off", "placement", "cost"),
    [
        ((1.0, 0.7, 0.5, 0.4), "projector", 0.1),
        ((1.0, 0.9, 0.85, 0.2), "layer4:", 0.5),
        ((1.0, 0.95, 0.3, 0.0), "layer1:", 0.9),
        ((1.0, 0.6, 0.6, 0.6), "projector", 0.1),
    ],
)
def test_the_tail_that_gains_most_over_its_cost(
    held_off: tuple[float, ...], placement: str, cost: float
) -> None:
    advice = choose(dict(zip(FLOPS, held_off, strict=True)), dict.fromkeys(FLOPS), FLOPS, 50)
    assert advice.placement == placement
    assert advice.cost == pytest.approx(cost)
    assert [part.cost for part in advice.parts] == pytest.approx([1.0, 0.9, 0.5, 0.1])
    assert f"at {100 * cost:.1f} % of a forward. No tail has a larger difference" in advice.words


def test_the_next_larger_tail_is_named_with_what_it_would_add() -> None:
    advice = choose(dict(zip(FLOPS, (1.0, 0.7, 0.5, 0.4), strict=True)), dict.fromkeys(FLOPS), FLOPS, 50)
    assert advice.words.endswith("the next larger tail, layer4:, kept 50 % away at 50.0 %.")


@pytest.mark.parametrize("held_off", [(1.0, 0.8, 0.2, 0.05), (1.0, -0.2, -0.4, -0.1), ()])
def test_the_cheapest_tail_where_none_is_worth_its_cost(held_off: tuple[float, ...]) -> None:
    advice = choose(dict(zip(FLOPS, held_off, strict=False)), dict.fromkeys(FLOPS), FLOPS, 50)
    assert advice.placement == "projector"
    assert "no tail keeps away a larger share than it costs" in advice.words


SMALL = (
    "--limit 240 --batch-size 24 --backbone resnet10w2 --image-size 12 --precision fp32 --epochs 5".split()
)
SMALL += "--memory-format contiguous --judge nothing --knn-evaluations 0".split()


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_a_run_with_auto_equals_a_run_with_the_placement_that_it_chose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pretrain", *SMALL, "--momentum", "auto", "--out", str(tmp_path / "auto")) == 0
    advice = json.loads((tmp_path / "auto" / "advice.json").read_text())
    assert f"advice: --momentum {advice['placement']}" in capsys.readouterr().out
    chosen = advice["placement"]
    assert run("pretrain", *SMALL, "--momentum", chosen, "--out", str(tmp_path / "fixed")) == 0
    for name in ("metrics.jsonl", "stability.jsonl", "encoder.safetensors"):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "fixed" / name).read_bytes(), name


def test_a_run_too_short_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    short = [*SMALL, "--limit", "48", "--epochs", "1"]
    assert run("advise", *short) == 2
    assert "the run has 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--momentum", "layer3:"), ("--out", "somewhere")])
def test_what_advise_could_only_ignore_is_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("advise", *SMALL, *words) == 2
    assert f"leave out {words[0]} {words[1]}" in capsys.readouterr().err


def test_a_gap_loss_needs_momentum_that_the_phase_does_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", *SMALL, "--gap", "0.1") == 0
    assert "advice: --momentum" in capsys.readouterr().out


def test_advise_prints_a_row_a_part_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("advise", *SMALL, "--method", "byol") == 0
    out = capsys.readouterr().out
    for part in ("stem", "layer1", "layer2", "layer3", "layer4", "projector"):
        assert any(line.startswith(part) and "%" in line for line in out.splitlines())
    assert "advice: --momentum" in out
    assert list(tmp_path.iterdir()) == []
