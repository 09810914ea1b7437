"""What each command says of itself, and its options; nothing here imports torch, so that help comes at once."""

from dataclasses import dataclass
from typing import Literal

from tailfin.cli.parsing import positional
from tailfin.run.config import Config

HELP = """\
tailfin: self-supervised pretraining of vision encoders, with momentum (EMA) on the parts you choose.

usage: tailfin COMMAND [OPTIONS]

  pretrain   train an encoder on images without labels, judge it, write a report
  advise     say which tail momentum would steady most for its cost, from a short measured phase
  bench      say where a step's time goes on this machine, what each placement costs, and what to change
  evaluate   judge a run's encoder again, on its own data or on other data
  report     rebuild a run's report.html
  list       methods, backbones, and placements with their cost
  cache      what the cache of decoded images and trials holds; check it, clear it
  data       say what is in a source: counts, sizes, duplicates, what cannot be read, what depth is lost
  pack       write any source as tar shards, which are quicker to copy and to read than many files
  study      a grid of runs from a file, side by side, with statistics over seeds and what they say about the claims

examples:
  tailfin pretrain                                          generated images, some minutes on two cores
  tailfin pretrain --data photos/ --epochs 100              your own images, in folders or in one
  tailfin pretrain --data cifar10 --method byol --momentum projector
  tailfin pretrain --resume runs/shapes-simclr-published-seed0
  tailfin list methods
  tailfin list placements --backbone resnet50

tailfin COMMAND --help explains a command. tailfin --version prints the version."""

PRETRAIN = """\
Train an encoder on images without labels, judge it, and write a report.

examples:
  tailfin pretrain
  tailfin pretrain --data photos/ --epochs 100 --out runs/photos
  tailfin pretrain --data cifar10 --method mocov2plus --limit 20000
  tailfin pretrain --method byol --momentum projector          momentum on the projector alone
  tailfin pretrain --momentum layer3: --decay 0.99             from layer3 to the end
  tailfin pretrain --momentum stopgrad                         the control: stop-gradient without averaging
  tailfin pretrain --method mine.py:MyMethod                   a method of your own
  tailfin pretrain --method-options temperature 0.1 hidden 512
  tailfin pretrain --config runs/photos/config.toml --seed 1   the same settings, another seed
  tailfin pretrain --resume runs/photos                        go on with a run that was interrupted

Options that you leave out are chosen automatically; the choices are printed and kept in the run's config.toml."""

EVALUATE = """\
Judge a run's encoder: kNN and linear probe of backbone and projector, online and momentum weights, beside baselines.

examples:
  tailfin evaluate runs/photos
  tailfin evaluate runs/photos --data cifar10                  its features on other labelled images"""

ADVISE = """\
Say where momentum would steady this training most: train for a short phase, measure each part, and stop there.

examples:
  tailfin advise --data cifar10 --method byol --backbone resnet18
  tailfin advise --config runs/photos/config.toml

The options are those of pretrain without --resume; nothing is kept. The placement in a --config file is passed over,
for it is what is asked here. --momentum auto does the same before a run and goes on with the advice."""

BENCH = """\
Say where a step's time goes on this machine, what each placement costs on it, and what to change; about a minute.

examples:
  tailfin bench --data photos/ --backbone resnet50 --batch-size 128
  tailfin bench --config runs/photos/config.toml

The options are those of pretrain without --resume; nothing is kept."""

REPORT = """\
Rebuild a run's report.html from what the run folder holds.

example:
  tailfin report runs/photos"""

CACHE = """\
Say what the cache holds: downloads, decoded images, and which precision and memory format trials found best.

examples:
  tailfin cache
  tailfin cache check                                          read everything through for its checksums
  tailfin cache clear                                          remove all but the downloads
  tailfin cache --folder /scratch/tailfin

What other processes are writing stays."""

DATA = """\
Say what is in a source: images, splits, classes, sizes, modes and depth, exact duplicates, what cannot be read and
why, and the mean and standard deviation of each channel. Every image is decoded once; nothing is kept.

examples:
  tailfin data photos/
  tailfin data shards/                                         their checksums too, where tailfin pack wrote them
  tailfin data cifar10"""

PACK = """\
Write the images of any source as tar shards, which --data and WebDataset read, with their checksums.

examples:
  tailfin pack photos/ shards/                                 bytes as they are
  tailfin pack photos/ small/ --longest 512                    larger images shrunk, and written as JPEG
  tailfin pack parquet/ shards/ --quality 90 --shard-mb 1000   all recompressed to JPEG
  tailfin pretrain --data shards/

Images that cannot be read are left out, and named in skipped.tsv. The same command goes on with a packing that was
stopped or killed: finished shards are kept."""

