"""Which runs were computed with what."""

from pathlib import Path

import pytest

from tailfin.study.results import origins, summary
from tailfin.study.spec.design import Design, Row

from ..synthetic import design, rows

GRID = '[grid]\nmethod = ["simclr", "byol"]\nmomentum = ["stopgrad", "layer4:", "all"]\nseed = [0, 1, 2]\n'
OLD, NEW = "tailfin 0.1.0, torch 2.14.0", "tailfin 0.1.0, source 1a2b3c4d, torch 2.14.1"


@pytest.fixture
def study(tmp_path: Path) -> Design:
    return design(tmp_path, GRID)


def mixed(study: Design) -> dict[str, Row]:
    """All of BYOL's stopgrad and layer4:, and two seeds of SimCLR's all, by the new code."""
    made = rows(study, lambda c: 50.0)
    for row in made.values():
        method, momentum = (row["settings"][key] for key in ("method", "momentum"))
        new = (method, momentum) in (("byol", "stopgrad"), ("byol", "layer4:"))
        new |= (method, momentum) == ("simclr", "all") and row["seed"] != 1
        row["versions"] = NEW if new else OLD
    return made


def test_the_report_says_how_many_runs_and_which_have_the_rarer_versions(study: Design) -> None:
    made = mixed(study)
    found = summary.content(study, study.progress(made), made, [], "tailfin study x").versions
    # 3 arms of BYOL and, with the control none, 4 of SimCLR, of 3 seeds each.
    assert found == [
        ("computed with", f"{OLD}: 13 runs"),
        ("computed with", f"{NEW}: 8 runs, simclr all (seed 0, 2); byol stopgrad, layer4:"),
        ("device", "CPU: 21 runs"),
    ]


def test_one_version_is_one_line(study: Design) -> None:
    made = rows(study, lambda c: 50.0)
    found = summary.content(study, study.progress(made), made, [], "tailfin study x").versions
    assert found == [("computed with", "torch 2: 21 runs"), ("device", "CPU: 21 runs")]


def test_runs_of_a_selection_are_counted(tmp_path: Path) -> None:
    study = design(tmp_path, GRID + '[select]\nsetting = "decay"\nvalues = [0.9, 0.99]\nseeds = [7]\n')
    made = rows(study, lambda c: 50.0)
    for row in made.values():
        row["versions"] = NEW if row["stage"] == "selection" else OLD
    found = summary.content(study, study.progress(made), made, [], "tailfin study x").versions
    # Two placements of two methods at two decays.
    assert found[1] == ("computed with", f"{NEW}: 8 runs, 8 of the selection")


def test_what_the_next_cells_will_be_computed_with_is_told_where_it_is_another(study: Design) -> None:
    made = list(mixed(study).values())
    now = dict(each.split(" ") for each in NEW.split(", "))
    assert origins.other_than(now, made) == (
        "finished cells were not computed with what the next ones will be: source not recorded in 13, "
        "now 1a2b3c4d; torch 2.14.0 in 13, now 2.14.1"
    )
    assert origins.other_than(now, [row for row in made if row["versions"] == NEW]) is None
    assert origins.other_than(now, []) is None
