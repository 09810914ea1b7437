"""Placement: which parts keep momentum weights, as data; the grammar, the fork and the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tailfin.errors import UserError, unknown

KEYWORDS = ("none", "stopgrad", "all", "backbone", "projector")
PROJECTOR = "projector"


@dataclass(frozen=True)
class Placement:
    """A set of part names within an encoder's ordered parts.

    Attributes:
        text: As it was written, such as "layer3:".
        names: All part names from input to output, `projector` last where there is one.
        placed: The parts that keep momentum weights, in order; empty for `none` and `stopgrad`.
    """

    text: str
    names: tuple[str, ...]
    placed: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> "Placement":
        """Read a placement.

        The grammar: `none`, `stopgrad`, `all`, `backbone`, or a comma-separated list of part names and ranges:
        `layer3:` from there to the end, `:layer2` up to and including it, `layer2:layer3` both included. A name also
        stands for every part below it: "layer3" for "layer3.0" and "layer3.1", "blocks" for all of a ViT's blocks.

        Raises:
            UserError: A part or keyword that does not exist (naming the nearest), or an empty or reversed range.
        """
        text, names = text.strip(), tuple(names)
        if text in ("none", "stopgrad"):
            return cls(text, names, ())
        if text == "all":
            return cls(text, names, names)
        chosen: set[int] = set()
        for item in text.split(","):
            chosen |= _indices(item.strip(), names, text)
        return cls(text, names, tuple(name for i, name in enumerate(names) if i in chosen))

    @property
    def fork(self) -> int:
        """Index of the first part that both branches run by themselves; `len(names)` where all is shared."""
        return self.names.index(self.placed[0]) if self.placed else len(self.names)

    @property
    def shares_gradient(self) -> bool:
        """Whether the target is the online branch itself, gradient included."""
        return self.text == "none"

    def cost(self, flops: Mapping[str, int]) -> float:
        """Share of the encoder's forward FLOPs that the target path repeats, in [0, 1].

        Args:
            flops: Forward FLOPs of each part, by name.
        """
        total = sum(flops[name] for name in self.names)
        return sum(flops[name] for name in self.names[self.fork :]) / total if total else 0.0


def _indices(item: str, names: tuple[str, ...], text: str) -> set[int]:
    if item == "backbone":
        return {i for i, name in enumerate(names) if name != PROJECTOR}
    if item in ("none", "stopgrad", "all"):
        raise UserError(f"placement {text!r}: {item!r} stands alone, not in a list")
    start, colon, end = item.partition(":")
    if item in ("", ":"):
        raise UserError(
            f"placement {text!r} has an empty entry; allowed: {', '.join(dict.fromkeys((*KEYWORDS, *names)))}"
        )
    first = min(_named(start, names, text)) if start else 0
    last = max(_named(end if colon else start, names, text)) if end or not colon else len(names) - 1
    if first > last:
        raise UserError(
            f"placement {text!r}: {start!r} comes after {end!r}; parts in order: {', '.join(names)}"
        )
    return set(range(first, last + 1))


def _named(name: str, names: tuple[str, ...], text: str) -> list[int]:
    found = [i for i, part in enumerate(names) if part == name or part.startswith(f"{name}.")]
    if not found:
        allowed = dict.fromkeys((*KEYWORDS[:4], *names, *(f"{n}:" for n in names[:-1])))
        raise unknown("part", name, allowed, where=f"placement {text!r}")
    return found