STUDY = """\
Run every cell of a study file, side by side and resumable; write a table and a report with intervals and verdicts.

examples:
  tailfin study studies/cpu-placement.toml
  tailfin study studies/cpu-placement.toml --plan                      what there is to do, and how long it takes
  tailfin study studies/cpu-placement.toml --data photos/cifar10       where the images lie
  tailfin study studies/gpu-methods.toml --data cifar10=a/ cifar100=b/ --jobs 4
  tailfin study studies/cpu-decay.toml --seeds 1 --limit-minutes 60
  tailfin study mine.toml --method mine.py:MyMethod                    where the file's method is your own

Finished cells are never run again; the same command goes on with a study that was stopped or killed."""

LIST = """\
Name the methods, the backbones, or the placements of a backbone with their cost.

examples:
  tailfin list
  tailfin list backbones
  tailfin list methods
  tailfin list placements --backbone vit_small_patch16_224 --image-size 224"""


@dataclass(frozen=True)
class Settings(Config):
    """Settings of a run, and a file to take them from."""

    config: str | None = None
    """Take settings from this TOML file; further options override it."""


@dataclass(frozen=True)
class Pretrain(Settings):
    """Settings of a run, and where to take them from."""

    resume: str | None = None
    """Go on with the run in this folder; settings that matter may not change."""
    devices: int | None = None
    """GPUs of this machine, or processes on a CPU, that share each batch. Default: one; torchrun says it itself."""


@dataclass(frozen=True)
class Evaluate:
    """What to judge."""

    run: str = positional()
    """The run folder."""
    data: str | None = None
    """Labelled images to judge on. Default: the run's own."""
    limit: int | None = None
    """At most this many training images for kNN and probe. Default: as the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    method: str | None = None
    """FILE.py:CLASS, where the run's method is in a file of yours: its code runs only if you name it."""


@dataclass(frozen=True)
class Report:
    """What to report."""

    run: str = positional()
    """The run folder."""


@dataclass(frozen=True)
class Cache:
    """What to do with which cache."""

    action: Literal["list", "check", "clear"] = positional("list")
    """list, check or clear."""
    folder: str | None = None
    """The cache's folder. Default: $XDG_CACHE_HOME/tailfin or ~/.cache/tailfin."""


@dataclass(frozen=True)
class Data:
    """What to look at."""

    source: str = positional()
    """A folder or file of images, or a named data set, as --data of pretrain takes it."""
    follow_links: bool = False
    """Follow links that lead out of the folder."""
    workers: int | None = None
    """Threads. Default: one a processor, up to 16."""


@dataclass(frozen=True)
class Pack:
    """What to pack, where to, and how."""

    source: str = positional()
    """A folder or file of images, or a named data set, as --data of pretrain takes it."""
    out: str = positional()
    """A folder for the shards: a new one, an empty one, or that of a packing to go on with."""
    shard_mb: int = 500
    """Most megabytes of a shard."""
    longest: int | None = None
    """Longest side in pixels: larger images are shrunk, and become JPEG. Default: sizes as they are."""
    quality: int | None = None
    """JPEG quality, 1 to 100, to which all images are recompressed. Default: bytes as they are; 90 where shrunk."""
    follow_links: bool = False
    """Follow links that lead out of the folder."""
    workers: int | None = None
    """Threads. Default: one a processor, up to 16."""


@dataclass(frozen=True)
class Study:
    """What to run, and where."""

    file: str = positional()
    """The study file."""
    out: str | None = None
    """The study's folder. Default: results/ and the file's name."""
    data: tuple[str, ...] = ()
    """Where the images lie: a path, or NAME=PATH for each data set that the file names."""
    jobs: int | None = None
    """Cells side by side. Default: one a processor, or as many as fit in the GPU's memory."""
    plan: bool = False
    """Only print the cells, their state, and the time and memory that they will take, measured."""
    seeds: int | None = None
    """This many seeds instead of those that the file lists."""
    limit_minutes: float | None = None
    """Stop after so many minutes, in good order."""
    reuse: tuple[str, ...] = ()
    """Folders of other studies: what both ask for is taken from there."""
    method: str | None = None
    """FILE.py:CLASS, where the study's method is in a file of yours: its code runs only if you name it."""


@dataclass(frozen=True)
class List:
    """What to list."""

    what: Literal["all", "methods", "backbones", "placements"] = positional("all")
    """methods, backbones, placements, or all of them."""
    backbone: str = "resnet18"
    """Whose placements."""
    image_size: int = 32
    """Side of the views in pixels, for the cost."""
