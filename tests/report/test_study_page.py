"""The page of a study: whole, readable by anyone, and true to its content."""

import re
from dataclasses import replace

import pytest

from tailfin.report import study_plots
from tailfin.report.study_page import ClaimSection, StudyContent, Table, render
from tailfin.report.study_plots import Point, Series, intervals, profile, scatter
from tailfin.study.results import markdown

from .document import Element, read

SERIES = [
    Series("simclr", [Point("none", 50.0, 49.0, 51.0), Point("all", 52.0, 50.5, 53.5)]),
    Series("byol <b>", [Point("all", 51.0, None, None)]),
]


@pytest.fixture
def content() -> StudyContent:
    plot = intervals(
        "accuracies", SERIES, axis="accuracy (%)", caption="Accuracy & more.", lines=[(50, "half")]
    )
    unjudged = [(["simclr"], "not tested", "no record", ())]
    claims = [
        ClaimSection(
            "C1",
            "Momentum <improves> it.",
            "Supported where it does.",
            "no difference found",
            "of 2 comparisons: none",
            [
                (["simclr"], "supported", "higher", ("all - none: +2.00",)),
                (["byol"], "not supported", "lower", ()),
            ],
            plot,
        ),
        ClaimSection("C2", "Stability.", "A rule.", "not tested", "no record", unjudged, None),
    ]
    return StudyContent(
        title="A & B",
        question="Is <it> so?",
        status="3 of 4 cells are finished",
        claims=claims,
        arms=Table(("what", "placement", "n", "linear, %"), [("simclr", "all", "2", "52.00")], 2, "A note."),
        differences=Table(("what", "n"), [], 1, "No arm has a control."),
        choices=None,
        notes=["added the controls"],
        failures=[("simclr-none-seed3", "the loss is nan")],
        settings=[("epochs", "6")],
        versions=[("device", "CPU")],
        command="tailfin study s.toml",
    )


def section(page: Element, key: str) -> Element:
    return next(each for each in page.all("section") if each.attributes["id"] == key)


def test_the_page_is_well_formed_and_needs_nothing_else(content: StudyContent) -> None:
    text = render(content)
    page = read(text)
    assert not re.search(r"(?:src|href)=\"(?!#)|url\((?!#)|@import|<script", text)
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("title")[0].text() == "A & B"
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in identifiers
    assert render(content) == text


def test_every_claim_has_question_figure_verdict_and_command(content: StudyContent) -> None:
    page = read(render(content))
    first, second = section(page, "c1"), section(page, "c2")
    assert "Momentum <improves> it." in first.text()
    assert "no difference found" in first.all("span", "badge")[0].text()
    assert "all - none: +2.00" in first.text()
    for part in (first, second):
        assert part.all("code")[0].text() == "tailfin study s.toml"
    assert len(first.all("svg")) == 1
    assert "95 % Student t intervals" in first.all("figcaption")[0].text()
    assert "No finished run has what this picture shows." in second.text()
    assert [row.text() for row in page.all("table", "overview")[0].all("tr")][1:] == [
        "C1 = no difference found Momentum <improves> it.",
        "C2 – not tested Stability.",
    ]
    # A single finding is the verdict, which is not said twice.
    assert second.text().count("no record") == 1


def test_tables_set_figures_flush_right_and_say_what_is_missing(content: StudyContent) -> None:
    page = read(render(content))
    cells = section(page, "arms").all("td")
    assert [(cell.text(), cell.attributes.get("class")) for cell in cells] == [
        ("simclr", None), ("all", None), ("2", "figure"), ("52.00", "figure")
    ]  # fmt: skip
    assert "No arm has a control." in section(page, "differences").text()
    assert "the loss is nan" in section(page, "failures").text()
    none = read(render(replace(content, failures=[])))
    assert not [each for each in none.all("section") if each.attributes["id"] == "failures"]


def test_markdown_has_the_same_tables(content: StudyContent) -> None:
    text = markdown.render(
        replace(content, arms=replace(content.arms, rows=[("a|b", "p < 0.05", "2", "<b>")]))
    )
    assert "| a\\|b | p < 0.05 | 2 | &lt;b> |" in text
    assert "| --- | --- | ---: | ---: |" in text
    assert "- simclr: **supported**. higher\n    - all - none: +2.00" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def bars(svg: str) -> list[str]:
    return re.findall(r'<g id="[\w-]*LineCollection[^>]*>', svg)


def test_markers_tell_series_apart_without_colour_and_bars_are_drawn(content: StudyContent) -> None:
    plot = intervals("x", SERIES, axis="accuracy (%)", caption="What.")
    assert plot is not None
    assert len(bars(plot.svg)) == 3  # two of three points have an interval, and the legend shows one
    assert "byol &lt;b&gt;" in plot.svg
    assert {"var(--blue)", "var(--orange)"} <= set(re.findall(r"var\(--\w+\)", plot.svg))
    assert not re.search("#0072b2|#d55e00|#cc79a7", plot.svg)
    shapes = {
        tuple(re.findall("[A-Z]", path)) for path in re.findall(r'<path id="[^"]*" d="([^"]*)"', plot.svg)
    }
    assert len(shapes) >= 3  # circle, square, cap of a bar
    assert "hollow markers have one seed" in plot.caption


