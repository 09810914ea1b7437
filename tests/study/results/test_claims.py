"""Verdicts on made-up studies whose truth is known."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tailfin.run.config import Config
from tailfin.study.results import summary
from tailfin.study.results.arms import contexts
from tailfin.study.results.claims import CLAIMS, Verdict, judge
from tailfin.study.spec.cells import Compute
from tailfin.study.spec.design import Design
from tailfin.study.spec.file import read

from ..synthetic import Fluctuation, Rule, design, placed_at, rows, write

GRID = """
[grid]
momentum = ["none", "stopgrad", "stem", ":layer1", "layer4:", "projector", "all"]
seed = [0, 1, 2, 3]
"""


def verdict(
    folder: Path,
    claim: str,
    linear: Rule,
    fluctuation: Fluctuation | None = None,
    cost: Callable[[Config], float] | None = None,
    grid: str = GRID,
    seeds: int | None = None,
) -> Verdict:
    study = design(folder, grid, seeds)
    made = rows(study, linear, fluctuation, cost)
    arms = summary.gather(study, study.progress(made), made)
    return judge(next(each for each in CLAIMS if each.id == claim), contexts(list(arms.values())))


def noisy(effect: Callable[[Config], float], noise: float = 0.2) -> Rule:
    """An accuracy: the seed's own level, an effect, and noise that is no seed's alone."""

    def linear(config: Config) -> float:
        draw = random.Random(f"{config.method} {config.momentum} {config.decay} {config.seed}")
        return 50 + 5 * config.seed + effect(config) + noise * draw.gauss(0, 1)

    return linear


def by(**effects: float) -> Rule:
    """The effect of some placements; `late4` stands for layer4:, and what is not named has none."""
    names = {"late4": "layer4:", "early1": ":layer1"}
    table = {names.get(key, key): value for key, value in effects.items()}
    return lambda config: table.get(config.momentum, 0.0)


@pytest.mark.parametrize(
    ("effects", "state", "words"),
    [
        ({"all": 3.0}, "supported", "higher than without momentum, and than with the stop-gradient alone"),
        ({"all": -3.0}, "not supported", "lower than without momentum"),
        ({"all": 3.0, "stopgrad": 3.0}, "no difference found", "no difference to the stop-gradient alone"),
        ({"all": 0.0}, "no difference found", "no difference to training without momentum"),
        ({"stopgrad": 3.0}, "not supported", "lower than with the stop-gradient alone"),
    ],
)
def test_c1(tmp_path: Path, effects: dict[str, float], state: str, words: str) -> None:
    found = verdict(tmp_path, "C1", noisy(by(**effects)))
    assert found.state == state
    assert words in found.words
    assert any(line.startswith("all - none: ") and "n = 4" in line for line in found.findings[0].evidence)


def test_c1_speaks_of_methods_published_without_momentum_alone(tmp_path: Path) -> None:
    grid = GRID + 'method = ["byol"]\n'
    found = verdict(tmp_path, "C1", noisy(by(all=3.0)), grid=grid)
    assert (found.state, found.words) == ("not tested", "no finished run that the claim speaks of")


@pytest.mark.parametrize(
    ("effects", "state", "words"),
    [
        ({"late4": 3.0, "projector": 3.0}, "supported", "gains, and more than in the first"),
        ({"stem": -5.0, "early1": -5.0}, "not supported", "changes more than in the last"),
        (
            {"stem": 5.0, "early1": 5.0, "late4": 2.0, "projector": 2.0},
            "not supported",
            "first parts changes more",
        ),
        ({"late4": -3.0, "projector": -3.0}, "not supported", "does harm"),
        ({"all": 9.0}, "no difference found", "no difference between the last parts and the first"),
    ],
)
def test_c3(tmp_path: Path, effects: dict[str, float], state: str, words: str) -> None:
    found = verdict(tmp_path, "C3", noisy(by(**effects)))
    assert (found.state, words in found.words) == (state, True), found.words


def test_c3_needs_arms_on_both_sides(tmp_path: Path) -> None:
    grid = '[grid]\nmomentum = ["all", "projector"]\nseed = [0, 1]\n'
    found = verdict(tmp_path, "C3", noisy(by()), grid=grid)
    assert (found.state, found.words) == ("not tested", "no arm with momentum in the first parts alone")


@pytest.mark.parametrize(
    ("effects", "noise", "state", "words"),
    [
        ({"projector": 2.0}, 0.1, "supported", "better"),
        ({"projector": -0.3}, 0.02, "supported", "comparable"),
        ({"projector": -4.0}, 0.1, "not supported", "worse"),
        ({}, 3.0, "no difference found", "too few seeds"),
    ],
)
def test_c5(tmp_path: Path, effects: dict[str, float], noise: float, state: str, words: str) -> None:
    found = verdict(tmp_path, "C5", noisy(by(**effects), noise))
    assert (found.state, words in found.words) == (state, True), found.words


@pytest.mark.parametrize(
    ("cost", "state"),
    [({"projector": 0.01, "all": 1.0}, "supported"), ({"projector": 0.9, "all": 1.0}, "not supported"),
     ({"projector": 0.5, "all": 0.2}, "not supported")],
)  # fmt: skip
def test_c6(tmp_path: Path, cost: dict[str, float], state: str) -> None:
    def measured(config: Config) -> float:
        return cost.get(config.momentum, 0.0) + 0.001 * config.seed

    assert verdict(tmp_path, "C6", noisy(by()), cost=measured).state == state


def test_c6_with_costs_that_vary_is_not_told(tmp_path: Path) -> None:
    def measured(config: Config) -> float:
        return (0.02, 0.3, 0.05, 0.1)[config.seed] if config.momentum == "projector" else 1.0

    assert verdict(tmp_path, "C6", noisy(by()), cost=measured).state == "no difference found"


def depths(factor: float) -> Fluctuation:
    """Fluctuation that grows by `factor` from part to part."""

    def fluctuation(config: Config, part: int) -> float:
        # Of what a run differs in here alone: a new setting must not draw other numbers.
        draws = random.Random(f"{config.method} {config.data} {config.momentum} {config.seed} {part}")
        return 0.1 * factor**part * (1 + 0.01 * draws.gauss(0, 1))

    return fluctuation


@pytest.mark.parametrize(
    ("factor", "state"), [(1.3, "supported"), (0.8, "not supported"), (1.0, "no difference found")]
)
def test_c4(tmp_path: Path, factor: float, state: str) -> None:
    found = verdict(tmp_path, "C4", noisy(by()), depths(factor))
    assert found.state == state
    assert len(found.findings[0].evidence) == 2


def test_c4_and_c2_without_a_record(tmp_path: Path) -> None:
    for claim in ("C2", "C4"):
        found = verdict(tmp_path, claim, noisy(by(all=2.0)))
        assert (found.state, found.words) == (
            "not tested",
            "no run says how its gradients fluctuate: none recorded it for 20 steps after the first tenth",
        )


def calming(config: Config, part: int) -> float:
    """Calmer by a share that differs from placement to placement."""
    share = {"stem": 0.0, ":layer1": 0.1, "layer4:": 0.2, "projector": 0.3, "all": 0.4}
    return (1 + part) * (1 - share.get(config.momentum, 0.0)) * (1 + 0.01 * (config.seed % 2))


@pytest.mark.parametrize(
    ("direction", "state"), [(1.0, "supported"), (0.0, "not tested"), (-1.0, "not supported")]
)
def test_c2(tmp_path: Path, direction: float, state: str) -> None:
    def gain(config: Config) -> float:
        shift = 0.0 if direction == 0 or config.momentum in ("none", "stopgrad") else 4.0
        return shift + direction * 20 * (1 - calming(config, 0) / calming(Config(seed=config.seed), 0))

    found = verdict(tmp_path, "C2", noisy(gain, 0.1), calming)
    assert found.state == state
    if state == "not tested":
        assert "no benefit to explain" in found.words
    else:
        # A tenth calmer brings 20 x 0.1 = 2 points.
        assert f"{direction * 2:+.1f}" in found.findings[0].evidence[0]


def test_c6_tells_the_share_predicted_and_measured_and_no_seconds(tmp_path: Path) -> None:
    def measured(config: Config) -> float:
        return {"projector": 0.02, "all": 1.0}.get(config.momentum, 0.0) + 0.002 * config.seed

    [finding] = verdict(tmp_path, "C6", noisy(by()), cost=measured).findings
    assert len(finding.evidence) == 4
    # One of six equal parts; the mean of 2.0, 2.2, 2.4 and 2.6 %, and t(0.975, 3) s / 2 is 0.41.
    words = (
        "projector: target path 16.7 % of a forward's FLOPs predicted, 2.3 % [1.9, 2.7] of its time measured"
    )
    assert words in finding.evidence
    assert not any(" s of training" in line for line in finding.evidence)


def test_a_run_with_auto_is_no_further_point_of_c2(tmp_path: Path) -> None:
    def twin(config: Config, part: int) -> float:
        return calming(replace(config, momentum=placed_at(config)), part)

    def gain(config: Config) -> float:
        return 4.0 + 20 * (1 - twin(config, 0) / calming(Config(seed=config.seed), 0))

    def linear(config: Config) -> float:
        return noisy(gain, 0.1)(replace(config, momentum=placed_at(config)))

    fixed = verdict(tmp_path, "C2", linear, twin)
    both = verdict(tmp_path, "C2", linear, twin, grid=GRID.replace('"all"]', '"all", "auto"]'))
    assert both == fixed
    assert fixed.state == "supported"


def test_the_table_of_arms_says_what_auto_chose(tmp_path: Path) -> None:
    study = design(tmp_path, GRID.replace('"all"]', '"auto", "all"]'))
    made = rows(study, noisy(by()))
    found = summary.content(study, study.progress(made), made, [], "tailfin study x").arms
    place = list(found.heads).index("placement")
    names = [row[place] for row in found.rows]
    assert names == [
        "none", "stopgrad", "stem", ":layer1", "all", "layer4:", "projector", "auto (projector 3, layer4: 1)"
    ]  # fmt: skip


def test_one_seed_tests_nothing_but_shows_its_figures(tmp_path: Path) -> None:
    for claim in ("C1", "C3", "C4", "C5", "C6"):
        found = verdict(tmp_path, claim, noisy(by(all=3.0)), depths(1.3), seeds=1)
        assert (found.state, "one seed" in str(found.findings[0].evidence) or claim == "C6") == (
            "not tested",
            True,
        )
        assert "no interval" in found.words


def test_a_claim_is_as_strong_as_its_weakest_context(tmp_path: Path) -> None:
    grid = GRID + 'method = ["simclr", "byol"]\n'
    found = verdict(
        tmp_path, "C5", noisy(lambda c: -4.0 * (c.method == "byol") * (c.momentum == "projector")), grid=grid
    )
    assert found.state == "not supported"
    assert [(f.context, f.state) for f in found.findings] == [
        ("simclr", "supported"),
        ("byol", "not supported"),
    ]
    assert found.words == "of 2 comparisons: supported in 1, not supported in 1"


def test_missing_seeds_are_left_out(tmp_path: Path) -> None:
    study = design(tmp_path, GRID)
    made = rows(study, noisy(by(all=3.0)), without=lambda c: (c.momentum, c.seed) == ("all", 2))
    arms = summary.gather(study, study.progress(made), made)
    found = {
        (each.arm.momentum, each.control.momentum): each.differences["linear"]
        for each in summary.comparisons(study, arms)
    }
    assert (found["all", "none"].n, found["all", "none"].left_out) == (3, 1)
    assert (found["projector", "none"].n, found["projector", "none"].left_out) == (4, 0)
    # Two controls are compared once, not both ways.
    assert ("stopgrad", "none") in found
    assert ("none", "stopgrad") not in found


def test_sets_of_runs_after_a_selection_share_their_controls(tmp_path: Path) -> None:
    grid = '[grid]\nmomentum = ["projector", "layer4:", "all"]\nseed = [0, 1, 2]\n'
    grid += '[select]\nsetting = "decay"\nvalues = [0.9, 0.99]\nseeds = [9]\n'
    study = Design(read(write(tmp_path, grid)), Compute("cpu", "fp32", "contiguous"))

    def likes(config: Config) -> float:
        return 2.0 * ((config.momentum == "projector") == (config.decay == 0.99)) if config.decay else 0.0

    made = rows(study, noisy(likes, 0.05), depths(1.3))
    arms = summary.gather(study, study.progress(made), made)
    found = {context.name: context for context in contexts(list(arms.values()))}
    assert list(found) == ["simclr, at its best decay", "simclr, at one decay"]
    for context in found.values():
        assert set(context.arms) == {"none", "stopgrad", "projector", "layer4:", "all"}
    c5 = judge(CLAIMS[4], list(found.values()))
    # Each at its best they are equal; at one decay, the one that most arms like, the projector loses.
    assert [f.state for f in c5.findings] == ["supported", "not supported"]
    # The arms without momentum are the same in both sets, and say so once.
    c4 = judge(CLAIMS[3], list(found.values()))
    assert [f.context for f in c4.findings] == ["simclr"]
    pairs = [(c.arm.frame, c.arm.momentum, c.control.momentum) for c in summary.comparisons(study, arms)]
    assert pairs.count(("", "stopgrad", "none")) == 1
    assert ("at its best decay", "projector", "stopgrad") in pairs
    assert ("at one decay", "projector", "stopgrad") in pairs


def test_one_measure_of_fluctuation_alone_supports_nothing(tmp_path: Path) -> None:
    study = design(tmp_path, GRID)
    made = rows(study, noisy(by(all=3.0)), depths(1.3))
    made = {key: {k: v for k, v in row.items() if "_jump" not in k} for key, row in made.items()}
    found = contexts(list(summary.gather(study, study.progress(made), made).values()))
    for claim in (CLAIMS[1], CLAIMS[3]):
        assert judge(claim, found).state == "not tested"


def test_the_page_names_the_decay_and_the_untrained_encoder(tmp_path: Path) -> None:
    study = design(tmp_path, GRID)
    made = rows(study, noisy(by()))
    content = summary.content(study, study.progress(made), made, [], "tailfin study x")
    # Runs without momentum have no decay; it is shared by all those that have one.
    assert {"decay", "decay_end", "buffers"} <= dict(content.settings).keys()
    assert "momentum" not in dict(content.settings)
    place = list(content.arms.heads).index("untrained, %")
    assert {row[place] for row in content.arms.rows} == {"25.00"}


def test_contexts_of_which_the_same_is_said_share_a_line(tmp_path: Path) -> None:
    study = design(
        tmp_path,
        '[grid]\nmethod = ["simclr", "byol", "dcl"]\nmomentum = ["all", "projector"]\nseed = [0, 1]\n',
    )
    made = rows(study, noisy(by()))
    claims = {
        c.id: c for c in summary.content(study, study.progress(made), made, [], "tailfin study x").claims
    }
    [(who, state, words, figures)] = claims["C3"].findings
    assert (who, state, figures) == (["simclr", "byol", "dcl"], "not tested", ())
    assert words == "no arm with momentum in the first parts alone"
    assert len(claims["C1"].findings) == 2  # those of SimCLR and DCL have figures of their own
