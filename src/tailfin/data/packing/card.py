"""The page beside packed shards: what is in them, how they were made, and how they are read."""

import numpy as np
from numpy.typing import NDArray

from tailfin import __version__
from tailfin.data.source import Listing
from tailfin.data.sources.manifest import Manifest
from tailfin.errors import printable


def written(listing: Listing, manifest: Manifest, order: NDArray[np.int64]) -> str:
    """The text, in Markdown.

    Args:
        listing: What was packed.
        manifest: The finished shards.
        order: int64 [N], the source's index at each place.
    """
    shards = manifest.shards
    held = {
        split: sum(shard.images for shard in shards if shard.name.startswith(split))
        for split in ("train", "test")
    }
    low, high = min(shard.sides[0] for shard in shards), max(shard.sides[1] for shard in shards)
    settings = manifest.settings
    longest = (
        "as they are" if settings["longest"] is None else f"at most {settings['longest']} pixels on a side"
    )
    quality = "bytes as they are" if settings["quality"] is None else f"JPEG of quality {settings['quality']}"
    if settings["longest"] is not None and settings["quality"] is None:
        quality += ", but JPEG where shrunk"
    lines = [
        f"# {_cell(listing.name)}",
        "",
        f"{sum(held.values()):,} images in {len(shards)} tar shard{'s' * (len(shards) != 1)}, packed by tailfin "
        f"{__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| training images | {held['train']:,} |",
        f"| test images | {held['test']:,} |",
        f"| left out, for they could not be read | {len(manifest.skipped):,} |",
        f"| bytes | {sum(shard.bytes for shard in shards):,} |",
        f"| sides | {low} to {high} pixels |",
        f"| sizes | {longest} |",
        f"| content | {quality} |",
        f"| shards | up to {settings['shard_mb']} MB |",
        "",
        "Each sample is an image and, where it has a label, a `.cls` with its number; `shards.json` has the classes'",
        "names and each shard's SHA-256. Read it with `tailfin pretrain --data`, or with WebDataset.",
    ]
    if manifest.skipped:
        lines += ["", "`skipped.tsv` names the images that were left out, and why."]
    if listing.labels is not None and manifest.classes is not None:
        lost = np.zeros(len(order), dtype=np.bool_)
        lost[[place for place, _, _ in manifest.skipped]] = True
        labels = listing.labels.numpy()[order[~lost]]
        counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).tolist()
        lines += ["", "| label | class | images |", "|---|---|---|"]
        lines += [
            f"| {number} | {_cell(name)} | {count:,} |"
            for number, (name, count) in enumerate(zip(manifest.classes, counts, strict=True))
        ]
        if without := int((labels < 0).sum()):
            lines += [f"| | no label | {without:,} |"]
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    """A stranger's name in a table: nothing in it is Markdown."""
    return "".join(f"\\{c}" if c in "\\|`*_<>[]#" else c for c in printable(name))
