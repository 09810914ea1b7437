"""Tar shards in WebDataset's layout, or plain tars of images and class folders, read at random by offset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailfin.data.source import (
    Listing,
    by_split,
    enumerate_classes,
    files_below,
    refuse_links,
)
from tailfin.data.sources.folder import SUFFIXES
from tailfin.data.sources.manifest import check_shards, missing_numbers, read_manifest
from tailfin.data.sources.tar_index import CodesOf, TarIndex
from tailfin.errors import UserError, unknown

COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")


def find_files(folder: Path) -> list[Path]:
    """Every tar file in a folder or up to two folders below it, hidden ones left out, sorted by path."""
    return files_below(folder, ".tar")


def list_tar(path: Path, *, follow_links: bool = False) -> Listing:
    """The images of one tar file, or of a folder of them, in the archives' order.

    Members that share folder and name up to the first dot are one sample: its label is the whole number in its
    `.cls`, or else `label` in its `.json`, a number or a name. Where no training image has one, folders inside
    are classes, as `list_folder` has them. A file's split is told by its name or its folder's, as for Parquet; a
    single file, or a folder of files that tell none, may have `train` and `test` folders inside. Class names
    are taken from a `shards.json` of `tailfin pack` beside the files. Hidden members, links, and members whose
    names lead outside are passed over.

    Raises:
        UserError: A file is damaged, cut short, compressed, or a link out of the folder (unless `follow_links`);
            a shard is missing that `shards.json` tells of; there is no image; the test split has a class that
            the training split lacks.
    """
    files = [path] if path.is_file() else find_files(path)
    home = path.parent if path.is_file() else path
    splits = ([path], []) if path.is_file() else by_split(files, path, "train-*.tar")
    if path.is_dir() and not follow_links:
        refuse_links(files, path)
    manifest = read_manifest(home)
    if manifest is not None:
        check_shards(manifest, files, home, whole=path.is_dir() and manifest.complete)
    images = TarIndex()
    parts = [images.add(some) for some in (splits[0], *splits[1])]
    train, tests = (parts[0], parts[1:]) if parts[1:] else images.split_by_folder()
    if not len(train):
        raise UserError(
            f"{path}: no images in {len(files)} tar file{'s' if len(files) > 1 else ''}; looked for the suffixes "
            f"{' '.join(SUFFIXES)}"
        )
    codes_of, values = images.judge(train)
    codes = codes_of(train)
    test, more = _choose_test([part for part in tests if len(part)], None if codes is None else codes_of)
    labels, classes = None, None
    if codes is not None:
        if not images.has_labels and (stray := set(more.tolist()) - set(codes.tolist())):
            known = sorted({str(values[code]) for code in codes.tolist()})
            raise unknown("class folder", str(values[min(stray)]), known, str(path))
        ours = manifest is not None and (
            path.is_dir() or path.name in {each.name for each in manifest.shards}
        )
        names = manifest.classes if manifest is not None and ours else None
        labels, classes = _classes(np.concatenate([codes, more]), values, names, path)
    notes = (*images.notes, *(missing_numbers(files) if manifest is None else ()))
    if manifest is not None and not manifest.complete:
        notes = (*notes, f"{home}: tailfin pack has not finished here; what it has packed is read")
    name = path.stem if path.is_file() else path.resolve().name
    kept = np.concatenate([train, test])
    of_test = torch.arange(len(kept)) >= len(train)
    return Listing(name, images.encoded(kept, home), labels, classes, of_test, notes)


def _choose_test(
    candidates: Sequence[NDArray[np.int64]], codes_of: CodesOf | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images of the test split and their labels' codes: the first candidate that has labels to judge with."""
    none = np.empty(0, dtype=np.int64)
    if codes_of is None:
        return (candidates[0] if candidates else none), none
    for candidate in candidates:
        if (codes := codes_of(candidate)) is not None:
            return candidate, codes
    return none, none


def _classes(
    codes: NDArray[np.int64], values: list[int | str], names: tuple[str, ...] | None, path: Path
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N], -1 for none, and the classes' names."""
    has = codes >= 0
    used = np.unique(codes[has]).tolist()
    told = [values[code] for code in used]
    if names is not None and all(isinstance(value, int) for value in told):
        if (most := max(int(value) for value in told)) >= len(names):
            raise UserError(f"{path}: a label is {most}, but shards.json tells {len(names)} class names")
        numbers, classes = torch.tensor([int(value) for value in told]), names
    elif all(isinstance(value, int) for value in told):
        numbers, classes = enumerate_classes([int(value) for value in told])
    else:
        numbers, classes = enumerate_classes([str(value) for value in told])
    table = torch.full((len(values) + 1,), -1)  # the last one is what code -1 finds
    table[torch.tensor(used)] = numbers
    return table[torch.from_numpy(codes)], classes
