"""The grammar of placements, the fork and the predicted cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailfin.errors import UserError
from tailfin.momentum.placement import Placement

NAMES = ("stem", "layer1", "layer2", "layer3.0", "layer3.1", "layer4", "projector")


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("none", ()),
        ("stopgrad", ()),
        ("all", NAMES),
        ("backbone", NAMES[:-1]),
        ("projector", ("projector",)),
        ("layer3:", NAMES[3:]),
        (":layer2", NAMES[:3]),
        (":layer3", NAMES[:5]),
        ("layer1:layer3", NAMES[1:5]),
        ("layer3", ("layer3.0", "layer3.1")),
        ("layer3.1", ("layer3.1",)),
        ("projector, stem", ("stem", "projector")),
        ("stem,layer4:", ("stem", "layer4", "projector")),
    ],
)
def test_grammar(text: str, placed: tuple[str, ...]) -> None:
    assert Placement.parse(text, NAMES).placed == placed


@pytest.mark.parametrize(
    ("text", "placed"),
    [
        ("stages.1", ("stages.1",)),
        ("stages.1:stages.1", ("stages.1",)),
        (":stages.1", ("stages.0", "stages.1")),
        ("stages.10:", ("stages.10", "projector")),
        ("stages", ("stages.0", "stages.1", "stages.10")),
    ],
)
def test_a_name_stands_for_what_follows_its_dot_and_not_for_longer_names(
    text: str, placed: tuple[str, ...]
) -> None:
    names = ("stages.0", "stages.1", "stages.10", "projector")
    assert Placement.parse(text, names).placed == placed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer9", r"unknown part 'layer9' in placement 'layer9'.*did you mean 'layer\d'"),
        ("projecter", "did you mean 'projector'"),
        ("layer4:stem", "'layer4' comes after 'stem'"),
        ("stem,,layer1", "empty entry"),
        (":", "empty entry"),
        ("", "empty entry"),
        ("all,stem", "'all' stands alone"),
    ],
)
def test_wrong_placements_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Placement.parse(text, NAMES)


@given(st.sets(st.sampled_from(NAMES), min_size=1), st.lists(st.integers(0, 1000), min_size=7, max_size=7))
def test_any_subset_is_legal_and_costs_its_tail(subset: set[str], counts: list[int]) -> None:
    placement = Placement.parse(",".join(sorted(subset)), NAMES)
    assert set(placement.placed) == subset
    first = min(NAMES.index(name) for name in subset)
    assert placement.fork == first
    flops = dict(zip(NAMES, counts, strict=True))
    expected = sum(counts[first:]) / sum(counts) if sum(counts) else 0
    assert placement.cost(flops) == pytest.approx(expected)


@pytest.mark.parametrize("control", ["none", "stopgrad"])
def test_controls_cost_nothing(control: str) -> None:
    assert Placement.parse(control, NAMES).cost(dict.fromkeys(NAMES, 5)) == 0
