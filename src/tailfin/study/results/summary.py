"""What a study says, made of its finished cells: verdicts, pictures and tables, for the page and for Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from tailfin.report.study_page import ClaimSection, StudyContent, Table
from tailfin.report.words import setting, share
from tailfin.run.config import Config
from tailfin.study.results import origins
from tailfin.study.results.arms import METRICS, Arm, contexts, depth
from tailfin.study.results.claims import CLAIMS, judge
from tailfin.study.results.findings import METRIC, Finding, State
from tailfin.study.results.pictures import picture
from tailfin.study.results.statistics import Difference, Estimate, estimate, holm, paired
from tailfin.study.spec import cells
from tailfin.study.spec.design import Design, Progress, Row, arm_key


@dataclass(frozen=True)
class Comparison:
    """An arm beside a control: the difference of each metric, in points."""

    arm: Arm
    control: Arm
    differences: Mapping[str, Difference]


def content(
    design: Design,
    progress: Progress,
    rows: Mapping[str, Row],
    failures: Sequence[tuple[str, str]],
    command: str,
) -> StudyContent:
    """Everything that the study says now, finished or not."""
    arms = gather(design, progress, rows)
    here = contexts(list(arms.values()))
    claims = []
    for claim in CLAIMS:
        verdict = judge(claim, here)
        claims.append(
            ClaimSection(
                claim.id,
                claim.title,
                claim.rule,
                verdict.state,
                verdict.words,
                _united(verdict.findings),
                picture(claim.id, here),
            )
        )
    own = [rows[cell.fingerprint] for cell in progress.cells if cell.fingerprint in rows]
    waiting = sum(entry.cell is None for entry in progress.entries)
    status = f"{len(own)} of {len(progress.cells)} cells are finished"
    status += f"; {waiting} more wait for the selection" if waiting else ""
    return StudyContent(
        title=design.study.title,
        question=design.study.question,
        status=f"{status}. Intervals are 95 % Student t intervals over seeds; n is the number of seeds.",
        claims=claims,
        arms=_arms(list(arms.values())),
        differences=_differences(comparisons(design, arms)),
        choices=_choices(design, progress),
        notes=design.notes,
        failures=[*failures, *((problem.partition(":")[0], problem) for problem in progress.problems)],
        settings=_shared(design),
        versions=[
            *origins.counted("computed with", "versions", list(arms.values()), own),
            *origins.counted("device", "device", list(arms.values()), own),
        ],
        command=command,
    )


def _united(findings: Sequence[Finding]) -> list[tuple[Sequence[str], State, str, tuple[str, ...]]]:
    """Contexts of which the same is said, the verdict, its reason and the figures."""
    same: dict[tuple[State, str, tuple[str, ...]], list[str]] = {}
    for each in findings:
        same.setdefault((each.state, each.words, each.evidence), []).append(each.context)
    return [(names, *said) for said, names in same.items()]


def gather(design: Design, progress: Progress, rows: Mapping[str, Row]) -> dict[tuple[str, str], Arm]:
    """The study's arms with their finished runs, by frame and key; see `arm_key`."""
    runs: dict[tuple[str, str], dict[int, Row]] = {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in progress.entries:
        place = (entry.frame, arm_key(entry.variant))
        settings[place] = {
            name: getattr(entry.variant, name)
            for name in dict.fromkeys(("method", "momentum", *design.differing))
            if name != "seed"
        }
        found = runs.setdefault(place, {})
        if entry.cell is not None and entry.cell.fingerprint in rows:
            found[entry.variant.seed] = rows[entry.cell.fingerprint]
    return {place: Arm(place[0], settings[place], found) for place, found in runs.items()}


def comparisons(design: Design, arms: Mapping[tuple[str, str], Arm]) -> list[Comparison]:
    """Each arm beside each of its controls, where at least one of them has a finished run; no pair both ways."""
    found: dict[frozenset[tuple[str, str]], Comparison] = {}
    variants = list({arm_key(each): each for each in design.variants}.values())
    # Two controls are each other's; `stopgrad - none` is the way round that says what the stop-gradient does.
    variants.sort(key=lambda variant: variant.momentum == "none")
    for variant in variants:
        for control in design.control_of(variant):
            for frame in dict.fromkeys(frame for frame, key in arms if key == arm_key(variant)):
                ours = arms[frame, arm_key(variant)]
                theirs = arms.get((frame, arm_key(control))) or arms.get(("", arm_key(control)))
                if theirs and (ours.rows or theirs.rows):
                    differences = {
                        metric: paired(ours.values(metric), theirs.values(metric)) for metric in METRICS
                    }
                    pair = frozenset(((ours.frame, arm_key(variant)), (theirs.frame, arm_key(control))))
                    found.setdefault(pair, Comparison(ours, theirs, differences))
    return list(found.values())


def _arms(arms: Sequence[Arm]) -> Table:
    chosen = _changing(arms)
    rows = []
    for arm in sorted((arm for arm in arms if arm.rows), key=lambda arm: (arm.where, depth(arm))):
        first = next(iter(arm.rows.values()))
        states = Counter(row["state"] for row in arm.rows.values())
        untrained = list(arm.values(f"{METRIC}_untrained").values())
        cost = list(arm.values("target_cost_measured").values())
        rate = list(arm.values("images_per_second").values())
        rows.append(
            (
                arm.where,
                arm.label,
                *(_plain(first["settings"].get(name)) for name in chosen),
                ", ".join(
                    state if count == len(arm.rows) else f"{count} {state}" for state, count in states.items()
                ),
                str(len(arm.rows)),
                *(
                    text
                    for metric in METRICS
                    for text in _figures(estimate(list(arm.values(metric).values())), "")
                ),
                f"{fmean(untrained):.2f}" if untrained else "–",
                share(fmean(cost)) if cost else "–",
                f"{fmean(rate):,.0f}" if rate else "–",
            )
        )
    heads = (
        "what",
        "placement",
        *(name.replace("_", " ") for name in chosen),
        "verdict",
        "n",
        *(text for name in METRICS.values() for text in (f"{name}, %", "95 % interval")),
        "untrained, %",
        "target path, measured",
        "images/s",
    )
    note = (
        "Test accuracy of the backbone, online weights; untrained is the linear probe on its initial weights. The "
        "target path's time is a share of a whole forward."
    )
    return Table(heads, rows, 3 + len(chosen), note if rows else "No cell is finished yet.")


def _differences(found: Sequence[Comparison]) -> Table:
    # Arms at their best that are also those of the common value are one comparison, however often they are shown.
    p = {_runs(each): each.differences[METRIC].p for each in found}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    others = [metric for metric in METRICS if metric != METRIC]
    rows = []
    order = sorted(range(len(found)), key=lambda i: (found[i].arm.where, _depth(found[i].arm), i))
    for place in order:
        each, difference = found[place], found[place].differences[METRIC]
        rows.append(
            (
                each.arm.where,
                f"{each.arm.momentum} - {each.control.momentum}"
                if each.arm.what == each.control.what
                else f"{each.arm.momentum} - {each.control.what} {each.control.momentum}",
                difference.words,
                str(difference.n),
                str(difference.left_out),
                *_figures(difference, "+"),
                _p(difference.p),
                _p(corrected[_runs(each)]),
                *(text for metric in others for text in _figures(each.differences[metric], "+")),
            )
        )
    heads = (
        "what",
        "difference",
        f"{METRICS[METRIC]} is",
        "n",
        "left out",
        f"{METRICS[METRIC]}, points",
        "95 % interval",
        "p",
        "p, Holm",
        *(text for metric in others for text in (f"{METRICS[metric]}, points", "95 % interval")),
    )
    note = (
        f"Paired by seed; seeds that one of both lacks are left out. p is that of the paired t-test on the "
        f"{METRICS[METRIC]}; of {len(p)} comparisons some reach p < 0.05 by chance alone, which Holm's correction "
        "allows for."
    )
    return Table(heads, rows, 3, note if rows else "No arm has a control to be compared with.")


def _runs(comparison: Comparison) -> tuple[frozenset[str], ...]:
    """The runs on both sides."""
    return tuple(
        frozenset(row["fingerprint"] for row in arm.rows.values())
        for arm in (comparison.arm, comparison.control)
    )


def _depth(arm: Arm) -> tuple[float, ...]:
    """Sorts arms as `depth`; those without a run come last."""
    return depth(arm) if arm.rows else (float("inf"),)


def _choices(design: Design, progress: Progress) -> Table | None:
    select = design.study.select
    if select is None:
        return None
    rows = [
        (
            choice.arm,
            *(
                "–" if value not in choice.scores else f"{choice.scores[value]:.1f}"
                for value in select.values
            ),
            f"{choice.value:g}",
        )
        for choice in progress.choices
    ]
    heads = ("arm", *(f"{select.setting} {value:g}" for value in select.values), "chosen")
    note = (
        f"Mean validation kNN in percent over {len(select.seeds)} seeds that no final run has "
        f"({', '.join(map(str, select.seeds))}); the validation images are training images held out."
    )
    return Table(heads, rows, 1, note if rows else "The selection is not finished.")


def _shared(design: Design) -> list[tuple[str, str]]:
    """Settings that all cells share, or that follow from what tells the cells apart.

    Those of momentum are asked of the cells with momentum, for others drop them. The placement is left out where it
    differs: the table of arms has it.
    """
    moving = [
        each for each in design.variants if each.momentum not in ("none", "stopgrad")
    ] or design.variants
    told = set(design.differing) | ({design.study.select.setting} if design.study.select else set())
    if "decay" in told:
        told.add("decay_end")
    if len({each.momentum for each in design.variants}) > 1:
        told.add("momentum")
    rows = []
    for name in cells.MATTERING:
        if name in ("seed", *told):
            continue
        asked = moving if name in cells.MOMENTUM else design.variants
        values = [cells.settings(each)[name] for each in asked]
        if all(value in (None, {}) for value in values):
            continue
        if all(value == values[0] for value in values):
            rows.append((name, _plain(values[0])))
        else:
            arms = _told_apart(design, asked, values)
            given = {arm: _plain(value) for arm, value in arms.items() if value not in (None, {})}
            rows.append((name, "; ".join(f"{value} for {arm}" for arm, value in given.items())))
    return rows


def _told_apart(design: Design, variants: Sequence[Config], values: Sequence[Any]) -> dict[str, Any]:
    """The values by what tells their variants apart: one setting where that settles them, else all."""
    keys = [key for key in design.differing if key not in ("seed", *cells.MOMENTUM)]
    found: dict[str, Any] = {}
    for some in (*([key] for key in keys), keys):
        found = {}
        arms = [Arm("", {key: getattr(each, key) for key in some}, {}).what for each in variants]
        if all(found.setdefault(arm, value) == value for arm, value in zip(arms, values, strict=True)):
            break
    return found


def _changing(arms: Sequence[Arm]) -> list[str]:
    """Settings of momentum, beside the placement, that runs with momentum differ in."""
    placed = [row["settings"] for arm in arms if arm.placed for row in arm.rows.values()]
    constant = all(settings.get("decay_end") == settings.get("decay") for settings in placed)
    return [
        name
        for name in cells.MOMENTUM[1:]
        if any(settings.get(name) != placed[0].get(name) for settings in placed)
        and not (name == "decay_end" and constant)
    ]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else setting(value)


def _figures(found: Estimate, sign: Literal["", "+"]) -> tuple[str, str]:
    """Mean and interval; with "+" the sign is always written."""
    if found.n == 0:
        return "–", ""
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.2f}", "one seed"
    return f"{found.mean:{sign}.2f}", f"[{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
