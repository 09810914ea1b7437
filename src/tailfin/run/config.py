"""The settings of a pretraining run: what a user may leave open, and TOML files of them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tailfin.errors import UserError, unknown
from tailfin.files import write_atomically
from tailfin.files.reading import read_toml

FORMAT = 1
"""Raised when a setting changes its meaning, so that an old file is refused and not misread."""

HARMLESS = frozenset({"out", "cache", "workers", "checkpoint_minutes", "images_on", "judge"})
"""Settings that do not change what a run computes."""

OptimizerName = Literal["sgd", "lars", "adamw"]

MONITORS = ("gradient", "probe")


@dataclass(frozen=True)
class Config:
    """Settings of a run. None is chosen automatically; the choice is printed and kept in the run's config.toml."""

    data: str = "shapes"
    """What to train on: "shapes" (generated), "cifar10", "cifar100", "stl10", "fashion_mnist", or the path of a
    folder of images, of Parquet, tar or IDX files."""
    method: str = "simclr"
    """Self-supervised method; `tailfin list methods` names them. FILE.py:CLASS is one of your own."""
    momentum: str = "published"
    """Parts that keep momentum weights: none, stopgrad, all, backbone, projector, layer3: (from there on), :layer2
    (up to there), any list such as stem,projector, published (the method's own), or auto (chosen in a short phase
    that measures each part)."""
    decay: float | None = None
    """Weight of the old value in the momentum update, in [0, 1]. Default: as the method was published."""
    decay_end: float | None = None
    """Decay at the last step, reached by a cosine. Default: as published, or equal to --decay where that is given."""
    buffers: Literal["batch", "ema", "copy"] = "batch"
    """BatchNorm of momentum parts: own batch statistics (batch), averaged ones in eval mode (ema, EMAN), or the
    online part's in eval mode (copy)."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Where a run has several devices: BatchNorm over the whole batch (sync), or over each device's share (local)."""
    through: bool = False
    """Let gradients cross the momentum parts into the shared ones."""
    backbone: str | None = None
    """A timm model, torchvision:NAME, or resnet10wN (a narrow ResNet of width N). Default: resnet10w16 on a CPU,
    resnet18 on a GPU."""
    image_size: int | None = None
    """Side of the views in pixels. Default: the images' own up to 96, else 64 on a CPU and 224 on a GPU."""
    crop_min: float | None = None
    """Smallest crop, as a share of the image's area. Default: as published."""
    local_views: int = 0
    """Small crops of each image beside its views (multi-crop); the target branch does not see them."""
    local_size: int | None = None
    """Their side in pixels. Default: three sevenths of the views', as 96 beside 224."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 256
    """Images an optimizer step."""
    accumulate: int = 1
    """Micro-batches that a batch is cut into where it does not fit in memory."""
    limit: int | None = None
    """At most this many training images, drawn by seed. Default: all."""
    seed: int = 0
    """Seed of everything random."""
    out: str | None = None
    """The run folder. Default: a new one under runs/."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    optimizer: OptimizerName | None = None
    """What takes the steps. Default: as published; AdamW for backbones without BatchNorm (ViT, ConvNeXt)."""
    lr: float | None = None
    """Peak learning rate for a batch of 256; it scales with the batch. Default: as published; 1.5e-4 for backbones
    without BatchNorm."""
    weight_decay: float | None = None
    """Not applied to norms and biases. Default: as published; 0.1 for backbones without BatchNorm."""
    warmup_epochs: float | None = None
    """Linear warm-up of the learning rate. Default: as published, but at most a tenth of the epochs."""
    clip_grad: float | None = None
    """Largest norm of the gradient. Default: not clipped."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of matrix products and convolutions. Default: the faster one on this device, measured."""
    memory_format: Literal["contiguous", "channels_last"] | None = None
    """Order of an image's values in memory. Default: the faster one on this device, measured."""
    compile: bool = False
    """Compile each part of the encoder (torch.compile) when it first runs, which takes a minute or more; `tailfin
    bench --compile` measures what it gains on this machine."""
    images_on: Literal["device", "host"] | None = None
    """Where the training images are kept. Default: device, where they take under a quarter of a GPU's free memory."""
    gap: float = 0.0
    """Weight of Residual Momentum's gap loss, which draws each view's online output to its own target's."""
    method_options: Mapping[str, float] = field(default_factory=dict)
    """Further settings of the method, such as temperature 0.1 queue_size 4096 hidden 512 out 128."""
    knn_evaluations: int = 5
    """How often validation kNN is looked at during training (labels needed)."""
    monitors: str = "gradient,probe"
    """What watches stability: gradient (its size at each part's output, every step), probe (gradient, drift, gap and
    collapse on a fixed batch), both, or none."""
    judge: Literal["all", "encoder", "nothing"] = "all"
    """What the test images judge at the end: the encoder beside an untrained one and raw pixels (all), without raw
    pixels (encoder), or nothing."""
    tolerate: float = 0.01
    """Share of images that may be unreadable."""
    follow_links: bool = False
    """Follow links that lead out of the data folder."""
    workers: int | None = None
    """Threads that decode images. Default: one a processor."""
    cache: str | None = None
    """Folder of decoded images, downloads and trials; no settings file can choose it. Default:
    $XDG_CACHE_HOME/tailfin or ~/.cache/tailfin."""
    checkpoint_minutes: float = 5.0
    """Longest time between checkpoints; the end of an epoch brings one too, a minute or more after the last."""

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            UserError: A value outside its bounds, naming the option.
        """
        for name in ("lr", "weight_decay", "warmup_epochs", "clip_grad", "checkpoint_minutes", "gap"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{option(name)} is {value}; it must be finite")
        for name in ("epochs", "batch_size", "accumulate", "limit", "workers"):
            _at_least(name, getattr(self, name), 1)
        for name in ("image_size", "local_size"):
            _at_least(name, getattr(self, name), 8)
        for name in (
            "lr",
            "weight_decay",
            "warmup_epochs",
            "checkpoint_minutes",
            "knn_evaluations",
            "gap",
            "local_views",
        ):
            _at_least(name, getattr(self, name), 0)
        if self.crop_min is not None and not 0.0 < self.crop_min <= 1.0:
            raise UserError(f"--crop-min is {self.crop_min}; it must be above 0 and at most 1")
        for name in ("decay", "decay_end", "tolerate"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UserError(f"{option(name)} is {value}; it must lie in [0, 1]")
        self.monitored()
        for name, value in self.method_options.items():
            if not math.isfinite(value):
                raise UserError(f"--method-options {name} is {value}; it must be finite")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise UserError(f"--clip-grad is {self.clip_grad}; it must be above 0")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise UserError(f"--warmup-epochs {self.warmup_epochs} is longer than --epochs {self.epochs}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed is {self.seed}; it must lie between 0 and 2^63 - 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"--batch-size {self.batch_size} is no multiple of --accumulate {self.accumulate}"
            )
        if self.batch_size // self.accumulate < 2:
            raise UserError(
                f"--batch-size {self.batch_size} leaves less than 2 images a micro-batch, which no method can compare"
            )

    def monitored(self) -> frozenset[str]:
        """The monitors that are on.

        Raises:
            UserError: One that does not exist.
        """
        names = [] if self.monitors == "none" else [name.strip() for name in self.monitors.split(",")]
        for name in names:
            if name not in MONITORS:
                raise unknown("monitor", name, (*MONITORS, "none"), where="--monitors")
        return frozenset(names)


def option(name: str) -> str:
    """A setting's name as an option of the command line."""
    return "--" + name.replace("_", "-")


