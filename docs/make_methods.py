"""Rewrite the made part of docs/methods.md: `python docs/make_methods.py`."""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import fill

from tailfin import methods
from tailfin.methods.base import WIDE, Method, Recipe
from tailfin.study.results import table
from tailfin.study.results.statistics import paired
from tailfin.study.spec.design import Row
from tailfin.views import recipes
from tailfin.views.recipes import LARGEST_SMALL_IMAGE, ViewRecipe

PAGE = Path(__file__).with_name("methods.md")
RESULTS = Path(__file__).parents[1] / "results"
STUDY, LONGER = "cpu-all-methods", "cpu-longer"
GAIN = 10.0
"""Points of the linear probe above the untrained encoder that a method as published should reach."""
PLACEMENTS = ("none", "stopgrad", "projector", "all")
SIZES = {32: (WIDE, 50_000), 224: (2048, 1_281_167)}
"""Sides of the two recipes' images, with the features and the number of images that the options are shown for:
ResNet-18 on CIFAR and ResNet-50 on ImageNet. Large recipes published for ResNet-18 have the same options there."""
FIRST = (
    "<!-- What follows is made by `python docs/make_methods.py` from what each method says of itself. -->\n"
)
LAST = "<!-- End of what is made. -->\n"


def made(page: str) -> str:
    """The page with its made part renewed."""
    head, _, rest = page.partition(FIRST)
    _, _, tail = rest.partition(LAST)
    lines = [*view_recipes(), *overview()]
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
    about, sides = method.about, list(SIZES) if method.large else [min(SIZES)]
    columns = [recipe_rows(method, side) for side in sides]
    facts = [f"Needs {', '.join(about.needs)}."] if about.needs else []
    if about.expected:
        shown = ", ".join(f"{data} {value:g} %" for data, value in about.expected.items())
        facts.append(f"Linear accuracy elsewhere: {shown} ({about.expected_source}).")
    else:
        facts.append("No published figure was found.")
    return [
        "",
        f"### {about.title}",
        "",
        f"`--method {name}`, {about.year}, [arXiv {about.source}](https://arxiv.org/abs/{about.source})",
        "",
        prose(about.idea),
        "",
        f"$${about.equation}$$",
        "",
        *grid(
            ["", *(f"{side} px" for side in sides)],
            [[key, *(column[key] for column in columns)] for key in columns[0]],
        ),
        "",
        prose(" ".join(facts)),
        *measured(name, method),
    ]


def recipe_rows(method: type[Method], side: int) -> dict[str, str]:
    """The recipe for images of this side, in words, with every option of the constructor."""
    recipe, values = method.recipe_at(side), method.defaults(*SIZES[side], side)
    options = {name: f"`{name}` {number(value)}" for name, value in values.items()}
    heads = [options.pop("hidden"), options.pop("out"), *(["batch norm"] if recipe.batch_norm else [])]
    count = recipe.warmup_epochs
    warmup = f"{count} epoch{'s' if count > 1 else ''} of warm-up, then " if count else ""
    return {
        "optimizer": optimizer(recipe),
        "schedule": f"{warmup}cosine",
        "momentum": momentum(recipe),
        "heads": ", ".join(heads),
        "options": ", ".join(options.values()) or "none",
        "views": recipe.views,
        "recipe from": recipe.source,
    }


def optimizer(recipe: Recipe) -> str:
    """The optimizer with all its settings."""
    words = [recipe.optimizer, f"lr {recipe.lr:g} at 256", f"weight decay {recipe.weight_decay:g}"]
    if recipe.optimizer != "adamw":
        words.append(f"momentum {recipe.momentum:g}")
    if recipe.trust_coefficient is not None:
        words.append(f"trust coefficient {recipe.trust_coefficient:g}")
    return ", ".join([*words, *(["clip"] if recipe.clip else [])])


def momentum(recipe: Recipe) -> str:
    """The placement as published, and the decay, which a method without momentum takes once it is given some."""
    constant = recipe.decay == recipe.decay_end
    decay = f"{recipe.decay:g}" if constant else f"{recipe.decay:g} to {recipe.decay_end:g}"
    if recipe.placement == "none":
        return f"none (decay if placed: {decay})"
    return f"{recipe.placement}, decay {decay}"