def test_nothing_to_draw_is_no_picture() -> None:
    empty = [Series("a", [])]
    assert intervals("x", empty, axis="y", caption="") is None
    assert profile("x", [("y", empty)], axis="z", caption="") is None
    assert scatter("x", [(empty[0], [])], axes_names=("x", "y"), caption="") is None


def boxes(svg: str, names: list[str]) -> list[tuple[float, float, float, float]]:
    """Where the labels stand, as (left, top, right, bottom) in points."""
    found = []
    for name in names:
        match = re.search(
            rf'<text [^>]*transform="translate\(([\d.]+) ([\d.]+)\)[^>]*>{name}<', svg
        ) or re.search(rf'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>{name}<', svg)
        assert match is not None, name
        x, y = float(match[1]), float(match[2])
        found.append((x, y - 6.5, x + 0.5 * 7.5 * len(name), y))
    return found


def test_labels_of_points_in_a_bundle_do_not_cover_each_other() -> None:
    names = [f"layer{place}" for place in range(9)]
    points = [Point(name, 50 + 0.01 * place, 48.0, 52.0) for place, name in enumerate(names)]
    plot = scatter("x", [(Series("s", points), [1.0] * 9)], axes_names=("cost", "accuracy"), caption="C.")
    assert plot is not None
    found = boxes(plot.svg, names)
    for place, one in enumerate(found):
        for other in found[place + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_bar_that_leaves_the_picture_is_told() -> None:
    points = [Point("a", 50.0, 49.0, 51.0), Point("b", 51.0, 10.0, 92.0)]
    plot = scatter("x", [(Series("s", points), [0.0, 1.0])], axes_names=("x", "y"), caption="C.")
    assert plot is not None
    assert plot.caption.endswith("Some bars go beyond the picture.")
    short = scatter("x", [(Series("s", points[:1]), [0.0])], axes_names=("x", "y"), caption="C.")
    assert short is not None
    assert "beyond" not in short.caption


def test_a_profile_has_a_panel_for_each_quantity() -> None:
    series = [Series("s", [Point("stem", 0.1, 0.08, 0.12), Point("layer1", 0.2, 0.1, 0.3)])]
    plot = profile("x", [("variation", series), ("jump", series)], axis="part", caption="C.")
    assert plot is not None
    for word in ("variation", "jump", "stem", "layer1", "part"):
        assert f">{word}<" in plot.svg


def test_as_many_series_as_there_are_methods_look_different() -> None:
    styles = [study_plots.style(index) for index in range(32)]
    assert len(set(styles)) == 32
    assert len({marker for _, marker in styles[:8]}) == 8


def heights(svg: str) -> float:
    match = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
    assert match is not None
    return float(match[1])


def test_a_picture_grows_with_its_legend() -> None:
    def tall(kind: str, count: int) -> float:
        series = [Series(f"method{n}", [Point("a", 1.0 + n, None, None)]) for n in range(count)]
        plot = (
            profile("x", [("y", series)], axis="part", caption="C.")
            if kind == "profile"
            else scatter("x", [(each, [1.0]) for each in series], axes_names=("x", "y"), caption="C.")
        )
        assert plot is not None
        return heights(plot.svg)

    for kind in ("profile", "scatter"):
        assert tall(kind, 24) - tall(kind, 3) == pytest.approx(72 * 7 * study_plots.LEGEND_LINE, abs=0.1)


@pytest.mark.parametrize(("largest", "logarithmic"), [(1.0, False), (100.0, True)])
def test_one_value_far_above_the_others_does_not_flatten_them(largest: float, logarithmic: bool) -> None:
    points = [Point(f"part{n}", value, None, None) for n, value in enumerate((0.1, 0.1, 0.2, largest))]
    plot = profile("x", [("y", [Series("s", points)])], axis="part", caption="C.")
    assert plot is not None
    assert (r"10^" in plot.svg or "baseline-shift" in plot.svg) == logarithmic


def test_in_a_crowd_labels_without_room_are_left_out_and_that_is_told() -> None:
    names = [f"layer{place}" for place in range(study_plots.CROWD + 1)]
    points = [Point(name, 50.0, None, None) for name in names]
    plot = scatter("x", [(Series("s", points), [1.0] * len(names))], axes_names=("x", "y"), caption="C.")
    assert plot is not None
    assert 0 < len(re.findall(r">layer\d+<", plot.svg)) < len(names)
    assert plot.caption.endswith("Labels without room are left out.")


def test_many_comparisons_are_folded_away(content: StudyContent) -> None:
    for count, folded in ((8, False), (9, True)):
        findings = [([f"method{n}", f"twin{n}"], "supported", "higher", (f"+{n}",)) for n in range(count)]
        page = read(render(replace(content, claims=[replace(content.claims[0], findings=findings)])))
        assert len(section(page, "c1").all("details")) == folded
        assert f"{2 * count} comparisons" in section(page, "c1").text() or not folded
        assert "method7; twin7: higher" in section(page, "c1").text()


def test_the_comparisons_of_a_single_finding_are_named_where_there_are_several(content: StudyContent) -> None:
    for names, named in ((["simclr"], False), (["simclr", "byol"], True)):
        claim = replace(content.claims[1], findings=[(names, "not tested", "no record", ())])
        page = read(render(replace(content, claims=[claim])))
        assert ("simclr; byol: no record" in section(page, "c2").text()) == named
