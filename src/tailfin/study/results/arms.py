"""Arms of a study: the same settings over several seeds, and the contexts in which placements are compared."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailfin.momentum.placement import Placement
from tailfin.study.spec import cells
from tailfin.study.spec.design import Row
from tailfin.training.misfits import AUTO

SMALL_SIDE = 32
"""Pixels, of data whose size a study leaves open; see `cells.SMALL`."""
METRICS = {"linear": "linear probe", "knn": "kNN"}
"""Columns of accuracies in percent, the one that verdicts rest on first."""


@dataclass(frozen=True)
class Arm:
    """One combination of settings, seeds aside.

    Attributes:
        frame: Which set of final runs it belongs to; "" for all of them.
        settings: `method`, `momentum` (the placement) and whatever else the study varies, seeds aside.
        rows: Its finished runs by seed.
    """

    frame: str
    settings: Mapping[str, Any]
    rows: Mapping[int, Row]

    @property
    def momentum(self) -> str:
        """The placement."""
        return str(self.settings["momentum"])

    @property
    def parts(self) -> tuple[str, ...]:
        """The encoder's parts in order; empty while no run is finished."""
        return self._words("parts")

    @property
    def placed(self) -> tuple[str, ...]:
        """The parts with momentum weights; with auto those of one of its runs, see `label`."""
        return self._words("momentum_parts")

    @property
    def label(self) -> str:
        """The placement, and for auto what its runs chose, such as "auto (layer4: 2, projector 1)"."""
        if self.momentum != AUTO or not self.rows:
            return self.momentum
        chosen = [tuple(str(row["momentum_parts"]).split()) for row in self.rows.values()]
        names = [cells.shortest(Placement("", self.parts, placed), False) for placed in chosen]
        counts = sorted(Counter(names).items(), key=lambda each: (-each[1], each[0]))
        return f"{AUTO} ({', '.join(f'{name} {count}' for name, count in counts)})"

    @property
    def what(self) -> str:
        """All that tells it from other arms but its set of runs, where momentum is and how it moves."""
        words = [
            _written(key, value)
            for key, value in self.settings.items()
            if key not in cells.MOMENTUM and value not in (None, {})
        ]
        return ", ".join(words)

    @property
    def where(self) -> str:
        """The same with its set of runs."""
        return ", ".join(filter(None, (self.what, self.frame)))

    def values(self, column: str) -> dict[int, float]:
        """The finite values of a column by seed."""
        found = {seed: row.get(column) for seed, row in self.rows.items()}
        return {
            seed: float(value) for seed, value in found.items() if value is not None and math.isfinite(value)
        }

    def _words(self, column: str) -> tuple[str, ...]:
        row = next(iter(self.rows.values()), None)
        return tuple(str(row[column] or "").split()) if row else ()


@dataclass(frozen=True)
class Context:
    """Arms that differ in the placement alone.

    Attributes:
        name: What they share, for people.
        method: Their method.
        image_size: Side of their images in pixels.
        arms: By placement.
    """

    name: str
    method: str
    image_size: int
    arms: Mapping[str, Arm]

    @property
    def placed(self) -> list[Arm]:
        """The arms with momentum in parts fixed beforehand; a run with auto is the twin of one of theirs."""
        return [arm for arm in self.arms.values() if arm.placed and arm.momentum != AUTO]

    def early_and_late(self) -> tuple[list[Arm], list[Arm]]:
        """The arms with momentum in the first half of the parts alone, and in the last half alone."""
        early, late = [], []
        for arm in self.placed:
            places = [arm.parts.index(part) for part in arm.placed]
            if places and max(places) < len(arm.parts) / 2:
                early.append(arm)
            elif places and min(places) >= len(arm.parts) / 2:
                late.append(arm)
        return early, late

    def ordered(self) -> list[Arm]:
        """Controls first, then from the input of the encoder to its end."""
        return sorted(self.arms.values(), key=depth)


def depth(arm: Arm) -> tuple[float, ...]:
    """Sorts arms from those without momentum over the input to the end, and auto, which is at no one place, last."""
    if not arm.placed:
        return (-1.0, float(arm.momentum != "none"), 0.0)
    if arm.momentum == AUTO:
        return (math.inf, 0.0, 0.0)
    places = [arm.parts.index(part) for part in arm.placed]
    return (min(places) + max(places), float(len(places)), float(places[0]))


def contexts(arms: Sequence[Arm]) -> list[Context]:
    """Arms grouped by all that they share beside the placement.

    Arms without momentum join every decay, and those of no one set of runs every set; arms without a finished run are
    left out.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.rows:
            groups.setdefault(arm.what, []).append(arm)
    found = []
    for what, group in groups.items():
        for frame in sorted({arm.frame for arm in group if arm.frame}) or [""]:
            controls = [arm for arm in group if not arm.placed and arm.frame in ("", frame)]
            moving: dict[tuple[Any, ...], list[Arm]] = {}
            for arm in group:
                if arm.placed and arm.frame in ("", frame):
                    own = tuple((key, arm.settings.get(key)) for key in cells.MOMENTUM[1:])
                    moving.setdefault(own, []).append(arm)
            for own, some in moving.items() or {(): []}.items():
                words = [_written(key, value) for key, value in own if value is not None]
                name = ", ".join(filter(None, (what, frame, *(words if len(moving) > 1 else ()))))
                together = [*controls, *some]
                settings = next(iter(together[0].rows.values()))["settings"]
                size = int(settings.get("image_size") or SMALL_SIDE)
                found.append(
                    Context(name, str(settings["method"]), size, {arm.momentum: arm for arm in together})
                )
    return found


def _written(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else f"no {key}"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, float):
        return f"{key.replace('_', ' ')} {value:g}"
    return str(value) if isinstance(value, str) else f"{key.replace('_', ' ')} {value}"