def view_recipes() -> list[str]:
    """What the named recipes of views do, a row a view."""
    rows = []
    for name in sorted({method.recipe_at(side).views for _, method in known() for side in SIZES}):
        for side in SIZES:
            first, second = getattr(recipes, name)(side)
            pair = {"both": first} if first == second else {"first": first, "second": second}
            rows += [[name, f"{side} px", which, *view_row(view)] for which, view in pair.items()]
    usual = ViewRecipe()
    said = (
        f"The named recipes of views, each a pair; images up to {LARGEST_SMALL_IMAGE} px take the rows of 32 px. The "
        "crop is the share of the image's area that is kept, uniform between both numbers (`--crop-min` sets the "
        "first). Jitter, grey, blur and solarise are probabilities. The strengths of the jitter are those of "
        "brightness, contrast, saturation and hue, as in torchvision's `ColorJitter`. The blur's standard deviation "
        f"is {usual.blur_sigma[0]:g} to {usual.blur_sigma[1]:g} pixels, and every view is mirrored with probability "
        f"{usual.flip:g}."
    )
    head = ["views", "images", "view", "crop", "jitter", "its strengths", "grey", "blur", "solarise"]
    return ["", "## Views", "", prose(said), "", *grid(head, rows)]


def view_row(view: ViewRecipe) -> list[str]:
    """Crop, colour jitter and the rarer operations of one view."""
    strengths = (view.brightness, view.contrast, view.saturation, view.hue)
    return [
        f"{view.scale[0]:g} to {view.scale[1]:g}",
        f"{view.jitter:g}",
        ", ".join(f"{strength:g}" for strength in strengths) if view.jitter else "",
        *(f"{probability:g}" for probability in (view.greyscale, view.blur, view.solarise)),
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
        "methods. Where the monitors find a run not healthy, their verdict stands behind its figures."
    )
    head = ["method", "published placement", *PLACEMENTS]
    rows = []
    for name, method in known():
        found = {row["settings"]["momentum"]: figures(row) for row in of(name, done)}
        if not found:
            continue
        if method.stop_gradient:
            found["none"] = "= stopgrad"
        rows.append(
            [method.about.title, method.recipe.placement, *(found.get(each, "") for each in PLACEMENTS)]
        )
    titles: dict[str, list[str]] = {}
    for name, method in known():
        for row in of(name, done)[:1]:
            titles.setdefault(row["settings"]["precision"], []).append(method.about.title)
            if options := own_options(row):
                said += f" {method.about.title} has {options.strip(' ()')}."
    usual, *others = sorted(titles, key=lambda precision: -len(titles[precision]))
    for precision in others:
        said += f" In {precision}: {', '.join(titles[precision])}; in {usual}: the others."
    if len(rows) < len(known()):
        said += f" {len(known()) - len(rows)} methods have not run yet."
    return ["", "## What ours gave", "", prose(said), "", *grid(head, rows), *across(), *shortfall()]


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
            f"{arm} minus {control} {each.mean:+.1f} points [{each.low:+.1f}, {each.high:+.1f}], above it in {above} "
            f"of {each.n}"
        )
    said = (
        "Over the methods, each one pair of runs with the same seed, with 95 % Student t intervals that treat the "
        f"methods as independent, though related ones are not: {'; '.join(found)}."
    )
    return ["", prose(said)]


def shortfall() -> list[str]:
    """Which methods gain little as published, and what they gain in a longer run."""
    short = [
        (method.about.title, published(name, method, runs(LONGER)))
        for name, method in known()
        if any(gain(row) < GAIN for row in published(name, method, runs(STUDY)))
    ]
    if not short:
        return []
    said = (
        f"With the published placement less than {GAIN:g} points of the linear probe above the untrained encoder: "
        f"{', '.join(title for title, _ in short)}."
    )
    longest = [(title + other_rate(row), row) for title, rows in short for row in rows]
    if not longest:
        return ["", prose(said)]
    said += (
        f" Their longest runs so far, with that placement (`tailfin study studies/{LONGER}.toml`); the untrained "
        f"encoder has {untrained([row for _, row in longest])}:"
    )
    head = ["method", "run", "precision", "linear (kNN)", "points above the untrained encoder"]
    rows = [
        [title, lasting(row), row["settings"]["precision"], figures(row), f"{gain(row):+.2f}"]
        for title, row in longest
    ]
    lists = {
        f"{GAIN:g} points or more above it in a longer run": [
            title for title, row in longest if gain(row) >= GAIN
        ],
        "Still less": [title for title, row in longest if gain(row) < GAIN],
        "Not run longer yet": [title for title, rows in short if not rows],
    }
    judged = [f"{words}: {', '.join(titles)}." for words, titles in lists.items() if titles]
    before = {row["settings"]["method"]: row["settings"]["precision"] for row in runs(STUDY)}
    changed = [row for _, row in longest if before[row["settings"]["method"]] != row["settings"]["precision"]]
    if changed:
        judged.append(
            f"{len(changed)} of them are in {precisions(changed)} where the short run was in another precision."
        )
    return ["", prose(said), "", *grid(head, rows), "", prose(" ".join(judged))]


