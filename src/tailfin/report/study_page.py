"""The page of a study: a single HTML file that needs nothing else, in the look of a run's report."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from tailfin.report.plots import Plot

SYMBOLS = {
    "supported": ("good", "✓"),
    "not supported": ("bad", "✗"),
    "no difference found": ("none", "="),
    "not tested": ("none", "–"),
}

MANY = 8
"""More findings than so many are folded away beneath the verdict."""

CSS = """
a { color: var(--blue); }
.scroll { overflow-x: auto; }
.scroll table { font-size: .8125rem; }
.scroll td, .scroll th { white-space: nowrap; overflow-wrap: normal; padding-right: .7rem; }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; padding-left: .25rem; }
.claim { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem 2rem; }
.claim > * { min-width: 0; }
.finding { margin: .6rem 0; }
.finding .evidence { margin-top: .15rem; }
.overview th { overflow-wrap: normal; }
h2 .id { color: var(--faint); font-weight: 400; margin-right: .4rem; }
@media (max-width: 700px) {
  .overview thead { display: none; }
  .overview tr { display: grid; grid-template-columns: auto 1fr; gap: .2rem .6rem; padding: .5rem 0; }
  .overview tr { border-bottom: 1px solid var(--line); }
  .overview th, .overview td { border: 0; padding: 0; }
  .overview td:last-child { grid-column: 1 / -1; }
}
"""


@dataclass(frozen=True)
class Table:
    """A table as it is printed.

    Attributes:
        heads: Of the columns.
        rows: Cells as text.
        words: The number of leading columns that hold words; the others hold figures and are set flush right.
        note: Beneath the table.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    note: str = ""


@dataclass(frozen=True)
class ClaimSection:
    """What the study says about one claim.

    Attributes:
        id, title: The claim.
        rule: What the verdict is by.
        state, words: The verdict, a key of SYMBOLS, and why.
        findings: What is said, and of which comparisons: their names, the verdict, why, and the figures.
        plot: The picture; None where there is nothing to draw.
    """

    id: str
    title: str
    rule: str
    state: str
    words: str
    findings: Sequence[tuple[Sequence[str], str, str, Sequence[str]]]
    plot: Plot | None


@dataclass(frozen=True)
class StudyContent:
    """Everything that a study says.

    Attributes:
        title, question: Of the study file.
        status: How much of it is finished, and on what it ran.
        claims: In order.
        arms, differences: The tables.
        choices: What a selection chose; None without one.
        notes: What was added or united by itself.
        failures: Cells without a result: name and reason.
        settings: What all cells share: name and value.
        versions: What the cells were computed with.
        command: The command that repeats the study.
    """

    title: str
    question: str
    status: str
    claims: Sequence[ClaimSection]
    arms: Table
    differences: Table
    choices: Table | None
    notes: Sequence[str]
    failures: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]
    command: str


def render(content: StudyContent) -> str:
    """The report as one self-contained HTML document; the same content gives the same bytes."""
    sections = [
        (claim.id.lower(), _heading(claim), _claim(claim, content.command)) for claim in content.claims
    ]
    sections += [
        ("arms", "Arms", _table(content.arms)),
        ("differences", "Differences to the controls", _table(content.differences)),
    ]
    if content.choices:
        sections.append(("choices", "Selection", _table(content.choices)))
    if content.failures:
        sections.append(("failures", "Cells without a result", _pairs(("cell", "reason"), content.failures)))
    sections += [
        ("settings", "Settings", _settings(content)),
        ("versions", "Versions", _pairs(("what", "version"), content.versions)),
    ]
    body = "\n".join(
        f'<section id="{key}"><h2>{heading}</h2>\n{inner}\n</section>' for key, heading, inner in sections
    )
    sheet = files("tailfin.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(content.title)}</title>
<style>
{sheet}{CSS}</style>
</head>
<body>
<header>
<h1>{escape(content.title)}</h1>
<p class="verdict">{escape(content.question)}</p>
<p class="note">{escape(content.status)}</p>
{_overview(content.claims)}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _overview(claims: Sequence[ClaimSection]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#{claim.id.lower()}">{claim.id}</a></th><td>{_badge(claim.state)}</td>'
        f"<td>{escape(claim.title)}</td></tr>\n"
        for claim in claims
    )
    head = "<thead><tr><th>claim</th><th>verdict</th><th>in our words (arXiv 2208.05744)</th></tr></thead>"
    return f'<table class="overview">{head}\n<tbody>{rows}</tbody></table>'


def _badge(state: str) -> str:
    kind, symbol = SYMBOLS[state]
    return f'<span class="badge {kind}"><span aria-hidden="true">{symbol}</span> {escape(state)}</span>'


def _heading(claim: ClaimSection) -> str:
    return f'<span class="id">{claim.id}</span>{escape(claim.title)}'


def _claim(claim: ClaimSection, command: str) -> str:
    count = sum(len(names) for names, *_ in claim.findings)
    alone = count == 1  # its verdict is the claim's, and stands above already
    findings = "".join(
        '<div class="finding">'
        + ("" if alone else f"{_badge(state)} {escape('; '.join(names))}: {escape(words)}\n")
        + f"{_evidence(evidence)}</div>\n"
        for names, state, words, evidence in claim.findings
    )
    if len(claim.findings) > MANY:
        findings = f"<details><summary>{count} comparisons</summary>\n{findings}</details>"
    figure = '<p class="missing">No finished run has what this picture shows.</p>'
    if claim.plot:
        figure = f"<figure>{claim.plot.svg}<figcaption>{escape(claim.plot.caption)}</figcaption></figure>"
    return (
        f'<p class="verdict">{_badge(claim.state)} {escape(claim.words)}</p>\n'
        f'<p class="note">{escape(claim.rule)}</p>\n'
        f'<div class="claim"><div>{figure}</div><div>{findings}'
        f"<pre><code>{escape(command)}</code></pre></div></div>"
    )


def _evidence(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    # "n = 3" is torn apart at the end of a line otherwise.
    items = "".join(f"<li>{escape(line).replace(' = ', '&nbsp;=&nbsp;')}</li>" for line in lines)
    return f'<ul class="evidence">{items}</ul>'


def _table(table: Table) -> str:
    if not table.rows:
        return f'<p class="missing">{escape(table.note or "Nothing to show yet.")}</p>'

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["" if place < table.words else ' class="figure"' for place in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(each)}</{tag}>" for kind, each in zip(kinds, row, strict=True))

    rows = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = cells("th", table.heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n{note}'


def _pairs(heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return '<p class="missing">Nothing was recorded.</p>'
    lines = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>\n' for key, value in rows
    )
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table>"


def _settings(content: StudyContent) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    shared = _pairs(("setting", "value"), content.settings)
    return (
        (f'<ul class="note">{notes}</ul>\n' if notes else "")
        + f"<details><summary>{len(content.settings)} settings that all cells share or that follow from their method"
        + f"</summary>{shared}</details>\n"
        + f"<p>The command that repeats this study:</p>\n<pre><code>{escape(content.command)}</code></pre>"
    )
