"""Cells: one run each, told apart by what they compute and not by how it was written."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import torch

from tailfin import backbones, methods
from tailfin.compute.device import MemoryFormat, Precision
from tailfin.data.types import ImageSet
from tailfin.errors import UserError, nearest
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.run.config import FORMAT, HARMLESS, Config, from_dict
from tailfin.training import misfits
from tailfin.training.misfits import AUTO, Misfit, blaming, part_names
from tailfin.training.resolve import resolved

MATTERING = tuple(field.name for field in dataclasses.fields(Config) if field.name not in HARMLESS)
FLOATS = tuple(name for name, kind in get_type_hints(Config).items() if float in (kind, *get_args(kind)))
LATER = ("local_views", "local_size", "gap", "compile", "follow_links", "batch_norm")
"""Settings that came after the first studies: at their defaults they leave a fingerprint as it was, and so the
folders of runs that had not ended."""
RULE = 2
"""Of `auto`, part of what its cells are told by: raised with every change of what training/advice.py chooses, so that
runs by two rules are never one cell. Rows without a number are by the rules before numbers were kept."""
MOMENTUM = ("momentum", "decay", "decay_end", "buffers", "through")
"""Settings that say where momentum is and how it moves; the rest of a cell is what placements are compared in."""

SMALL = ("shapes", "cifar10", "cifar100", "fashion_mnist")
"""Data sets whose images are known to be small, and to take the recipes for small images."""

# Resolving the settings asks the images for their size alone.
_STAND_IN = ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@dataclass(frozen=True)
class Compute:
    """What all cells of a study are computed with, so that none differs from another in it.

    Attributes:
        device: "cpu" or "cuda".
        precision, memory_format: As in `Config`; None where not chosen yet.
    """

    device: str
    precision: Precision | None = None
    memory_format: MemoryFormat | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        config: Its settings, in one spelling; `data` as the study file names it.
        fingerprint: Of all settings that matter, and of `selects`.
        name: For people; the run folder's name begins with it.
        selects: Whether it only helps to choose a setting: test images do not judge it.
    """

    config: Config
    fingerprint: str
    name: str
    selects: bool = False

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.name}-{self.fingerprint}"


def check(config: Config) -> None:
    """Find wrong names and settings that do not fit each other before any image is read.

    Raises:
        Misfit: Naming the setting.
    """
    if config.image_size is None and config.data not in SMALL:
        raise Misfit(
            "image_size",
            f"image_size is needed with data {config.data!r}: the methods' recipes depend on it"
            + nearest(config.data, SMALL),
        )
    misfits.find(config, image_size=32)
    with blaming("optimizer"):
        canonical(config, Compute("cpu"))


def canonical(config: Config, compute: Compute) -> Config:
    """The settings in one spelling: two configurations that compute the same become equal.

    What is left open is filled in as a run does, the placement gets its shortest name, and a decay without momentum
    parts is dropped. The size of the images alone stays open, for only the data know it.

    Raises:
        UserError: As a run does.
    """
    method = methods.load(config.method)
    full = resolved(config, method, _STAND_IN, torch.device(compute.device))
    names = part_names(full.backbone or backbones.NARROW, config.image_size or 32)
    full = replace(
        full,
        data=config.data,
        image_size=config.image_size,
        precision=config.precision or compute.precision,
        memory_format=config.memory_format or compute.memory_format,
    )
    if full.momentum == AUTO:
        return full
    placement = Placement.parse(full.momentum, names)
    full = replace(full, momentum=shortest(placement, method.stop_gradient))
    if placement.placed:
        return full
    return replace(full, decay=None, decay_end=None, buffers="batch", through=False)


