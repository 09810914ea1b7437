"""What the finished runs say about the claims on momentum encoders (arXiv 2208.05744): figures in, verdicts out.

Every rule is written here before any study runs; none knows an outcome. Accuracies are those of the linear probe on
the test images, intervals are 95 % Student t intervals of differences paired by seed. A claim over several contexts
(methods, data sets, sets of final runs) is as strong as the weakest of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tailfin import methods
from tailfin.study.results.arms import Context
from tailfin.study.results.findings import (
    MEASURES,
    Finding,
    State,
    agreement,
    figures,
    fluctuation,
    gain,
    mean_gain,
    needed,
    told,
    too_few,
    trend,
)
from tailfin.study.results.statistics import Estimate, estimate, paired

WEAKEST_FIRST: tuple[State, ...] = ("not supported", "no difference found", "supported")
MARGIN = 1.0
"""Points of accuracy that two arms may differ by and still be called comparable."""
UNHEARD = "no run says how its gradients fluctuate: none recorded it for 20 steps after the first tenth"
DOUBLE = 0.1
"""Share of a forward pass below which the target path no longer counts as a second one."""


@dataclass(frozen=True)
class Verdict:
    """What the study says about a claim.

    Attributes:
        state: The weakest of its findings.
        words: Why.
        findings: One a context.
    """

    state: State
    words: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Claim:
    """A claim of arXiv 2208.05744 in our words, and the rule that tests it.

    Attributes:
        id: C1 to C6.
        title: The claim.
        rule: What the verdict is by, for people.
        test: What one context says; None where the claim does not speak of it.
    """

    id: str
    title: str
    rule: str
    test: Callable[[Context], Finding | None]


def judge(claim: Claim, contexts: Sequence[Context]) -> Verdict:
    """The verdict of all contexts together."""
    # Two sets of runs share the arms that a selection does not touch, and then say the same of them.
    found = list(dict.fromkeys(f for context in contexts if (f := claim.test(context)) is not None))
    tested = [finding for finding in found if finding.state != "not tested"]
    if not tested:
        reasons = list(dict.fromkeys(finding.words for finding in found))
        return Verdict(
            "not tested", "; ".join(reasons) or "no finished run that the claim speaks of", tuple(found)
        )
    state = next(s for s in WEAKEST_FIRST if any(finding.state == s for finding in tested))
    if len(tested) == 1:
        return Verdict(state, f"{tested[0].context}: {tested[0].words}", tuple(found))
    counts = ", ".join(
        f"{s} in {count}" for s in reversed(WEAKEST_FIRST) if (count := sum(f.state == s for f in tested))
    )
    return Verdict(state, f"of {len(tested)} comparisons: {counts}", tuple(found))


def _improves(context: Context) -> Finding | None:
    if methods.load(context.method).recipe_at(context.image_size).placement != "none":
        return None
    found = needed(context, "all", "none", "stopgrad")
    if isinstance(found, Finding):
        return found
    arm, none, stopgrad = found
    over_none, over_control = gain(arm, none), gain(arm, stopgrad)
    evidence = [told("all - none", over_none), told("all - stopgrad", over_control)]
    if "projector" in context.arms:
        evidence += [
            told(f"projector - {control.momentum}", gain(context.arms["projector"], control))
            for control in (none, stopgrad)
        ]
    signs = over_none.sign, over_control.sign
    if None in signs:
        return too_few(context, evidence)
    if -1 in signs:
        loser = "without momentum" if signs[0] == -1 else "with the stop-gradient alone"
        return Finding(context.name, "not supported", f"the accuracy is lower than {loser}", tuple(evidence))
    if signs == (1, 1):
        words = "higher than without momentum, and than with the stop-gradient alone"
        return Finding(context.name, "supported", words, tuple(evidence))
    words = (
        "higher than without momentum, but no difference to the stop-gradient alone was found"
        if signs[0] == 1
        else "no difference to training without momentum was found"
    )
    return Finding(context.name, "no difference found", words, tuple(evidence))


def _calms(context: Context) -> Finding | None:
    found = needed(context, "stopgrad")
    if isinstance(found, Finding):
        return found
    control = found[0]
    arms = context.placed
    if not any(fluctuation(control, measure) for measure in MEASURES):
        return Finding(context.name, "not tested", UNHEARD)
    if len(arms) < 3:
        return Finding(context.name, "not tested", f"{len(arms)} arms with momentum; a trend needs 3")
    gains = [gain(arm, control) for arm in arms]
    evidence, signs = [], []
    for measure, name in MEASURES.items():
        slopes = trend(arms, control, measure)
        signs.append(slopes.sign)
        evidence.append(
            f"gain for each tenth that the {name} is calmer than under stopgrad: {figures(slopes, 'points')}"
        )
    if None in signs:
        return too_few(context, evidence)
    if not any(each.sign == 1 for each in gains):
        return Finding(
            context.name, "not tested", "no placement gained over stopgrad, so there is no benefit to explain",
            tuple(evidence),
        )  # fmt: skip
    return agreement(
        context,
        signs,
        evidence,
        "placements that calm the gradients more gain more",
        "placements that calm the gradients more gain less",
        "no relation between calmer gradients and the gain was found",
    )


def _late_parts_matter(context: Context) -> Finding | None:
    found = needed(context, "stopgrad")
    if isinstance(found, Finding):
        return found
    early, late = context.early_and_late()
    if not early or not late:
        missing = "first" if not early else "last"
        return Finding(context.name, "not tested", f"no arm with momentum in the {missing} parts alone")
    early_gain, late_gain = (mean_gain(arms, found[0]) for arms in (early, late))
    early_effect, late_effect = estimate(list(early_gain.values())), estimate(list(late_gain.values()))
    # Sizes of effects: each in the direction that its own mean has, since harm matters as well.
    size = {
        name: {seed: value if effect.mean >= 0 else -value for seed, value in gains.items()}
        for name, gains, effect in (("early", early_gain, early_effect), ("late", late_gain, late_effect))
    }
    more = paired(size["late"], size["early"])
    evidence = [
        f"momentum in the last parts ({', '.join(a.momentum for a in late)}) - stopgrad: {figures(late_effect)}",
        f"momentum in the first parts ({', '.join(a.momentum for a in early)}) - stopgrad: {figures(early_effect)}",
        f"size of the late effect - size of the early one: {figures(more)}",
    ]
    if late_effect.sign is None or more.sign is None:
        return too_few(context, evidence)
    if more.sign == -1:
        return Finding(
            context.name,
            "not supported",
            "momentum in the first parts changes more than in the last",
            tuple(evidence),
        )
    if late_effect.sign == -1:
        return Finding(context.name, "not supported", "momentum in the last parts does harm", tuple(evidence))
    if late_effect.sign == 1 and more.sign == 1:
        words = "momentum in the last parts gains, and more than in the first"
        return Finding(context.name, "supported", words, tuple(evidence))
    words = (
        "momentum in the last parts changes more than in the first, but no gain over stopgrad was found"
        if more.sign == 1
        else "no difference between the last parts and the first was found"
    )
    return Finding(context.name, "no difference found", words, tuple(evidence))


def _ends_fluctuate(context: Context) -> Finding | None:
    arm = context.arms.get("none") or context.arms.get("stopgrad")
    if arm is None:
        return Finding(context.name, "not tested", "no arm without momentum")
    context = replace(context, name=arm.where)
    if not any(fluctuation(arm, measure) for measure in MEASURES):
        return Finding(context.name, "not tested", UNHEARD)
    evidence, signs = [], []
    for measure, name in MEASURES.items():
        half = len(arm.parts) / 2
        late, early = {}, {}
        for seed, values in fluctuation(arm, measure).items():
            late[seed] = fmean(v for place, v in enumerate(values) if place >= half)
            early[seed] = fmean(v for place, v in enumerate(values) if place < half)
        difference = paired(late, early)
        signs.append(difference.sign)
        whole = sum(early.values())
        ratio = f"; {sum(late.values()) / whole:.2f} times as much" if whole else ""
        evidence.append(f"{name}, last half of the parts - first half: {figures(difference, '')}{ratio}")
    if None in signs:
        return too_few(context, evidence)
    return agreement(
        context,
        signs,
        evidence,
        "the gradient fluctuates more in the last parts",
        "the gradient fluctuates less in the last parts",
        "no difference between the first and the last parts was found",
    )


def _projector_suffices(context: Context) -> Finding | None:
    found = needed(context, "projector", "all")
    if isinstance(found, Finding):
        return found
    difference = gain(*found)
    evidence = [told("projector - all", difference), f"margin of comparability, in points: {MARGIN:g}"]
    if difference.low is None or difference.high is None:
        return too_few(context, evidence)
    if difference.low > -MARGIN:
        words = "better" if difference.low > 0 else "comparable: by no more than the margin lower"
        return Finding(context.name, "supported", f"the projector alone is {words}", tuple(evidence))
    if difference.high < 0:
        return Finding(context.name, "not supported", "the projector alone is worse", tuple(evidence))
    words = "no difference was found, but too few seeds to rule out one larger than the margin"
    return Finding(context.name, "no difference found", words, tuple(evidence))


def _projector_is_cheap(context: Context) -> Finding | None:
    found = needed(context, "projector", "all")
    if isinstance(found, Finding):
        return found
    projector, everything = found
    column = "target_cost_measured"
    cost = estimate(list(projector.values(column).values()))
    saved = paired(everything.values(column), projector.values(column))
    # No seconds of training: runs side by side slow each other down, by what depends on their company.
    evidence = [
        f"{name}: target path {100 * fmean(predicted.values()):.1f} % of a forward's FLOPs predicted, "
        f"{_share(estimate(list(measured.values())))} of its time measured"
        for name, arm in context.arms.items()
        if name in ("none", "stopgrad", "projector", "all")
        and (predicted := arm.values("target_cost_predicted"))
        and (measured := arm.values(column))
    ]
    if cost.low is None or cost.high is None or saved.sign is None:
        return too_few(context, evidence)
    if cost.low >= DOUBLE or saved.sign == -1:
        words = "momentum on the projector alone does not avoid the second forward"
        return Finding(context.name, "not supported", words, tuple(evidence))
    if cost.high < DOUBLE and saved.sign == 1:
        words = f"the target path costs less than {100 * DOUBLE:.0f} % of a forward, and less than under all"
        return Finding(context.name, "supported", words, tuple(evidence))
    return Finding(
        context.name, "no difference found", "the measured costs vary too much to tell", tuple(evidence)
    )


def _share(found: Estimate) -> str:
    """A share in percent with its interval."""
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f} %"
    return f"{100 * found.mean:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


CLAIMS = (
    Claim(
        "C1",
        "Momentum can be put into a framework that was published without it, such as SimCLR, and improves it.",
        "Supported where the whole encoder with momentum (all) beats both training without (none) and the "
        "stop-gradient alone (stopgrad), the control for what comes with momentum beside the averaging.",
        _improves,
    ),
    Claim(
        "C2",
        "The benefit is at least partly an effect of stability.",
        "Supported where, from placement to placement, calmer gradients than under stopgrad go with a larger gain, "
        "by both measures of fluctuation; not tested where no placement gains. A relation over arms: it cannot prove "
        "a cause.",
        _calms,
    ),
    Claim(
        "C3",
        "Momentum on the parts near the encoder's input matters little; on the latter parts it matters much more.",
        "Supported where placements within the last half of the parts gain over stopgrad, and by more than those "
        "within the first half change it, for better or worse.",
        _late_parts_matter,
    ),
    Claim(
        "C4",
        "The gradient of the loss with respect to a block's output fluctuates much more in the final layers.",
        "Supported where, in training without momentum, the last half of the parts fluctuates more than the first "
        "half by both measures: the variation around the trend and the jump from step to step.",
        _ends_fluctuate,
    ),
    Claim(
        "C5",
        "Momentum on the projector alone is comparable to, or better than, momentum on the whole encoder.",
        f"Supported where the interval of projector - all lies above -{MARGIN:g}, a margin in points fixed "
        "beforehand; not supported where it lies below zero otherwise.",
        _projector_suffices,
    ),
    Claim(
        "C6",
        "Momentum on the projector alone avoids the second forward computation.",
        f"Supported where the measured target path of projector takes less than {100 * DOUBLE:.0f} % of a forward, "
        "and less than that of all.",
        _projector_is_cheap,
    ),
)
