"""The study file: what is read, and one line with file, line number and key for everything else."""

import re
from pathlib import Path

import pytest

from tailfin.errors import UserError
from tailfin.study.spec import file, lines
from tailfin.study.spec.design import Design

from ..synthetic import COMPUTE, HEAD

GRID = '\n[grid]\nmomentum = ["all", "none"]\nseed = [0, 1]\n'
SELECT = '\n[select]\nsetting = "decay"\nvalues = [0.9, 0.99]\nseeds = [9]\n'


def read(folder: Path, text: str) -> Design:
    path = folder / "s.toml"
    path.write_text(text, encoding="utf-8")
    return Design(file.read(path), COMPUTE)


def test_a_whole_file(tmp_path: Path) -> None:
    text = (
        HEAD
        + '[settings]\nepochs = 3\n\n[[grid]]\nmethod = ["simclr"]\n[[grid]]\nmethod = ["byol"]\nlr = [1, 0.5]\n'
        + '[control]\nmomentum = "stopgrad"\n'
        + SELECT
        + "common = 0.99\n"
    )
    (tmp_path / "s.toml").write_text(text)
    found = file.read(tmp_path / "s.toml")
    assert (found.title, found.question) == ("A title", "A question?")
    assert found.settings == {"epochs": 3}
    assert found.grids == [{"method": ["simclr"]}, {"method": ["byol"], "lr": [1, 0.5]}]
    assert found.controls == [{"momentum": "stopgrad"}]
    assert found.select == file.Select("decay", (0.9, 0.99), (9,), 0.99)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: a study begins with tailfin_study = 1, this one with nothing"),
        (
            'title = "x"\ntailfin_study = 1\n',
            "line 1: a study begins with tailfin_study = 1, this one with title",
        ),
        ("tailfin_study = 2\n", "line 1: tailfin_study is 2; this version of tailfin reads format 1"),
        ("tailfin_study = 1\ntitle = \n", "not valid TOML: Invalid value .at line 2"),
        ('tailfin_study = 1\ntitle = "a"\n', "line 1: question must be a text, got None"),
        ("tailfin_study = 1\ntitle = 3\n", "line 2: title must be a text, got 3"),
        (HEAD + 'grids = "x"\n' + GRID, "unknown key 'grids' in .*, line 4; allowed: .*did you mean 'grid'"),
        (HEAD + GRID + "[gird]\nseed = [1]\n", r"unknown key 'gird' in .*, line 8, \[gird\]; .*mean 'grid'"),
        (HEAD, r"no \[grid\]"),
        (HEAD + "grid = 3\n", "line 4: grid must be a table"),
        (HEAD + "[grid]\n", "line 4, .grid.: the grid is empty"),
        (HEAD + "[grid]\nseed = []\n", "line 5, .grid.: seed is an empty list"),
        (
            HEAD + "[grid]\nseed = 3\n",
            r"line 5, .grid.: seed must be a list with at least one value, such as \[3\]",
        ),
        (HEAD + "[grid]\nseed = [0, 1, 0]\n", "line 5, .grid.: seed holds 0 twice"),
        (
            HEAD + "[settings]\nepoch = 3\n" + GRID,
            "unknown setting 'epoch' in .*s.toml, line 5, .settings.; allowed: .*did you mean 'epochs'",
        ),
        (
            HEAD + "[settings]\nepochs = 2.5\n" + GRID,
            "'epochs' in .*, line 5, .settings. is 2.5; .* type int",
        ),
        (
            HEAD + "[settings]\nepochs = 0\n" + GRID,
            "line 5, .settings.: --epochs is 0; it must be at least 1",
        ),
        (
            HEAD + "[settings]\nwarmup_epochs = 9\n" + GRID,
            "line 5, .settings.: --warmup-epochs 9.0 is longer than",
        ),
        (HEAD + "[settings]\nbatch_size = 9\naccumulate = 2\n" + GRID, "--batch-size 9 is no multiple"),
        (HEAD + '[settings]\nout = "x"\n' + GRID, "line 5, .settings.: out is given by the study"),
        (
            HEAD + '[settings]\ndevice = "gpu"\n' + GRID,
            "line 5, .settings.: device is 'gpu'; allowed: auto, cpu",
        ),
        (HEAD + '[grid]\ndevice = ["cpu"]\n', "line 5, .grid.: device does not belong in a grid"),
        (HEAD + "[grid]\nworkers = [1]\n", "line 5, .grid.: workers does not belong in a grid"),
        (
            HEAD + '[grid]\nmethod = ["simclr", "bylo"]\n',
            "line 5, .grid.: unknown method 'bylo'.*mean 'byol'",
        ),
        (
            HEAD + '[grid]\nmethod = ["simclr", 3]\n',
            "'method' in .*, line 5, .grid. is 3; it must be of type str",
        ),
        (HEAD + '[grid]\nseed = [1]\nmomentum = ["layer9:"]\n', "line 6, .grid.: unknown part 'layer9'"),
        (
            HEAD + '[settings]\nbackbone = "resnet19"\n' + GRID,
            "line 5, .settings.: unknown backbone 'resnet19'.*nearest",
        ),
        (
            HEAD + '[grid]\nthrough = [true]\nmomentum = ["all"]\n',
            "line 5, .grid.: --through needs parts before .*--momentum all has none",
        ),
        (
            HEAD + "[grid]\nmethod_options = [{ temprature = 1 }]\n",
            "line 5, .grid.: unknown method option 'temprature'.*did you mean 'temperature'",
        ),
        (
            HEAD + '[settings]\noptimizer = "adamw"\n' + GRID,
            "line 5, .settings.: --optimizer adamw .*give --lr",
        ),
        (HEAD + '[settings]\nmonitors = "gradent"\n' + GRID, "line 5, .settings.: unknown monitor 'gradent'"),
        (
            HEAD + '[[grid]]\nmomentum = ["all"]\n\n[[grid]]\nmomentum = ["none", "all"]\n',
            r"line 7, .grid.: the cell {.momentum.: .all.} is in an earlier grid already, .*line 4",
        ),
        (
            HEAD + GRID + "[control]\nseed = 3\n",
            r"line 9, .control.: a control holds settings other than the seed",
        ),
        (HEAD + GRID + "[[control]]\nmometum = 3\n", "unknown setting 'mometum' in .*, line 9, .control."),
        (
            HEAD + GRID + '[control]\nmomentum = "layer7"\n',
            "line 9, .control.: unknown part 'layer7' in placement 'layer7'",
        ),
        (HEAD + GRID + SELECT.replace("setting", "setings"), "unknown key 'setings' in .*line 10, .select."),
        (
            HEAD + GRID + SELECT.replace("decay", "dekay"),
            "unknown setting to select 'dekay'.*line 10.*'decay'",
        ),
        (
            HEAD + GRID + SELECT.replace("[9]", "[0]"),
            "line 12, .select.: seed 0 is also one of the final runs",
        ),
        (HEAD + GRID + SELECT.replace("[0.9, 0.99]", "[]"), "line 11, .select.: values must be a list"),
        (HEAD + GRID + SELECT.replace("0.99]", "1.5]"), r"line 11, .select.: --decay is 1.5; it must lie in"),
        (HEAD + GRID + SELECT.replace("seeds = [9]", ""), "line 9, .select.: seeds is missing"),
        (HEAD + GRID + SELECT + "common = 0.5\n", "unknown value of common '0.5' in .*line 13"),
        (
            HEAD + "[settings]\ndecay = 0.9\n" + GRID + SELECT,
            "line 12, .select.: decay is chosen here, so it cannot be set elsewhere",
        ),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert re.search(message, str(error.value)), str(error.value)
    assert str(tmp_path / "s.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_bounds_that_another_setting_moves_are_no_errors(tmp_path: Path) -> None:
    text = HEAD + "[settings]\nwarmup_epochs = 10\nepochs = 20\nbatch_size = 9\naccumulate = 3\n" + GRID
    assert read(tmp_path, text).variants[0].warmup_epochs == 10


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        file.read(tmp_path / "none.toml")


def test_lines_are_found_past_comments_long_strings_and_tables() -> None:
    text = (
        'a = 1\nq = """\nseed = 3\n[grid]\n"""  # seed = 4\n# seed = 5\n[settings]\nseed = 6\n'
        '[[grid]]  # the first\n"seed" = [\n  7,\n]\n[[grid]]\nseed = [8]\nother.seed = 9\n'
    )
    assert lines.find(text, "a") == 1
    assert lines.find(text, "seed", "settings") == 8
    assert lines.find(text, "", "grid", 0) == 9
    assert lines.find(text, "seed", "grid", 0) == 10
    assert lines.find(text, "seed", "grid", 1) == 14
    assert lines.find(text, "momentum", "grid", 1) == 13
    assert lines.find(text, "momentum", "nowhere") == 1
    assert lines.find("x = 1\ngrid = { seed = [1] }\n", "seed", "grid") == 2
