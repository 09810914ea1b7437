"""What finished runs were computed with: where it differs from run to run, and from what the next will be."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tailfin.study.results.arms import Arm
from tailfin.study.spec.design import Row

MOST_NAMED = 8
"""Groups of runs, or versions of one thing, that are named; a study has hundreds of cells."""


def counted(what: str, column: str, arms: Sequence[Arm], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each value of a column with its number of runs, the commonest first, and which runs have the others.

    Args:
        what: What to call the column.
        column: `versions` or `device`.
        arms: The study's arms with their rows.
        rows: Each finished run once.
    """
    counts = Counter(str(row[column]) for row in rows)
    found: list[tuple[str, str]] = []
    for value, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        words = f"{value}: {count} run{'s' * (count != 1)}"
        if found:
            words += f", {_which([row for row in rows if row[column] == value], arms)}"
        found.append((what, words))
    return found


def other_than(now: Mapping[str, str], rows: Sequence[Row]) -> str | None:
    """What finished runs were computed with where that is not `now`, in a sentence; None where all is the same."""
    told = [dict(each.split(" ", 1) for each in str(row["versions"]).split(", ")) for row in rows]
    words = []
    for name, version in now.items():
        others = Counter(each.get(name, "not recorded") for each in told if each.get(name) != version)
        if others:
            listed = [f"{other} in {count}" for other, count in others.most_common(MOST_NAMED)]
            listed += ["others"] if len(others) > MOST_NAMED else []
            words.append(f"{name} {', '.join(listed)}, now {version}")
    if not words:
        return None
    return f"finished cells were not computed with what the next ones will be: {'; '.join(words)}"


def _which(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """Arms and seeds of some runs; placements that share all else are named together."""
    left = {row["fingerprint"] for row in rows}
    groups: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        seeds = [seed for seed, row in sorted(arm.rows.items()) if row["fingerprint"] in left]
        if seeds:
            left -= {row["fingerprint"] for row in arm.rows.values()}
            named = "" if len(seeds) == len(arm.rows) else f" (seed {', '.join(map(str, seeds))})"
            groups.setdefault((arm.where, named), []).append(arm.momentum)
    words = [f"{where} {', '.join(placements)}{named}" for (where, named), placements in groups.items()]
    words += [f"{len(left)} of the selection"] if left else []
    more = len(words) - MOST_NAMED
    return "; ".join(words[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