def differences(ours: Config, theirs: Config) -> list[str]:
    """Settings that matter and differ, in words; empty where a run may go on."""
    return [
        f"{option(f.name)} was {getattr(ours, f.name)!r} and is now {getattr(theirs, f.name)!r}"
        for f in fields(Config)
        if f.name not in HARMLESS and getattr(ours, f.name) != getattr(theirs, f.name)
    ]


def as_dict(config: Config) -> dict[str, Any]:
    """The settings that are not open."""
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if value is not None and value != {}}


def save(config: Config, path: Path) -> None:
    """Write the settings as TOML, usable with --config."""
    import tomli_w

    values = {name: value for name, value in as_dict(config).items() if name not in ("out", "cache")}
    text = tomli_w.dumps({"tailfin_config": FORMAT, **values})
    write_atomically(
        path, f"# Settings of a tailfin run. Use them again: tailfin pretrain --config FILE\n{text}".encode()
    )


def read(path: Path) -> Config:
    """Read settings from a TOML file.

    Raises:
        UserError: The file is missing, is not TOML, is of another version, or holds an unknown key or a wrong value.
    """
    if path.is_dir():
        inside = path / "config.toml"
        hint = f"; did you mean {inside}?" if inside.exists() else ""
        raise UserError(f"{path} is a folder, not a file of settings{hint}")
    values, _ = read_toml(path)
    if "tailfin_study" in values:
        raise UserError(f"{path} is a study, not the settings of a run; run it by: tailfin study {path}")
    version = values.pop("tailfin_config", FORMAT)
    if version != FORMAT:
        raise UserError(
            f"settings {path} are of format {version!r}; this version of tailfin reads format {FORMAT}"
        )
    values.pop("cache", None)  # where to write is for who runs it to say, not for who wrote the file
    return from_dict(values, str(path))


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """Settings from plain values, each checked against its type.

    Raises:
        UserError: An unknown key (naming the nearest) or a value of the wrong type, saying where.
    """
    return Config(**checked(values, where))


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Plain values, each checked against its setting's type.

    Raises:
        UserError: As `from_dict`.
    """
    kinds = get_type_hints(Config)
    found = {}
    for name, value in values.items():
        if name not in kinds:
            raise unknown("setting", name, kinds, where=where)
        found[name] = _typed(name, value, kinds[name], where)
    return found


def _typed(name: str, value: Any, kind: Any, where: str) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    for each in kinds:
        origin = get_origin(each)
        if origin is Literal:
            if value in get_args(each):
                return value
            raise unknown(f"value of {name}", str(value), get_args(each), where=where)
        if each is float and type(value) in (int, float):
            return float(value)
        if origin is not None and isinstance(value, Mapping):
            return {key: _typed(f"{name}.{key}", item, float, where) for key, item in value.items()}
        if type(value) is each:
            return value
    allowed = " or ".join("table" if get_origin(k) else k.__name__ for k in kinds if k is not NoneType)
    raise UserError(f"setting {name!r} in {where} is {value!r}; it must be of type {allowed}")


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise UserError(f"{option(name)} is {value}; it must be at least {least}")
