"""Rewrite the made part of docs/methods.md: `python docs/make_methods.py`."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import median
from textwrap import fill

from tailfin import methods
from tailfin.methods.base import Method, Recipe
from tailfin.study import table
from tailfin.study.design import Row
from tailfin.study.statistics import paired

PAGE = Path(__file__).with_name("methods.md")
RESULTS = Path(__file__).parents[1] / "results"
STUDY, LONGER = "cpu-all-methods", "cpu-longer"
GAIN = 10.0
"""Points of the linear probe above the untrained encoder that a method as published should reach."""
PLACEMENTS = ("none", "stopgrad", "projector", "all")
FIRST = (
    "<!-- What follows is made by `python docs/make_methods.py` from what each method says of itself. -->\n"
)
LAST = "<!-- End of what is made. -->\n"


def made(page: str) -> str:
    """The page with its made part renewed."""
    head, _, rest = page.partition(FIRST)
    _, _, tail = rest.partition(LAST)
    lines = overview()
    for family, some in groupby(known(), key=lambda item: item[1].about.family):
        lines += ["", f"## {str(family).capitalize()}"]
        for name, method in some:
            lines += section(name, method)
    return head + FIRST + "\n".join(lines) + "\n\n" + LAST + tail


def known() -> list[tuple[str, type[Method]]]:
    """All methods with their names, by family and year."""
    loaded = ((name, methods.load(name)) for name in methods.names())
    return sorted(loaded, key=lambda item: (item[1].about.family or "", item[1].about.year or 0, item[0]))


def section(name: str, method: type[Method]) -> list[str]:
    """The lines on one method."""
    about, recipes = method.about, [method.recipe, *([method.large] if method.large else [])]
    columns = [recipe_rows(recipe) for recipe in recipes]
    facts = []
    if about.needs:
        facts.append(f"Needs {', '.join(about.needs)}.")
    if about.expected:
        figures = ", ".join(f"{data} {value:g} %" for data, value in about.expected.items())
        facts.append(f"Linear accuracy elsewhere: {figures} ({about.expected_source}).")
    return [
        "",
        f"### {about.title}",
        "",
        f"`--method {name}`, {about.year}, [arXiv {about.source}](https://arxiv.org/abs/{about.source})",
        "",
        fill(about.idea, 118),
        "",
        f"$${about.equation}$$",
        "",
        "| | 32 px | 224 px |" if method.large else "| | |",
        "|---" * (1 + len(columns)) + "|",
        *("| " + " | ".join((key, *(column[key] for column in columns))) + " |" for key in columns[0]),
        *(["", fill(" ".join(facts), 118)] if facts else []),
        *measured(name),
    ]


def overview() -> list[str]:
    """What our study of all methods gave, one row a method."""
    done = runs(STUDY)
    if not done:
        return []
    said = (
        f"Linear probe and, in brackets, kNN in percent after {budget(done[0])}, narrow ResNet, one seed: `tailfin "
        f"study studies/{STUDY}.toml`. The untrained encoder has {untrained(done)}. All methods share one optimizer "
        "and one decay, not the published ones, and none is tuned more than another: the rows are no contest of "
        "methods, and `published` is the published placement alone. Where the monitors "
        "find a run not healthy, their verdict stands beside its figures."
    )
    head = ["method", "published", *PLACEMENTS]
    rows = []
    for name, method in known():
        found = {row["settings"]["momentum"]: figures(row) for row in of(name, done)}
        if not found:
            continue
        if method.stop_gradient:
            found["none"] = "the same as stopgrad"
        rows.append(
            [method.about.title, method.recipe.placement, *(found.get(each, "") for each in PLACEMENTS)]
        )
    if len(rows) < len(known()):
        said += f" {len(known()) - len(rows)} methods have not run yet."
    return ["", "## What ours gave", "", fill(said, 118), "", *grid(head, rows), *across(), *shortfall()]


def across() -> list[str]:
    """What one placement gave over another, each method one pair."""
    linear: dict[str, dict[int, float]] = {placement: {} for placement in PLACEMENTS}
    for place, (name, _) in enumerate(known()):
        for row in of(name, runs(STUDY)):
            if row["linear"] is not None:
                linear[row["settings"]["momentum"]][place] = row["linear"]
    found = []
    for arm, control in (("projector", "all"), ("projector", "stopgrad"), ("all", "stopgrad")):
        each = paired(linear[arm], linear[control])
        if each.low is None or each.high is None:
            return []
        above = sum(
            linear[arm][place] > value for place, value in linear[control].items() if place in linear[arm]
        )
        found.append(
            f"{arm} - {control} {each.mean:+.1f} points [{each.low:+.1f}, {each.high:+.1f}], above it in {above} of "
            f"{each.n}"
        )
    said = (
        f"Over the methods, each one pair of runs with the same seed, with 95 % Student t intervals that take "
        "methods for independent, which kin are not: "
        f"{'; '.join(found)}."
    )
    return ["", fill(said, 118)]


def shortfall() -> list[str]:
    """Which methods gain little as published, and what they gain in a longer run."""
    short, longer = [], []
    for name, method in known():
        row = published(name, method, runs(STUDY))
        if row is None or (row["linear"] or 0) - row["linear_untrained"] >= GAIN:
            continue
        short.append(method.about.title)
        again = published(name, method, runs(LONGER))
        if again is not None:
            longer.append(f"{method.about.title} {figures(again)} in {lasting(again)}")
    if not short:
        return []
    said = (
        f"With the published placement less than {GAIN:g} points of the linear probe above the untrained encoder: "
        f"{', '.join(short)}."
    )
    if longer:
        said += (
            f" Longer (`tailfin study studies/{LONGER}.toml`), the untrained encoder having "
            f"{untrained(runs(LONGER))}: {', '.join(longer)}."
        )
    return ["", fill(said, 118)]


def measured(name: str) -> list[str]:
    """The same of one method, in a sentence a study."""
    lines = []
    for study in (STUDY, LONGER):
        own = of(name, runs(study))
        if own:
            found = ", ".join(f"{row['settings']['momentum']} {figures(row)}" for row in own)
            said = f"Ours after {budget(own[0])}, linear (kNN): {found}; untrained {untrained(own)}."
            lines += ["", fill(said, 118)]
    return lines


def published(name: str, method: type[Method], rows: Sequence[Row]) -> Row | None:
    """The method's run with the published placement, the longest of them."""
    placement = method.recipe.placement
    wanted = "stopgrad" if placement == "none" and method.stop_gradient else placement
    found = [row for row in of(name, rows) if row["settings"]["momentum"] == wanted]
    return max(found, key=lambda row: row["settings"]["epochs"], default=None)


