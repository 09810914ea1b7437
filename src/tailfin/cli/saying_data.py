"""What is said of images: what a source holds, and what was packed of it."""

from collections.abc import Sequence
from typing import Final

from tailfin.commands.data import Inventory, Spread
from tailfin.commands.pack import CARD, SKIPPED, Packed
from tailfin.data.sources.manifest import NAME
from tailfin.errors import printable

_MOST_CLASSES: Final = 50
_MOST_NAMED: Final = 20


def say_packed(found: Packed) -> None:
    """What was packed, and where its lists are."""
    kept = f"; {_counted(found.kept, 'shard')} finished before" if found.kept else ""
    images, shards = _counted(found.images, "image"), _counted(found.shards, "shard")
    print(f"packed      {images} in {shards}, {found.bytes / 1e6:,.1f} MB{kept}")
    if found.skipped:
        print(f"            {_counted(found.skipped, 'image')} could not be read: {found.out / SKIPPED}")
    print(f"            {found.out / NAME} has the checksums, {found.out / CARD} says what is in it")


def say_inventory(found: Inventory) -> None:
    """What a source holds: first what is there, then what to beware of."""
    splits = ", ".join(f"{count:,} {split}" for split, count in found.images.items())
    size = "" if found.bytes is None else f"; {found.bytes / 1e6:,.1f} MB"
    print(f"{printable(found.name)}: {_counted(sum(found.images.values()), 'image')} ({splits}){size}")
    print(f"width       {_spread(found.width)}")
    print(f"height      {_spread(found.height)}")
    for kind, count in found.kinds:
        print(f"kind        {kind}: {count:,}")
    _say_numbers("mean", found.mean)
    _say_numbers("std", found.std)
    print(f"            of each channel in [0, 1], over {_counted(found.sampled, 'image')}")
    _say_classes(found)
    _say_losses(found)
    _say_duplicates(found)
    if found.skipped:
        print(f"unreadable  {_counted(len(found.skipped), 'image')}")
        for lost in found.skipped[:_MOST_NAMED]:
            print(f"            {lost.name}: {lost.reason}")
        if len(found.skipped) > _MOST_NAMED:
            print(f"            and {len(found.skipped) - _MOST_NAMED:,} more")
    if found.shards is not None:
        print(f"checksums   {_counted(found.shards, 'shard')} compared, {len(found.damaged)} damaged")
        for name in found.damaged:
            print(
                f"damaged     {name}: not what tailfin pack wrote; to write it again, remove it and pack again"
            )


def _say_classes(found: Inventory) -> None:
    if found.classes is None:
        print("classes     no labels")
        return
    train = [counts["train"] for _, counts in found.classes]
    print(f"classes     {len(found.classes):,}, of {min(train):,} to {max(train):,} training images")
    for name, counts in found.classes[:_MOST_CLASSES]:
        print(f"            {name}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    if len(found.classes) > _MOST_CLASSES:
        print(f"            and {len(found.classes) - _MOST_CLASSES:,} more")
    if found.unlabelled:
        print(f"            {_counted(found.unlabelled, 'image')} without a label")


def _say_losses(found: Inventory) -> None:
    if found.deep:
        print(
            f"DEPTH LOST  {_counted(found.deep, 'image')} of more than 8 bits a channel; training sees 8 of them"
        )
    if found.dropped:
        print(
            f"BANDS LOST  {_counted(found.dropped, 'image')} of more than three bands; training sees the first three"
        )
    if found.transparent:
        print(f"BANDS LOST  {_counted(found.transparent, 'image')} with transparency, which is put on white")


def _say_duplicates(found: Inventory) -> None:
    same = found.duplicates
    if not same.count:
        print("duplicates  none, byte for byte")
        return
    print(f"duplicates  {_counted(same.count, 'image')} the same as another, byte for byte")
    if same.across:
        print(
            f"            {_counted(same.across, 'test image')} also among the training images: scores are flattered"
        )
    if same.contradicting:
        print(f"            {same.contradicting:,} with another label than the first of their kind")
    for group in same.groups:
        more = f", and {len(group) - 3:,} more" if len(group) > 3 else ""
        print(f"            {' = '.join(group[:3])}{more}")


def _say_numbers(word: str, values: Sequence[float]) -> None:
    print(f"{word:<11} {'  '.join(f'{value:.4f}' for value in values)}")


def _spread(found: Spread) -> str:
    if found.least == found.most:
        return f"{found.least:,} pixels"
    return f"{found.least:,} to {found.most:,} pixels, median {found.median:,}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
