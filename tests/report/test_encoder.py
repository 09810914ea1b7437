from dataclasses import replace

import pytest

from tailfin.report.content import PartRow
from tailfin.report.encoder import MOST_COLUMNS, cost_in_words, picture
from tailfin.report.words import share

from .document import read


def test_cost_is_the_sum_from_the_fork_on(parts: list[PartRow]) -> None:
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert cost_in_words(parts) == (
        "The target path repeats 47.0 % of the forward computation: it forks at layer2, and what lies before is "
        "computed once for both branches."
    )


def test_cost_of_no_and_of_the_whole_target_path(parts: list[PartRow]) -> None:
    assert "nothing is computed twice" in cost_in_words(
        [replace(part, on_target_path=False) for part in parts]
    )
    whole = cost_in_words([replace(part, on_target_path=True) for part in parts])
    assert "repeats 100.0 %" in whole
    assert "the whole encoder runs twice" in whole


def test_boxes_of_both_branches(parts: list[PartRow]) -> None:
    columns = read(picture(parts)).all(kind="part")[1:]
    drawn = [(each.all(kind="name")[0].text(), each.all(kind="box")[1].text()) for each in columns]
    assert drawn == [
        ("stem", "shared"),
        ("layer1", "shared"),
        ("layer2", "momentum"),
        ("norm", "online"),
        ("projector", "momentum"),
    ]
    assert [each.all(kind="value")[0].text() for each in columns] == [
        "3.0 %",
        "50.0 %",
        "40.0 %",
        "< 0.1 %",
        "7.0 %",
    ]


def test_bars_are_proportional_to_the_shares(parts: list[PartRow]) -> None:
    columns = read(picture(parts)).all(kind="part")[1:]
    levels = [float(each.attributes["style"].removeprefix("--level:")) for each in columns]
    assert [level * 0.5 for level in levels] == pytest.approx([part.share for part in parts], abs=1e-4)


def test_the_fork_is_marked_once_and_first(parts: list[PartRow]) -> None:
    document = read(picture(parts))
    assert [each.all(kind="name")[0].text() for each in document.all(kind="forks")] == ["layer2"]
    none = [replace(part, on_target_path=False, momentum=False) for part in parts]
    assert not read(picture(none)).all(kind="forks")


def test_words_of_the_picture(parts: list[PartRow]) -> None:
    said = read(picture(parts)).all(kind="parts")[0].attributes["aria-label"]
    for part in parts:
        assert f"{part.name} {share(part.share)}" in said
    assert said.count("momentum weights on the target path") == 2


def test_many_parts_become_rows(parts: list[PartRow]) -> None:
    few = [replace(parts[0], name=str(index)) for index in range(MOST_COLUMNS)]
    assert not read(picture(few)).all(kind="many")
    assert read(picture([*few, parts[-1]])).all(kind="many")
