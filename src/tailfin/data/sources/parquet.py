"""Parquet files in the Hugging Face layout: an image column, an optional label column, splits by file
name."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tailfin.data.source import (
    Blob,
    Encoded,
    Listing,
    Unreadable,
    by_split,
    enumerate_classes,
    files_below,
    fingerprint,
    leads_outside,
    refuse_links,
)
from tailfin.errors import UserError, printable

_LABELS: Final = ("label", "labels", "fine_label")
_BATCH, _BATCH_BYTES = 8, 2**26
"""Most rows read at a time, and bytes that they may need: rows can share one value, which the file holds once and
memory as often as it is used (2 kB of a file became 9 GB, 256 rows at a time). Eight rows at a time took 1.2 times as
long as 256, without decoding."""


def find_files(folder: Path) -> list[Path]:
    """Every Parquet file in a folder or up to two folders below it, hidden ones left out, sorted by path."""
    return files_below(folder, ".parquet")


def list_parquet(path: Path, *, follow_links: bool = False) -> Listing:
    """The images of one Parquet file, or of a folder of them.

    A file's split is the word its name begins with (`train-*`, `test-*`, `validation-*`), or else the name of
    its folder; without any `train` file, the files of no known split are the training images. `test` is
    preferred to `validation` as the test split, unless it is unlabelled (all labels -1), as that of ImageNet.
    A single file is all training images. Rows whose label is null, negative or missing have none.

    Raises:
        UserError: For a damaged file, one without an image column, differing schemas, labels out of range, or files
            that are links out of the folder, unless `follow_links`.
    """
    train, tests = ([path], []) if path.is_file() else by_split(find_files(path), path, "train-*.parquet")
    if path.is_dir() and not follow_links:
        refuse_links([*train, *(file for files in tests for file in files)], path)
    schema = _schema(train[0])
    column = _image_column(train[0], schema)
    label = next(
        (name for name in _LABELS if name in schema.names and _is_label(schema.field(name).type)), None
    )

    values = None if label is None else _read_labels(train, label)
    test: list[Path] = []
    if values is not None and label is not None:
        for files in tests:
            if (more := _read_labels(files, label)) is not None:
                test, values = files, values + more
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


@contextmanager
def _open(file: Path) -> Iterator[pq.ParquetFile]:
    """An open file; whatever pyarrow meets in a damaged one is a line that names it."""
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    # Errors of Arrow and of the system, but also of text that is not UTF-8, of numbers too large, of memory.
    except Exception as error:
        words = printable((str(error) or type(error).__name__).splitlines()[0])
        raise UserError(f"{file}: not readable as Parquet (damaged or cut short?): {words}") from error


def _schema(file: Path) -> pa.Schema:
    with _open(file) as parquet:
        names = parquet.schema_arrow.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{file}: more than one column is called {twice[0]!r}")
        return parquet.schema_arrow


def _rows(file: Path) -> int:
    with _open(file) as parquet:
        told = parquet.metadata.num_rows
        groups = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
        # A row takes a byte at the least: a damaged count must not claim memory for its images' numbers.
        if told != sum(groups) or min(groups, default=0) < 0 or told > file.stat().st_size:
            raise UserError(f"{file}: damaged: it tells of {told} rows, and its parts of {sum(groups)}")
        return told


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The columns' types as the Hugging Face metadata tells them, empty where there is none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
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


def _read_labels(files: Sequence[Path], name: str) -> list[int | str | None] | None:
    """The label of each row, an integer or a string, None where it has none; None where no row has one."""
    found: list[int | str | None] = []
    for file in files:
        schema = _schema(file)
        if name not in schema.names:
            found += [None] * _rows(file)
            continue
        if not _is_label(schema.field(name).type):
            raise UserError(
                f"{file}: column {name!r} holds {schema.field(name).type}, not labels as in the others"
            )
        with _open(file) as parquet:
            column = parquet.read(columns=[name]).column(0)
            if len(column) != (rows := _rows(file)):
                raise UserError(f"{file}: damaged: {len(column)} labels of {rows} rows")
            found += [
                None if value is None or (isinstance(value, int) and value < 0) else value
                for value in column.to_pylist()
            ]
    return None if all(value is None for value in found) else found


def _classes(
    values: list[int | str | None], name: str, schema: pa.Schema, path: Path
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N], -1 for none, and the classes' names."""
    told = [value for value in values if value is not None]
    has = torch.tensor([value is not None for value in values])
    labels = torch.full((len(values),), -1)
    if any(isinstance(value, str) for value in told):
        labels[has], classes = enumerate_classes([str(value) for value in told])
        return labels, classes
    numbers = [int(value) for value in told]
    feature = _features(schema).get(name)
    names = feature.get("names") if isinstance(feature, dict) else None
    if max(numbers) >= 2**63:
        raise UserError(f"{path}: column {name!r} holds {max(numbers)}; labels must lie below 2^63")
    if not isinstance(names, list):
        labels[has], classes = enumerate_classes(numbers)
        return labels, classes
    if max(numbers) >= len(names):
        raise UserError(
            f"{path}: column {name!r} holds {max(numbers)}, but there are {len(names)} class names "
            f"(0 to {len(names) - 1})"
        )
    labels[has] = torch.tensor(numbers)
    return labels, tuple(str(each) for each in names)


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
        first = found = 0
        for group in range(parquet.num_row_groups):
            last = first + parquet.metadata.row_group(group).num_rows
            if ((rows >= first) & (rows < last)).any():
                start = first
                # Not the column's own size: to ask for a damaged column's metadata aborts the process (pyarrow 26).
                size = parquet.metadata.row_group(group).total_byte_size
                batch_size = min(_BATCH, max(1, _BATCH_BYTES // max(1, size)))
                for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=[column]):
                    inside = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
                    start += batch.num_rows
                    found += len(inside)
                    for value in batch.column(0).take(pa.array(inside)).to_pylist():
                        yield _blob(value, file.parent)
            first = last
        if found != len(rows):
            raise UserError(
                f"{file}: damaged: {len(rows) - found} of the rows that it tells of are not there"
            )


def _blob(value: Any, folder: Path) -> Blob:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if name := value.get("path"):
            if not isinstance(name, str) or "\0" in name:
                return Unreadable(f"its path is {name!r}, which names no file")
            file = folder / name
            # A data set from elsewhere must not make this program open files outside its own folder.
            if leads_outside(file, folder):
                return Unreadable(f"its path leads outside {folder}")
            if file.exists() and not file.is_file():
                return Unreadable("its path is no plain file")
            return file.resolve()
    return Unreadable("the row holds neither bytes nor a path")
