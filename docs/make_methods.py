"""Rewrite the made part of docs/methods.md: `python docs/make_methods.py`."""

from pathlib import Path
from textwrap import fill

from tailfin import methods
from tailfin.methods.base import Method, Recipe
from tailfin.study import table

PAGE = Path(__file__).with_name("methods.md")
OURS = Path(__file__).parents[1] / "results" / "cpu-all-methods"
"""Where the study of all methods lies, once it has run."""
FIRST = (
    "<!-- What follows is made by `python docs/make_methods.py` from what each method says of itself. -->\n"
)
LAST = "<!-- End of what is made. -->\n"


def made(page: str) -> str:
    """The page with its made part renewed."""
    head, _, rest = page.partition(FIRST)
    _, _, tail = rest.partition(LAST)
    known = sorted(
        ((name, methods.load(name)) for name in methods.names()),
        key=lambda item: (item[1].about.family or "", item[1].about.year or 0, item[0]),
    )
    lines = []
    for place, (name, method) in enumerate(known):
        family = method.about.family
        if place == 0 or family != known[place - 1][1].about.family:
            lines += ["", f"## {str(family).capitalize()}"]
        lines += section(name, method)
    return head + FIRST + "\n".join(lines) + "\n\n" + LAST + tail


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


def measured(name: str) -> list[str]:
    """What our study of all methods found of one, if it has run."""
    rows = [row for row in table.read(OURS).values() if row["settings"]["method"] == name]
    rows = [row for row in rows if row["linear"] is not None and row["seed"] == min(r["seed"] for r in rows)]
    if not rows:
        return []
    order = ("none", "stopgrad", "projector", "all")
    rows.sort(key=lambda row: (order.index(row["settings"]["momentum"]), row["seed"]))
    settings = rows[0]["settings"]
    said = (
        f"Ours after {settings['epochs']} epochs of {settings['limit']:,} images of {settings['data']}, narrow "
        f"ResNet, seed {rows[0]['seed']}, in percent (studies/cpu-all-methods.toml):"
    )
    figures = [
        f"| {row['settings']['momentum']} | {row['knn']:.1f} | {row['linear']:.1f} | {row['state']} |"
        for row in rows
    ]
    untrained = f"| untrained | {rows[0]['knn_untrained']:.1f} | {rows[0]['linear_untrained']:.1f} | |"
    return [
        "",
        fill(said, 118),
        "",
        "| momentum | kNN | linear | verdict |",
        "|---|---|---|---|",
        *figures,
        untrained,
    ]


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
