"""The house: which room may import which, as docs/architecture.md tells it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
INSIDE = {"study": ("spec", "execution", "results")}
"""Rooms within a room: `command` is above them, `results` and `execution` stand on `spec`."""


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms_of_the_page() -> list[str]:
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE.read_text(), re.MULTILINE)
    return [name.strip("`/").removesuffix(".py") for row in rows for name in row.split(", ")]


def test_every_room_is_on_the_page_and_no_arrow_goes_up(drawing: ModuleType) -> None:
    found, order = drawing.rooms(), rooms_of_the_page()
    assert sorted(order) == sorted(found)
    up = [(room, other) for room in found for other in found[room] if order.index(other) >= order.index(room)]
    assert up == []
    assert sum(map(len, drawing.floors(found))) == len(found)


@pytest.mark.parametrize(
    ("room", "unknown"),
    [
        ("methods", {"momentum", "views", "training", "compute", "run"}),
        ("momentum", {"methods", "views", "training", "compute", "run"}),
        ("stability", {"training", "methods", "run", "compute"}),
        ("views", {"methods", "momentum", "training"}),
        ("training", {"judging", "measuring", "report", "commands", "cli", "study"}),
        ("commands", {"cli"}),
        ("study", {"cli", "commands"}),
    ],
)
def test_what_a_room_must_not_know(drawing: ModuleType, room: str, unknown: set[str]) -> None:
    assert not drawing.rooms()[room].keys() & unknown


def test_a_study_goes_from_its_file_over_its_runs_to_its_results(drawing: ModuleType) -> None:
    reached: dict[str, set[str]] = {}
    for words, code in drawing.files(None):
        if words[0] == "study" and len(words) > 2:
            others = {each[1] for each in drawing.imported(code) if each[0] == "study" and len(each) > 1}
            reached.setdefault(words[1], set()).update(others - {words[1]})
    assert reached == {"spec": set(), "execution": {"spec"}, "results": {"spec"}}


def test_no_file_is_long_and_no_room_crowded(drawing: ModuleType) -> None:
    held: dict[tuple[str, ...], int] = {}
    for words, code in drawing.files(None):
        assert code.count("\n") <= 350, "/".join(words)
        held[words[:-1]] = held.get(words[:-1], 0) + (words[-1] != "__init__")
    crowded = {"/".join(room) for room, count in held.items() if count > 12}
    assert crowded == {"methods"}  # one file a method


def test_nothing_prints_but_the_command_line(drawing: ModuleType) -> None:
    printing = {
        "/".join(words)
        for words, code in drawing.files(None)
        if re.search(r"^\s*print\(", code, re.MULTILINE) and words[0] != "cli"
    }
    assert printing == set()


def test_a_circle_is_found(drawing: ModuleType) -> None:
    with pytest.raises(ValueError, match="a circle among a, b"):
        drawing.floors({"a": {"b": 1}, "b": {"a": 1}, "c": {}})


def test_the_picture_is_that_of_the_code(drawing: ModuleType) -> None:
    assert (ROOT / "docs" / "architecture.svg").read_text() == drawing.drawn(drawing.rooms())
