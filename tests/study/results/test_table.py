"""The table: rows survive the disk, other processes and later versions; damage is told."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from tailfin.errors import UserError
from tailfin.study.results import table
from tailfin.study.spec import cells

from ..synthetic import design, result, rows

GRID = '[grid]\nmomentum = ["projector", "none"]\nmethod = ["simclr", "byol"]\nseed = [0, 1]\n'


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out" / "cells").mkdir(parents=True)
    return tmp_path / "out"


def test_rows_survive_the_disk_and_both_files_agree(tmp_path: Path, out: Path) -> None:
    study = design(tmp_path, GRID)
    made = rows(study, lambda c: 50 + c.seed + 0.1234567, lambda c, part: 0.1 + part)
    table.add(out, made)
    back = table.read(out)
    assert back.keys() == made.keys()
    for key, row in made.items():
        assert {name: back[key][name] for name in row} == row
    with (out / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    columns = parquet.read_table(out / "table.parquet").to_pydict()
    assert list(columns) == list(read[0])
    assert columns["linear"] == [float(row["linear"]) for row in read]
    assert [json.loads(each)["seed"] for each in columns["settings"]] == columns["seed"]
    # What differs has a column, what does not is in `settings` alone.
    assert {"data", "method", "momentum", "lr", "weight_decay"} < set(columns)
    assert not {"epochs", "batch_size", "precision"} & set(columns)
    assert {"fluctuation_variation.stem", "fluctuation_jump.projector"} < set(columns)
    none = columns["momentum"].index("none")
    assert columns["knn_momentum"][none] is None
    assert columns["knn_momentum"][columns["momentum"].index("projector")] == pytest.approx(49.123457)


def test_rows_are_added_to_those_that_others_wrote(tmp_path: Path, out: Path) -> None:
    made = rows(design(tmp_path, GRID), lambda c: 50.0)
    first, *others = made
    table.add(out, {first: made[first]})
    assert table.add(out, {key: made[key] for key in others}).keys() == made.keys()
    assert not list(out.glob(".table*"))


def test_a_column_appears_when_rows_begin_to_differ(tmp_path: Path, out: Path) -> None:
    table.add(out, rows(design(tmp_path, '[grid]\nmomentum = ["all"]\n'), lambda c: 50.0))
    assert "epochs" not in parquet.read_table(out / "table.parquet").column_names
    table.add(out, rows(design(tmp_path, '[grid]\nmomentum = ["all"]\nepochs = [3]\n'), lambda c: 50.0))
    assert sorted(parquet.read_table(out / "table.parquet")["epochs"].to_pylist()) == [3, 8]


def test_a_row_without_judgement(tmp_path: Path) -> None:
    cell = design(tmp_path, GRID).progress({}).cells[0]
    found = result(cell, 1.0) | {
        "knn": None,
        "linear": None,
        "scores": {},
        "untrained": None,
        "validation_knn": None,
    }
    row = table.row(cell, found)
    assert (row["knn"], row["linear_untrained"], row["linear_momentum"]) == (None, None, None)


def test_a_table_of_another_version_keeps_its_rows(tmp_path: Path, out: Path) -> None:
    made = rows(design(tmp_path, GRID), lambda c: 50.0)
    for row in made.values():
        row["settings"].pop("monitors")  # written before the setting existed
    old = {f"old{place}": {**row, "fingerprint": f"old{place}"} for place, row in enumerate(made.values())}
    table.add(out, old)
    assert table.read(out).keys() == made.keys()
    odd = {"odd": {**next(iter(made.values())), "fingerprint": "odd", "settings": {"format": 0, "seed": 0}}}
    assert "odd" in table.add(out, odd)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense"])
def test_a_damaged_table_is_told(out: Path, content: bytes) -> None:
    (out / "table.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"table\.parquet is damaged"):
        table.read(out)


def test_a_table_of_something_else_is_told(out: Path) -> None:
    import pyarrow

    parquet.write_table(pyarrow.table({"a": [1]}), out / "table.parquet")
    with pytest.raises(UserError, match="damaged or no table of a study"):
        table.read(out)


def test_no_table_is_no_rows(out: Path) -> None:
    assert table.read(out) == {}


def test_settings_are_what_the_fingerprint_is_of(tmp_path: Path) -> None:
    made = rows(design(tmp_path, GRID), lambda c: 50.0)
    for key, row in made.items():
        config = cells.from_settings(row["settings"])
        assert config is not None
        assert cells.fingerprint(config) == key


def test_a_row_is_found_again_whichever_way_its_numbers_are_written(tmp_path: Path) -> None:
    # The recipes' warm-up of long runs is a whole number.
    study = design(tmp_path, '[grid]\nmomentum = ["all"]\nepochs = [200]\n')
    [cell, *_] = study.progress({}).cells
    (tmp_path / "cells").mkdir()
    found = table.add(tmp_path, {cell.fingerprint: table.row(cell, result(cell, 50.0))})
    assert set(found) == {cell.fingerprint} == set(table.read(tmp_path))


def test_a_run_by_an_older_rule_of_auto_keeps_its_row_and_is_no_cell_of_today(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = design(tmp_path, '[grid]\nmomentum = ["auto"]\n')
    [old] = made = rows(study, lambda c: 50.0)
    table.add(out, made)
    assert set(table.read(out)) == {old}
    monkeypatch.setattr(cells, "RULE", cells.RULE + 1)
    assert set(table.read(out)) == {old}
    assert [cell.fingerprint for cell in study.progress(table.read(out)).cells] != [old]