def of(name: str, rows: Sequence[Row]) -> list[Row]:
    """The runs of one method."""
    return [row for row in rows if row["settings"]["method"] == name]


@cache
def runs(study: str) -> tuple[Row, ...]:
    """Finished runs of a study of ours, by method and placement."""

    def place(row: Row) -> tuple[str, int]:
        return row["settings"]["method"], PLACEMENTS.index(row["settings"]["momentum"])

    return tuple(sorted(table.read(RESULTS / study).values(), key=place))


def budget(row: Row) -> str:
    """How long a run was, and on what."""
    settings = row["settings"]
    return f"{lasting(row)} of {settings['limit']:,} images of {settings['data'].upper()}"


def lasting(row: Row) -> str:
    """How long a run was, with the options of its method where it has some."""
    options = ", ".join(f"{name} {value:g}" for name, value in row["settings"]["method_options"].items())
    return f"{row['settings']['epochs']} epochs" + (f" with {options}" if options else "")


def figures(row: Row) -> str:
    """Linear and kNN accuracy, and a verdict that is not healthy."""
    verdict = "" if row["state"] == "healthy" else f", {row['state']}"
    if row["linear"] is None:
        return f"not judged{verdict}"
    return f"{row['linear']:.1f} ({row['knn']:.1f}){verdict}"


def untrained(rows: Sequence[Row]) -> str:
    """The untrained encoder's accuracies: it is the same in all runs of one seed but for the last bits."""
    linear, knn = (median(row[f"{name}_untrained"] for row in rows) for name in ("linear", "knn"))
    return f"{linear:.1f} ({knn:.1f})"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def recipe_rows(recipe: Recipe) -> dict[str, str]:
    """One recipe in words."""
    decay = "" if recipe.placement == "none" else f", decay {recipe.decay:g} to {recipe.decay_end:g}"
    options = "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in recipe.options.items())
    return {
        "optimizer": f"{recipe.optimizer}, lr {recipe.lr:g} at 256, weight decay {recipe.weight_decay:g}",
        "momentum": recipe.placement + decay,
        "heads": f"hidden {recipe.hidden}, out {recipe.out}{', batch norm' if recipe.batch_norm else ''}{options}",
        "views": recipe.views,
        "recipe from": recipe.source,
    }


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
