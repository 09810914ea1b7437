"""Values read from loosely typed rows, and numbers written for people."""

import math
from collections.abc import Mapping, Sequence


def number(value: object) -> float | None:
    """`value` as a finite float; None for everything else (absent, text, NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: object) -> Mapping[str, object]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> Sequence[object]:
    """`value` where it is a list or tuple, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def percent(value: float | None) -> str:
    """A value in percent with one decimal; a dash where there is none."""
    return "–" if value is None else f"{value:.1f} %"


def share(fraction: float | None) -> str:
    """A fraction in [0, 1] as a percentage; what would round to nothing is written as less than 0.1 %."""
    if fraction is not None and 0 < fraction < 0.0005:
        return "< 0.1 %"
    return percent(None if fraction is None else 100 * fraction)


def count(value: float) -> str:
    """A count or a rate with thousands separated, and three significant digits below 100."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds of wall time in the two largest units that matter."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def setting(value: object) -> str:
    """One value of the settings as it would be written in a file."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(setting(each) for each in value) or "(empty)"
    return str(value)


def flatten(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows (dotted key, value), in their own order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", "(empty)" if isinstance(value, Mapping) else setting(value)))
    return rows