def measured(name: str, method: type[Method]) -> list[str]:
    """The same of one method, in a sentence a study."""
    said = []
    own = of(name, runs(STUDY))
    if own:
        found = "; ".join(f"{row['settings']['momentum']} {figures(row)}" for row in own)
        said.append(f"Ours after {budget(own[0])}, linear (kNN): {found}; untrained {untrained(own)}.")
    for row in published(name, method, runs(LONGER)):
        usual, here = precisions(own), precisions([row])
        other = f", in {here} instead of {usual}" if usual not in ("", here) else ""
        found = f"{row['settings']['momentum']} {figures(row)}"
        said.append(
            f"Longer, after {budget(row)}{other_rate(row)}{other}: {found}; untrained {untrained([row])}."
        )
    return [line for each in said for line in ("", prose(each))]


def precisions(rows: Iterable[Row]) -> str:
    """What runs were computed in."""
    return " and ".join(sorted({row["settings"]["precision"] for row in rows}))


def published(name: str, method: type[Method], rows: Sequence[Row]) -> list[Row]:
    """The method's longest runs with the published placement: the one at the common learning rate, then others."""
    placement = method.recipe.placement
    wanted = "stopgrad" if placement == "none" and method.stop_gradient else placement
    found = [row for row in of(name, rows) if row["settings"]["momentum"] == wanted]
    most = max((row["settings"]["epochs"] for row in found), default=0)
    return sorted((row for row in found if row["settings"]["epochs"] == most), key=other_rate)


def of(name: str, rows: Sequence[Row]) -> list[Row]:
    """The runs of one method."""
    return [row for row in rows if row["settings"]["method"] == name]


@cache
def runs(study: str) -> tuple[Row, ...]:
    """Finished runs of a study of ours, by method and placement."""

    def place(row: Row) -> tuple[str, int]:
        return row["settings"]["method"], PLACEMENTS.index(row["settings"]["momentum"])

    return tuple(sorted(table.read(RESULTS / study).values(), key=place))


def gain(row: Row) -> float:
    """Points of the linear probe above the untrained encoder; 0 where a run was not judged."""
    return 0.0 if row["linear"] is None else float(row["linear"] - row["linear_untrained"])


def budget(row: Row) -> str:
    """How long a run was, and on what."""
    settings = row["settings"]
    data = settings["data"].upper().replace("CIFAR", "CIFAR-")
    return f"{settings['epochs']} epochs of {settings['limit']:,} {data} images{own_options(row)}"


def lasting(row: Row) -> str:
    """How long a run was."""
    return f"{row['settings']['epochs']} epochs{own_options(row)}"


def other_rate(row: Row) -> str:
    """The learning rate of a run, where it is not the common one."""
    rate = row["settings"]["lr"]
    return "" if rate == runs(STUDY)[0]["settings"]["lr"] else f" at lr {rate:g}"


def own_options(row: Row) -> str:
    """The options of its method that a run was given, in brackets."""
    options = " ".join(f"{name} {number(value)}" for name, value in row["settings"]["method_options"].items())
    return f" (`--method-options {options}`)" if options else ""


def figures(row: Row) -> str:
    """Linear and kNN accuracy, and a verdict that is not healthy."""
    verdict = "" if row["state"] == "healthy" else f", *{row['state']}*"
    if row["linear"] is None:
        return f"not judged{verdict}"
    return f"{row['linear']:.1f} ({row['knn']:.1f}){verdict}"


def untrained(rows: Sequence[Row]) -> str:
    """The untrained encoder's accuracies, from least to most: last bits may have the probe choose another penalty."""
    seen = [sorted({f"{row[f'{name}_untrained']:.1f}" for row in rows}) for name in ("linear", "knn")]
    linear, knn = (" to ".join(dict.fromkeys((each[0], each[-1]))) for each in seen)
    return f"{linear} ({knn})"


def number(value: float) -> str:
    """A whole number with all its digits, another one as short as it is."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


def prose(text: str) -> str:
    """A paragraph, wrapped; names with hyphens stay whole."""
    return fill(text, 118, break_on_hyphens=False, break_long_words=False)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