def shortest(placement: Placement, stop_gradient: bool) -> str:
    """The shortest name of a placement, such as "layer4:" for "layer4,projector".

    Args:
        placement: As it was written.
        stop_gradient: Whether the method never backpropagates through its target: `none` is then `stopgrad`.
    """
    names, placed = placement.names, placement.placed
    if not placed:
        return "stopgrad" if stop_gradient else placement.text
    first, last = names.index(placed[0]), names.index(placed[-1])
    if len(placed) == 1 or placed != names[first : last + 1]:
        return ",".join(placed)
    if last == len(names) - 1:
        return f"{placed[0]}:" if first else "all"
    if first == 0:
        return "backbone" if placed == names[:-1] and names[-1] == PROJECTOR else f":{placed[-1]}"
    return f"{placed[0]}:{placed[-1]}"


def fingerprint(config: Config, *, selects: bool = False) -> str:
    """Ten characters that differ where two runs compute something different, or one of them only helps to choose."""
    plain = Config()
    values = {
        name: value
        for name, value in settings(config).items()
        if name not in LATER or value != getattr(plain, name)
    }
    values |= {"selects": True} if selects else {}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=5).hexdigest()


def dearest(config: Config) -> Config:
    """What to measure in place of a cell that chooses its placement itself: the dearest one that it can choose."""
    return replace(config, momentum="all", through=False) if config.momentum == AUTO else config


def settings(config: Config) -> dict[str, Any]:
    """Every setting that matters, the settings' format, and the rule that `auto` chooses by, as plain values."""
    values = {name: getattr(config, name) for name in MATTERING}
    # A recipe's 10 and the 10.0 that a table gives back are the same number, and must be the same cell.
    values |= {
        name: float(values[name]) for name in FLOATS if name in values and isinstance(values[name], int)
    }
    rule = {"auto_rule": RULE} if config.momentum == AUTO else {}
    return {"format": FORMAT, **values, "method_options": dict(config.method_options), **rule}


def from_settings(values: Mapping[str, Any]) -> Config | None:
    """The configuration of `settings`; None where this version of tailfin reads another format or other settings, or
    lets `auto` choose by another rule.

    Settings that came later take their defaults, so that a table outlives them.
    """
    rule = RULE if values.get("momentum") == AUTO else None
    if values.get("format") != FORMAT or values.get("auto_rule") != rule:
        return None
    known = {
        key: value
        for key, value in values.items()
        if key not in ("format", "auto_rule") and value is not None
    }
    try:
        return from_dict(known, "the table")
    except UserError:
        return None


def varying(configs: Collection[Config]) -> tuple[str, ...]:
    """Names of the settings that differ among `configs`, in their own order."""
    plain = [settings(config) for config in configs]
    return tuple(name for name in MATTERING if any(each[name] != plain[0][name] for each in plain[1:]))


def telling(configs: Collection[Config], varied: Collection[str]) -> tuple[str, ...]:
    """Those of the `varied` settings that tell runs apart, in their own order.

    What follows from others, such as a learning rate of each method's own, tells nothing more; the placement and the
    seed settle nothing, for runs that differ in them are what is compared.
    """
    plain = [settings(config) for config in configs]
    found: list[str] = []
    for key in sorted(varied, key=lambda key: (key not in ("method", "data"), MATTERING.index(key))):
        known: dict[str, Any] = {}
        for each in plain:
            place = repr([each[other] for other in found if other not in ("momentum", "seed")])
            if known.setdefault(place, each[key]) != each[key]:
                found.append(key)
                break
    return tuple(key for key in MATTERING if key in found)


def name(config: Config, differing: Collection[str]) -> str:
    """A readable name: method, placement, whatever else differs within the study, seed."""
    words = [config.method, config.momentum]
    for key in differing:
        value = getattr(config, key)
        if key in ("method", "momentum", "seed") or value is None:
            continue
        if isinstance(value, Mapping):
            words += [f"{option}{number:g}" for option, number in value.items()]
        else:
            # Words speak for themselves; a number needs to be told what it is.
            plain = value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else f"{key}{value}"
            words.append(plain)
    return re.sub(r"[^\w.-]", "_", "-".join([*words, f"seed{config.seed}"]))


def make(config: Config, differing: Collection[str], *, selects: bool = False) -> Cell:
    """The cell of a canonical configuration."""
    return Cell(config, fingerprint(config, selects=selects), name(config, differing), selects)
