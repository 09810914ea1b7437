"""The page of one pretraining run: a single HTML file that needs nothing else."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files

from tailfin.report import encoder, plots, stability_plots
from tailfin.report.content import PartRow, ReportContent
from tailfin.report.pictures import neighbours, views
from tailfin.report.words import count, duration, flatten, items, mapping, number, percent, setting, share

__all__ = ["PartRow", "ReportContent", "render"]

# A folder of a million broken files must not make a page that no browser opens.
MOST_SKIPPED = 500


def render(content: ReportContent, lost: list[str] | None = None) -> str:
    """The report as one self-contained HTML document; the same content gives the same bytes.

    Args:
        content: What is drawn.
        lost: What could not be read, which the page tells; it takes a line for each section that cannot be drawn from
            what was read, whose place in the page then says so.
    """
    lost = [] if lost is None else lost

    def drawn(name: str, draw: Callable[[], str]) -> str:
        try:
            return draw()
        # A run folder may hold anything: a section that meets what it does not expect leaves the others whole.
        except Exception as error:
            words = " ".join((str(error) or type(error).__name__).split())[:300]
            lost.append(f"{name}: {words}")
            return f'<p class="missing">This could not be drawn: {escape(words)}.</p>'

    title = _title(content)
    sections = {
        "Key figures": ("results", lambda: _figures(content)),
        "Accuracy beside the baselines": ("accuracy", lambda: _accuracy(content)),
        "Training curves": ("curves", lambda: _curves(content)),
        "Stability by part": ("stability", lambda: _stability(content)),
        "Encoder and placement": ("encoder", lambda: _encoder(content)),
        "Augmented views": ("views", lambda: views(content.views)),
        "Nearest neighbours": ("neighbours", lambda: neighbours(content.neighbours, content.neighbour_names)),
        "Skipped files": ("skipped", lambda: _skipped(content.skipped)),
        "Settings and command": ("settings", lambda: _settings(content)),
        "Versions": ("versions", lambda: _versions(content)),
    }
    body = "\n".join(
        f'<section id="{key}"><h2>{name}</h2>\n{drawn(name, draw)}\n</section>'
        for name, (key, draw) in sections.items()
    )
    verdict = drawn("verdict", lambda: _verdict(content))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{files("tailfin.report").joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header id="verdict">
<h1>{escape(title)}</h1>
{verdict}
{_list("unjudged", [f"Not drawn: {line}" for line in lost])}</header>
<main>
{body}
</main>
</body>
</html>
"""


def _title(content: ReportContent) -> str:
    method = setting(content.config.get("method", "pretraining"))
    data = content.config.get("data")
    where = mapping(data).get("name") if mapping(data) else data
    on = "" if where is None else f" on {setting(where)}"
    return f"{method}{on}, placement {content.placement}"


def _verdict(content: ReportContent) -> str:
    verdict = mapping(content.result.get("verdict"))
    state = str(verdict.get("state", "no verdict"))
    kind, symbol = (
        ("none", "?") if "state" not in verdict else ("good", "✓") if state == "healthy" else ("bad", "!")
    )
    words = str(verdict.get("words", "This run has not been judged."))
    badge = f'<span class="badge {kind}"><span aria-hidden="true">{symbol}</span> {escape(state)}</span>'
    return (
        f'<p class="verdict">{badge} {escape(words)}</p>\n'
        + _list("evidence", items(verdict.get("evidence")))
        + _list("unjudged", [f"Not judged: {reason}" for reason in items(content.result.get("unjudged"))])
    )


def _list(kind: str, lines: Sequence[object]) -> str:
    if not lines:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(str(line))}</li>" for line in lines) + "</ul>\n"


def _figures(content: ReportContent) -> str:
    result = content.result
    tested = number(result.get("test_images"))
    judged = "" if tested is None else f" on {count(tested)} test images"
    validation = number(result.get("validation_knn"))
    cost = mapping(result.get("target_cost"))
    rate, seconds, parameters = (
        number(result.get(key)) for key in ("images_per_second", "seconds", "parameters")
    )
    trained = number(result.get("train_images"))
    cards = [
        (
            "kNN",
            _accuracy_value(result.get("knn")),
            "" if validation is None else f"validation {percent(validation)}",
        ),
        ("Linear probe", _accuracy_value(result.get("linear")), "backbone, online weights"),
        ("Untrained", *_baseline(result.get("untrained"))),
        ("Raw pixels", *_baseline(result.get("raw_pixels"))),
        ("Speed", "–" if rate is None else f"{count(rate)} images/s", setting(result.get("device", ""))),
        (
            "Target path's cost",
            share(number(cost.get("predicted"))),
            "of the forward computation"
            + (
                f"; measured {share(number(cost.get('measured')))}"
                if number(cost.get("measured")) is not None
                else ""
            ),
        ),
        (
            "Time",
            "–" if seconds is None else duration(seconds),
            "" if trained is None else f"{count(trained)} training images",
        ),
        ("Parameters", "–" if parameters is None else f"{parameters / 1e6:.2f} M", ""),
    ]
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>\n"
        for name, value, note in cards
    )
    note = f'<p class="note">Accuracies are top-1, in percent{judged}.</p>'
    return f'<dl class="cards">\n{boxes}</dl>\n{note}'


