"""Parquet files in the Hugging Face layout: an image column, an optional label column, splits by file
name."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tailfin.data.source import Blob, Encoded, Listing, Unreadable, enumerate_classes, fingerprint
from tailfin.errors import UserError

_LABELS: Final = ("label", "labels", "fine_label")
_SPLIT: Final = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")
_BATCH: Final = 256


def find_files(folder: Path) -> list[Path]:
    """Every Parquet file in a folder or up to two folders below it, hidden ones left out, sorted by path."""
    found = [
        file for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet") for file in folder.glob(pattern)
    ]
    return sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts))


def list_parquet(path: Path) -> Listing:
    """The images of one Parquet file, or of a folder of them.

    A file's split is the word its name begins with (`train-*`, `test-*`, `validation-*`), or else the name of
    its folder; without any `train` file, the files of no known split are the training images. `test` is
    preferred to `validation` as the test split, unless it is unlabelled (all labels -1), as that of ImageNet.
    A single file is all training images.

    Raises:
        UserError: For a damaged file, one without an image column, differing schemas, or labels out of range.
    """
    train, tests = ([path], []) if path.is_file() else _by_split(path)
    schema = _schema(train[0])
    column = _image_column(train[0], schema)
    label = next(
        (name for name in _LABELS if name in schema.names and _is_label(schema.field(name).type)), None
    )

    values = None if label is None else _read_labels(train, label)
    test: list[Path] = []
    if values is not None:
        for files in tests:
            more = None
            if label is not None and all(label in _schema(file).names for file in files):
                more = _read_labels(files, label)
            if more is not None:
                test, values = files, np.concatenate([values, more])
                break
    elif tests:
        test = tests[0]

    files = train + test
    counts = []
    for file in files:
        names = _schema(file).names
        if column not in names:
            raise UserError(
                f"{file}: no image column {column!r} as in {train[0].name}; columns: {', '.join(names)}"
            )
        counts.append(_rows(file))
    labels, classes = (None, None) if values is None else _classes(values, label or "", schema, path)
    of_test = torch.zeros(sum(counts), dtype=torch.bool)
    of_test[sum(counts[: len(train)]) :] = True
    encoded = _encoded(files, counts, column, path)
    return Listing(path.stem if path.is_file() else path.resolve().name, encoded, labels, classes, of_test)


def _by_split(folder: Path) -> tuple[list[Path], list[list[Path]]]:
    """Training files, and the candidates for the test split, best first."""
    splits: dict[str, list[Path]] = {}
    for file in find_files(folder):
        splits.setdefault(_split_of(file, folder), []).append(file)
    train = splits.get("train") or splits.get("")
    if not train:
        known = ", ".join(sorted(splits))
        raise UserError(f"{folder}: no training split; found only: {known}; expected train-*.parquet")
    return train, [splits[name] for name in ("test", "validation", "valid", "val", "dev") if name in splits]


def _split_of(file: Path, root: Path) -> str:
    """The split that a file's name tells, or else its folder's, unless that is the folder which the user gave."""
    match = _SPLIT.match(file.stem.lower())
    if match is None and file.parent != root:
        match = _SPLIT.match(file.parent.name.lower())
    return "" if match is None else match[1]


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: not readable as Parquet (damaged or cut short?): {str(error).splitlines()[0]}")


def _schema(file: Path) -> pa.Schema:
    with _open(file) as parquet:
        return parquet.schema_arrow


def _rows(file: Path) -> int:
    with _open(file) as parquet:
        return parquet.metadata.num_rows


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The columns' types as the Hugging Face metadata tells them, empty where there is none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_label(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    return pa.types.is_integer(kind) or _is_string(kind)


def _image_column(file: Path, schema: pa.Schema) -> str:
    features = _features(schema)
    told = [
        name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"
    ]
    structs = [
        field.name
        for field in schema
        if isinstance(field.type, pa.StructType)
        and any(part.name == "bytes" and _is_binary(part.type) for part in field.type)
    ]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    readable = structs + binaries
    candidates = [name for name in told if name in readable] or structs or binaries
    if not candidates:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(f"{file}: no image column (a struct with `bytes`, or binary); columns: {columns}")
    return min(candidates, key=lambda name: name not in ("image", "img"))


def _read_labels(files: Sequence[Path], name: str) -> np.ndarray[Any, Any] | None:
    """Raw labels of all rows, integers or strings; None where every one is missing (null or -1)."""
    parts = []
    for file in files:
        if name not in (names := _schema(file).names):
            raise UserError(
                f"{file}: no label column {name!r} as in the other files; columns: {', '.join(names)}"
            )
        with _open(file) as parquet:
            try:
                column = parquet.read(columns=[name]).column(0)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(file, error) from error
        if isinstance(column.type, pa.DictionaryType):
            column = column.cast(column.type.value_type)
        if _is_string(column.type):
            if column.null_count == len(column):
                return None
            if column.null_count:
                raise UserError(f"{file}: {column.null_count} rows have no {name!r}; label all rows, or none")
            parts.append(column.cast(pa.string()).to_numpy())
        else:
            parts.append(column.cast(pa.int64()).fill_null(pa.scalar(-1, pa.int64())).to_numpy())
    values = np.concatenate([part.astype(str) if part.dtype == object else part for part in parts])
    return None if values.dtype.kind == "i" and (values < 0).all() else values


def _classes(
    values: np.ndarray[Any, Any], name: str, schema: pa.Schema, path: Path
) -> tuple[Tensor, tuple[str, ...]]:
    if values.dtype.kind != "i":
        return enumerate_classes(values.tolist())
    feature = _features(schema).get(name)
    names = feature.get("names") if isinstance(feature, dict) else None
    low, high = int(values.min()), int(values.max())
    if isinstance(names, list) and high >= len(names):
        raise UserError(
            f"{path}: column {name!r} holds {high}, but there are {len(names)} class names (0 to {len(names) - 1})"
        )
    if low < 0:
        raise UserError(
            f"{path}: {int((values < 0).sum())} rows have no {name!r} (null or negative); label all rows, or none"
        )
    if isinstance(names, list):
        return torch.from_numpy(values.astype(np.int64)), tuple(str(each) for each in names)
    return enumerate_classes(values.tolist())


def _encoded(files: list[Path], counts: list[int], column: str, path: Path) -> Encoded:
    ends = np.cumsum(counts)
    root = path.parent if path.is_file() else path

    def name(index: int) -> str:
        which = int(np.searchsorted(ends, index, side="right"))
        return f"{files[which].relative_to(root)}[{index - int(ends[which]) + counts[which]}]"

    def stream(index: Sequence[int]) -> Iterator[Blob]:
        wanted = np.asarray(index, dtype=np.int64)
        for file, end, count in zip(files, ends.tolist(), counts, strict=True):
            rows = wanted[(wanted >= end - count) & (wanted < end)] - (end - count)
            if rows.size:
                yield from _read_rows(file, column, rows)

    return Encoded(int(ends[-1]), name, stream, lambda: fingerprint(files))


def _read_rows(file: Path, column: str, rows: np.ndarray[Any, Any]) -> Iterator[Blob]:
    """Images of increasing `rows`, read row group by row group; groups without one are not read."""
    with _open(file) as parquet:
        first = 0
        try:
            for group in range(parquet.num_row_groups):
                last = first + parquet.metadata.row_group(group).num_rows
                if ((rows >= first) & (rows < last)).any():
                    start = first
                    for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=[column]):
                        inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
                        start += batch.num_rows
                        for value in batch.column(0).take(pa.array(inside)).to_pylist():
                            yield _blob(value, file.parent)
                first = last
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file, error) from error


def _blob(value: Any, folder: Path) -> Blob:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("path"):
            file = (folder / value["path"]).resolve()
            # A data set from elsewhere must not make this program open files outside its own folder.
            return (
                file
                if file.is_relative_to(folder.resolve())
                else Unreadable(f"its path leads outside {folder}")
            )
    return Unreadable("the row holds neither bytes nor a path")
