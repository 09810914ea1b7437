"""A study's report in Markdown, for reading in a repository."""

import re
from collections.abc import Sequence

from tailfin.errors import printable
from tailfin.report.study_page import StudyContent, Table


def render(content: StudyContent) -> str:
    """The verdicts and tables of the page; the pictures are in the page alone."""
    lines = [f"# {_text(content.title)}", "", _text(content.question), "", _text(content.status), ""]
    lines += _table(
        Table(
            ("claim", "verdict", "why"),
            [(f"{c.id}: {c.title}", c.state, c.words) for c in content.claims],
            3,
            "Claims of [arXiv 2208.05744](https://arxiv.org/abs/2208.05744) in our words.",
        )
    )
    for claim in content.claims:
        if claim.findings:
            lines += [f"## {claim.id}: {claim.title}", "", claim.rule, ""]
            for names, state, words, evidence in claim.findings:
                lines += [f"- {_text('; '.join(names))}: **{state}**. {_text(words)}"]
                lines += [f"    - {_text(line)}" for line in evidence]
            lines.append("")
    lines += ["## Arms", "", *_table(content.arms)]
    lines += ["## Differences to the controls", "", *_table(content.differences)]
    if content.choices:
        lines += ["## Selection", "", *_table(content.choices)]
    if content.failures:
        lines += ["## Cells without a result", ""]
        lines += _table(Table(("cell", "reason"), content.failures, 2))
    lines += ["## Settings", ""]
    lines += [f"- {_text(note)}" for note in content.notes] + ([""] if content.notes else [])
    lines += _table(Table(("setting", "value"), [*content.settings, *content.versions], 2))
    lines += ["Repeat it:", "", "```sh", content.command, "```"]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    note = [_cell(table.note), ""] if table.note else []
    if not table.rows:
        return note
    rule = ["---" if place < table.words else "---:" for place in range(len(table.heads))]
    return [*(_row(each) for each in (table.heads, rule)), *(_row(row) for row in table.rows), "", *note]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(text: str) -> str:
    """Words of a study file, of images and of errors: on one line, no markup, no link, nothing a terminal obeys."""
    # Of brackets those that begin a link: intervals stay as they are.
    marks = r"([\\`]|\[(?=[^\]]*\]\s*[(\[:]))"
    return _cell(re.sub(marks, r"\\\1", printable(" ".join(text.split()))))


def _cell(text: str) -> str:
    return re.sub(r"<(?=[\w/!])", "&lt;", " ".join(text.split()).replace("|", "\\|"))
