"""The plan: which cells share a measurement, and which cannot."""

from pathlib import Path
from typing import Any

import pytest

from tailfin.run.config import Config
from tailfin.study.execution import compute, plan
from tailfin.study.execution.runner import CellFolders

from ..synthetic import COMPUTE, SETTINGS, design

TOLD = {"training": 1.0, "validating": 0.0, "judging": 0.0, "memory": 2**30}


@pytest.mark.parametrize(
    ("grid", "measured"),
    [
        ('precision = ["fp32", "bf16"]', 2),
        ('memory_format = ["contiguous", "channels_last"]', 2),
        ("local_views = [0, 2, 4]", 3),
        ("local_views = [2]\nlocal_size = [8, 16]", 2),
        ('optimizer = ["sgd", "lars", "adamw"]', 3),
        ("gap = [0.0, 0.1]", 2),
        ('monitors = ["none", "probe"]', 2),
        ("decay = [0.9, 0.99]\ncrop_min = [0.1, 0.2]\nwarmup_epochs = [0.0, 1.0]", 1),
        ('momentum = ["all", "auto"]', 3),  # with the controls: auto is measured as all
    ],
)
def test_cells_that_may_differ_in_time_are_measured_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: str, measured: int
) -> None:
    asked: list[Config] = []

    def measure(groups: Any, jobs: int, **_: Any) -> list[dict[str, Any]]:
        found = [config for group in groups for config in group]
        asked.extend(found)
        return [TOLD for _ in found]

    monkeypatch.setattr(compute, "measure", measure)
    text = f"[grid]\n{grid}\nseed = [0, 1]\n"
    text += "" if "momentum" in grid else 'momentum = ["all"]\n'
    study = design(tmp_path, text, settings=SETTINGS + "lr = 0.1\n")
    plan.plan(study.progress({}), {}, CellFolders(tmp_path), {}, 2, COMPUTE, print)
    assert len(asked) == measured
