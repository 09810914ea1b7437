"""The table of finished cells: one row a run, as Parquet and CSV, never half written."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailfin.errors import UserError
from tailfin.files import lock, write_atomically
from tailfin.study.spec import cells
from tailfin.study.spec.cells import Cell
from tailfin.study.spec.design import Row

ALWAYS = ("data", "method", "momentum")
"""Settings that every table shows; others appear where rows differ in them."""
TIMINGS = ("target_cost_measured", "images_per_second", "seconds")
"""Columns that two equal runs differ in."""
MEASURED = (
    "knn",
    "linear",
    "validation_knn",
    "knn_momentum",
    "linear_momentum",
    "knn_untrained",
    "linear_untrained",
    "target_cost_predicted",
    *TIMINGS,
    "state",
    "device",
    "versions",
    "parts",
    "momentum_parts",
)
FLUCTUATION = "fluctuation"
SELECTION = "selection"
"""The stage of runs that only helped to choose a setting."""


def row(cell: Cell, result: Mapping[str, Any]) -> Row:
    """What the table keeps of a finished run.

    Args:
        cell: The run's cell.
        result: The content of its result.json.
    """
    momentum = result["scores"].get("backbone_momentum") or {}
    untrained = result["untrained"] or {}
    versions = result["versions"]
    found = {
        "fingerprint": cell.fingerprint,
        "stage": SELECTION if cell.selects else "final",
        "settings": cells.settings(cell.config),
        "seed": cell.config.seed,
        "knn": result["knn"],
        "linear": result["linear"],
        "validation_knn": result["validation_knn"],
        "knn_momentum": momentum.get("knn"),
        "linear_momentum": momentum.get("linear"),
        "knn_untrained": untrained.get("knn"),
        "linear_untrained": untrained.get("linear"),
        "target_cost_predicted": result["target_cost"]["predicted"],
        "target_cost_measured": result["target_cost"]["measured"],
        "images_per_second": result["images_per_second"],
        "seconds": result["seconds"],
        "state": result["verdict"]["state"],
        "device": result["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "parts": " ".join(part["name"] for part in result["parts"]),
        "momentum_parts": " ".join(result["momentum_parts"]),
    }
    for part, values in result.get(FLUCTUATION, {}).items():
        for measure in ("variation", "jump"):
            found[f"{FLUCTUATION}_{measure}.{part}"] = values[measure]
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}


def read(folder: Path) -> dict[str, Row]:
    """The rows by fingerprint; none where there is no table.

    A fingerprint follows from the row's settings as this version of tailfin reads them, so that a table stays valid
    when a later version adds a setting.

    Raises:
        UserError: The table is damaged.
    """
    import pyarrow.parquet as parquet

    path = folder / "table.parquet"
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"cannot read {path}: no plain file")
    try:
        found = parquet.read_table(path).to_pylist()
        rows = {}
        for each in found:
            settings = json.loads(each["settings"])
            config = cells.from_settings(settings)
            if config is not None:
                each["fingerprint"] = cells.fingerprint(config, selects=each["stage"] == SELECTION)
            rows[each["fingerprint"]] = {**each, "settings": settings}
    except UserError:
        raise
    # Errors of Arrow, but also of JSON, of settings of another kind than they should be, and of what is missing.
    except Exception as error:
        raise UserError(f"{path} is damaged or no table of a study: {' '.join(str(error).split())}") from None
    return rows


def add(folder: Path, new: Mapping[str, Row]) -> dict[str, Row]:
    """Add rows to the table on the disk, both files anew; returns all its rows.

    Rows that are there and not in `new` stay, whichever study or process wrote them.
    """
    with lock.holding(folder / "cells" / ".table.lock"):
        rows = {**read(folder), **new}
        columns = _columns(list(rows.values()))
        write_atomically(folder / "table.parquet", _parquet(columns))
        write_atomically(folder / "table.csv", _csv(columns))
    return rows


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Columns in a fixed order, rows in that of their settings."""
    plain = [row["settings"] for row in rows]
    first = plain[0] if plain else {}
    names = [
        name
        for name in cells.MATTERING
        if name in ALWAYS
        or (name not in ("seed", "device") and any(each.get(name) != first.get(name) for each in plain))
    ]
    order = sorted(
        range(len(rows)),
        key=lambda place: ([_sortable(plain[place].get(n)) for n in names], rows[place]["seed"]),
    )
    more = sorted({key for row in rows for key in row if key.startswith(FLUCTUATION)})
    kept = ("fingerprint", "stage", *names, "seed", *MEASURED, *more)
    columns = {name: [_value(rows[place], name, names) for place in order] for name in kept}
    columns["settings"] = [json.dumps(plain[place], sort_keys=True) for place in order]
    return columns


def _value(row: Row, name: str, settings: Sequence[str]) -> Any:
    value = row["settings"].get(name) if name in settings else row.get(name)
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _sortable(value: Any) -> tuple[str, float, str]:
    number = float(value) if isinstance(value, int | float) else 0.0
    return type(value).__name__, number, str(value)


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    parquet.write_table(
        pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()}), sink
    )
    return sink.getvalue()


def _csv(columns: Mapping[str, Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()
