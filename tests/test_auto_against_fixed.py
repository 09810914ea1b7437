"""The benchmark that sets auto beside fixed placements: which rows it compares, and what it says of them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .study.synthetic import SETTINGS, design, rows

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "auto_against_fixed.py"
GRID = '[grid]\nmomentum = ["projector", "layer4:", "all", "stem"]\nseed = [0, 1, 2]\n'
LINEAR = {"layer4:": 53.0, "projector": 52.0, "all": 40.0, "none": 54.0, "stopgrad": 50.0}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, without loading images; auto chooses layer4: but for the projector with seed 1."""
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = importlib.util.spec_from_file_location("auto_against_fixed", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_data", lambda *_: None)
    monkeypatch.setattr(
        module,
        "advise",
        lambda config, _: SimpleNamespace(placement="projector" if config.seed == 1 else "layer4:"),
    )
    return module


def made(folder: Path, grid: str = GRID, settings: str = "") -> list[dict[str, Any]]:
    study = design(folder, grid, settings=SETTINGS + settings)
    return list(
        rows(study, lambda c: LINEAR.get(c.momentum, 0.0) + c.seed * (c.momentum != "projector")).values()
    )


def test_rows_that_differ_in_more_than_the_placement_are_groups_of_their_own(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    found = [*made(tmp_path)]
    for other in ("epochs = 3\n", "limit = 200\n", 'optimizer = "adamw"\nlr = 0.1\n', "decay_end = 1.0\n"):
        found += made(tmp_path, settings=other)
    groups = benchmark.groups(found, 0.99)
    # decay_end is one of momentum: its arms share their controls with those of the first study.
    assert len(groups) == 5
    for group in groups:
        assert set(group.arms) == {"none", "stopgrad", "projector", "layer4:", "all"}
        assert all(len(arm.rows) == 3 for arm in group.arms.values())
    assert len({group.name for group in groups}) == 5


def test_a_seed_that_was_computed_in_two_ways_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    found = made(tmp_path) + made(tmp_path, settings='precision = "bf16"\n')
    with pytest.raises(SystemExit, match=r"two runs of simclr, shapes, .* leave one of the studies out"):
        benchmark.groups(found, 0.99)
    assert len(benchmark.groups(made(tmp_path) * 2, 0.99)) == 1  # the same rows, reused, are no two runs


def test_auto_and_the_projector_stand_beside_the_best_with_what_could_have_been_found(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [group] = benchmark.groups(made(tmp_path), 0.99)
    found = json.loads(json.dumps(benchmark.compare(group, [])))
    best = found["momentum"]
    assert best["best"] == "layer4:"
    # auto - layer4: is 0, 52 - 54 and 0; projector - layer4: is -1, -2, -3. t(0.975, 2) / sqrt(3) is 2.484.
    assert best["auto"]["mean"] == pytest.approx(-2 / 3)
    assert best["auto"]["half_width"] == pytest.approx(2.484 * (4 / 3) ** 0.5, abs=0.001)
    assert best["auto"]["within"]
    assert best["projector"]["mean"] == pytest.approx(-2.0)
    assert best["projector"]["half_width"] == pytest.approx(2.484, abs=0.001)
    assert found["all"]["best"] == "none"
    said = capsys.readouterr().out
    assert (
        "auto - best: -0.67 points, n = 3 of 3: no difference found, half-width of the interval 2.87" in said
    )
    assert (
        "projector - best: -2.00 points, n = 3 of 3: no difference found, half-width of the interval 2.48"
        in said
    )


def test_a_group_without_what_is_needed_is_left_out_and_it_is_said(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [row for row in made(tmp_path) if row["settings"]["momentum"] != "projector"]
    [group] = benchmark.groups(found, 0.99)
    assert benchmark.compare(group, []) is None
    assert "left out, for it needs stopgrad, projector" in capsys.readouterr().out