def _accuracy_value(value: object) -> str:
    found = number(value)
    return "not judged" if found is None else percent(found)


def _baseline(value: object) -> tuple[str, str]:
    judged = mapping(value)
    return _accuracy_value(judged.get("knn")), f"kNN; linear {percent(number(judged.get('linear')))}"


def _plot(plot: plots.Plot | None, missing: str) -> str:
    if plot is None:
        return f'<p class="missing">{escape(missing)}</p>'
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    return f"<figure>{plot.svg}{caption}</figure>"


def _accuracy(content: ReportContent) -> str:
    result = content.result
    scores = {key: result.get(key) for key in ("untrained", "raw_pixels")} | dict(
        mapping(result.get("scores"))
    )
    reasons = "; ".join(str(reason) for reason in items(result.get("unjudged")))
    missing = "No accuracy was measured" + (f": {reasons}." if reasons else ".")
    return f'<div class="wide">{_plot(plots.accuracy(scores), missing)}</div>'


def _curves(content: ReportContent) -> str:
    metrics, timing = content.metrics, content.timing
    if not metrics and not timing:
        return '<p class="missing">No metrics have been recorded yet.</p>'
    cells = [
        _plot(plots.loss(metrics), "No finite loss has been recorded yet."),
        _plot(plots.knn(metrics), "No evaluation took place during training, so there is no kNN curve."),
        _plot(plots.schedule(metrics), "No learning rate or decay has been recorded yet."),
        _plot(plots.throughput(timing), "No timing has been recorded yet."),
    ]
    return '<div class="plots">' + "\n".join(f"<div>{cell}</div>" for cell in cells) + "</div>"


def _stability(content: ReportContent) -> str:
    if not content.stability:
        return '<p class="missing">Nothing was monitored.</p>'
    few = "The run was too short to measure fluctuation."
    cells = [
        _plot(stability_plots.gradients(content.stability), "No gradients have been recorded yet."),
        _plot(stability_plots.fluctuation(mapping(content.result.get("fluctuation"))), few),
    ]
    cells += [
        _plot(plot, "")
        for key in stability_plots.PROBED
        if (plot := stability_plots.probe(content.stability, key)) is not None
    ]
    return '<div class="plots">' + "\n".join(f"<div>{cell}</div>" for cell in cells) + "</div>"


def _encoder(content: ReportContent) -> str:
    if not content.parts:
        return '<p class="missing">The parts of the encoder were not recorded.</p>'
    placed = f"Placement <code>{escape(content.placement)}</code>. "
    return f"<p>{placed}{escape(encoder.cost_in_words(content.parts))}</p>\n{encoder.picture(content.parts)}"


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return "<p>Every file could be read.</p>"
    rows = _table(("file", "reason"), skipped[:MOST_SKIPPED])
    left = len(skipped) - MOST_SKIPPED
    more = f'<p class="note">{left:,} more are not listed.</p>' if left > 0 else ""
    files_word = "file" if len(skipped) == 1 else "files"
    return (
        f"<details><summary>{len(skipped):,} {files_word} could not be read</summary>{rows}{more}</details>"
    )


def _settings(content: ReportContent) -> str:
    rows = flatten(content.config)
    table = '<p class="missing">No settings were recorded.</p>'
    if rows:
        table = (
            f"<details><summary>{len(rows)} settings</summary>{_table(('setting', 'value'), rows)}</details>"
        )
    command = f"<p>The command that repeats this run:</p>\n<pre><code>{escape(content.command)}</code></pre>"
    return f"{command if content.command else ''}\n{table}"


def _versions(content: ReportContent) -> str:
    rows = flatten(mapping(content.result.get("versions")))
    rows += [(key, setting(content.result[key])) for key in ("device", "seed") if key in content.result]
    return _table(("what", "version"), rows) if rows else '<p class="missing">No versions were recorded.</p>'


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>\n' for key, value in rows
    )
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table>"
