import math

import pytest

from tailfin.report.words import count, duration, flatten, number, percent, share


@pytest.mark.parametrize(
    ("value", "found"),
    [(3, 3.0), (0.5, 0.5), (True, None), ("3", None), (None, None), (math.nan, None), (math.inf, None)],
)
def test_number(value: object, found: float | None) -> None:
    assert number(value) == found


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "0.2 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (119.6, "2 min 00 s"),
        (3599.7, "1 h 00 min"),
        (40321, "11 h 12 min"),
        (3.6e6, "1,000 h 00 min"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0.021, "2.1 %"), (0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.0006, "0.1 %"), (1, "100.0 %"), (None, "–")],
)
def test_share(fraction: float | None, said: str) -> None:
    assert share(fraction) == said


@pytest.mark.parametrize(
    ("value", "said"), [(2093.4, "2,093"), (87.26, "87.3"), (45000, "45,000"), (0.0123, "0.0123"), (7.0, "7")]
)
def test_count(value: float, said: str) -> None:
    assert count(value) == said


def test_percent_of_nothing_is_a_dash() -> None:
    assert (percent(57.54), percent(None)) == ("57.5 %", "–")


def test_flatten_names_every_leaf() -> None:
    tree = {"a": {"b": 1, "c": {"d": [0.9, 0.999], "e": {}}}, "f": None, "g": True, "h": []}
    assert flatten(tree) == [
        ("a.b", "1"),
        ("a.c.d", "0.9, 0.999"),
        ("a.c.e", "(empty)"),
        ("f", "none"),
        ("g", "true"),
        ("h", "(empty)"),
    ]
