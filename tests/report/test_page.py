import re
from dataclasses import replace

import pytest

from tailfin.report import page
from tailfin.report.page import ReportContent, render

from .document import Element, read

EMPTY = ReportContent({}, [], [], [], {}, [], "none", None, None, None, [], "")
SECTIONS = [
    "results",
    "accuracy",
    "curves",
    "stability",
    "encoder",
    "views",
    "neighbours",
    "skipped",
    "settings",
    "versions",
]


def section(document: Element, key: str) -> Element:
    (found,) = [each for each in document.all("section") if each.attributes["id"] == key]
    return found


@pytest.mark.parametrize("empty", [False, True])
def test_sections_come_in_order_whatever_is_missing(content: ReportContent, empty: bool) -> None:
    document = read(render(EMPTY if empty else content))
    assert [each.attributes["id"] for each in document.all("section")] == SECTIONS
    assert len(document.all("h1")) == 1


def test_identifiers_are_unique_and_references_resolve(content: ReportContent) -> None:
    source = render(content)
    names = [each.attributes["id"] for each in read(source).all() if "id" in each.attributes]
    assert len(names) == len(set(names))
    targets = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'href="#([^"]+)"', source))
    assert targets
    assert targets <= set(names)


def test_nothing_is_loaded_from_elsewhere(content: ReportContent) -> None:
    source = render(content)
    document = read(source)
    assert not document.all("script") + document.all("link") + document.all("iframe") + document.all("object")
    for element in document.all():
        for key, value in element.attributes.items():
            if key.split(":")[-1] in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:image/png;base64,", "#"))
    assert "http" not in source
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))


def test_same_content_gives_same_bytes(content: ReportContent) -> None:
    assert render(content) == render(content)


def test_every_picture_has_words(content: ReportContent) -> None:
    document = read(render(content))
    pictures = document.all("img")
    assert len(pictures) == 3 * 3 + 2 * 4
    assert len({picture.attributes["alt"] for picture in pictures}) == len(pictures)
    plots = document.all("svg")
    assert len(plots) == 9
    assert all(plot.attributes["role"] == "img" and len(plot.attributes["aria-label"]) > 20 for plot in plots)


def test_hostile_strings_stay_text(content: ReportContent) -> None:
    evil = """</style></title><script>alert('1')</script><img src=x onerror="x">&amp;"""
    hostile = replace(
        content,
        config={"method": evil, "data": {"name": evil}, evil: [evil]},
        result={
            **content.result,
            "verdict": {"state": evil, "words": evil, "evidence": [evil]},
            "unjudged": [evil],
            "device": evil,
            "versions": {evil: evil},
        },
        parts=[replace(part, name=evil) for part in content.parts],
        placement=evil,
        neighbour_names=[[evil] * 4] * 2,
        skipped=[(evil, evil)],
        command=evil,
    )
    document = read(render(hostile))
    plain = read(render(content))
    assert not document.all("script")
    assert len(document.all("img")) == len(plain.all("img"))
    assert not [each for each in document.all() if "onerror" in each.attributes]
    assert document.all("code")[-1].text() == evil
    assert document.all("h1")[0].text() == f"{evil} on {evil}, placement {evil}"
    (badge,) = document.all(kind="badge")
    assert badge.text() == f"! {evil}"
    unlabelled = read(render(replace(hostile, result={"unjudged": [evil]}, neighbour_names=None)))
    assert not unlabelled.all("script")
    assert evil in section(unlabelled, "accuracy").text()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"state": "healthy", "words": "Fine."}, "✓ healthy Fine."),
        ({"state": "collapsing", "words": "Rank 3."}, "! collapsing Rank 3."),
        (None, "? no verdict This run has not been judged."),
    ],
)
def test_verdict_is_said_without_colour(content: ReportContent, verdict: object, said: str) -> None:
    document = read(render(replace(content, result={"verdict": verdict})))
    assert document.all(kind="verdict")[0].text() == said


def test_key_figures(content: ReportContent) -> None:
    figures = section(read(render(content)), "results")
    cards = {each.all("dt")[0].text(): each.all("dd")[0].text() for each in figures.all("div")}
    assert cards == {
        "kNN": "57.5 % validation 56.9 %",
        "Linear probe": "60.6 % backbone, online weights",
        "Untrained": "32.3 % kNN; linear 36.6 %",
        "Raw pixels": "41.9 % kNN; linear 38.8 %",
        "Speed": "2,093 images/s cpu",
        "Target path's cost": "47.0 % of the forward computation; measured 49.0 %",
        "Time": "4 min 47 s 45,000 training images",
        "Parameters": "11.17 M",
    }
    assert "10,000 test images" in figures.text()


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("results", "not judged"),
        ("accuracy", "No accuracy was measured."),
        ("curves", "No metrics have been recorded yet."),
        ("encoder", "The parts of the encoder were not recorded."),
        ("views", "No augmented views were kept."),
        ("neighbours", "No nearest neighbours were looked up."),
        ("skipped", "Every file could be read."),
        ("settings", "No settings were recorded."),
        ("versions", "No versions were recorded."),
    ],
)
def test_missing_pieces_become_a_sentence(key: str, sentence: str) -> None:
    assert sentence in section(read(render(EMPTY)), key).text()


def test_missing_labels_are_explained(content: ReportContent) -> None:
    result = {"knn": None, "linear": None, "scores": {}, "unjudged": ["the data set has no labels"]}
    document = read(render(replace(content, result=result, neighbour_names=None)))
    assert document.all(kind="unjudged")[0].text() == "Not judged: the data set has no labels"
    assert section(document, "accuracy").all(kind="missing")[0].text() == (
        "No accuracy was measured: the data set has no labels."
    )
    sheet = section(document, "neighbours")
    assert "Without class names" in sheet.text()
    assert not sheet.all("b")


def test_partial_curves(content: ReportContent) -> None:
    rows = [{"step": 10, "epoch": 0.1, "loss": 5.25, "lr": 0.3}]
    curves = section(read(render(replace(content, metrics=rows, timing=[]))), "curves")
    assert len(curves.all("svg")) == 2
    assert "Training loss: 5.25 at step 10, the only value." in curves.text()
    assert "No evaluation took place during training" in curves.text()
    assert "No timing has been recorded yet." in curves.text()


def test_skipped_files_are_counted_and_bounded(
    content: ReportContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = section(read(render(content)), "skipped")
    assert listed.all("summary")[0].text() == "2 files could not be read"
    assert [row.text() for row in listed.all("tr")[1:]] == ["broken.jpg truncated", "readme.txt not an image"]
    monkeypatch.setattr(page, "MOST_SKIPPED", 1)
    listed = section(read(render(content)), "skipped")
    assert len(listed.all("tr")) == 2
    assert "1 more are not listed" in listed.text()


def test_settings_versions_and_command(content: ReportContent) -> None:
    document = read(render(content))
    settings = section(document, "settings")
    assert settings.all("code")[0].text() == content.command
    assert [row.text() for row in settings.all("tr")[1:]] == [
        "method simclr",
        "data cifar10",
        "momentum.decay 0.99",
        "momentum.buffers batch",
    ]
    versions = [row.text() for row in section(document, "versions").all("tr")[1:]]
    assert versions == ["python 3.11.2", "torch 2.15.0", "device cpu", "seed 7"]
