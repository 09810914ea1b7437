"""`report` as a function: a run's page, from what its folder holds."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tailfin.errors import UserError
from tailfin.files import write_atomically
from tailfin.files.reading import understand
from tailfin.run import config as settings
from tailfin.run.folder import RunFolder

T = TypeVar("T")


def report(run: Path, lost: list[str] | None = None) -> Path:
    """Build a run's report.html again.

    Args:
        run: The run folder.
        lost: Takes a line for each thing that could not be read or drawn.

    Returns:
        The page.

    Raises:
        UserError: No such run, or the page cannot be written.
    """
    return write_report(RunFolder.open(run), lost=lost)


def write_report(
    folder: RunFolder, unfinished: Mapping[str, Any] | None = None, lost: list[str] | None = None
) -> Path:
    """Build report.html from what the run folder holds, finished or not.

    Args:
        folder: The run.
        unfinished: Results of a run that came to no result.json, such as the verdict on one that diverged.
        lost: Takes a line for each thing that could not be read or drawn; the page tells them too.
    """
    from tailfin.report.page import PartRow, ReportContent, render

    lost = [] if lost is None else lost

    def readable(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except UserError as error:
            lost.append(str(error))
            return None

    result = unfinished or readable(folder.read_result) or {}
    pictures = readable(folder.read_pictures) or {}
    parts = readable(
        lambda: understand(
            f"{folder.result}: parts", lambda: [PartRow(**row) for row in result.get("parts", [])]
        )
    )
    content = ReportContent(
        config=settings.as_dict(folder.read_config()),
        metrics=folder.read_metrics(lost),
        timing=folder.read_timing(lost),
        stability=folder.read_stability(lost),
        result=result,
        parts=parts or [],
        placement=folder.read_config().momentum,
        views=pictures.get("views"),
        neighbours=pictures.get("neighbours"),
        neighbour_names=result.get("neighbour_names"),
        skipped=readable(folder.read_skipped) or [],
        command=f"tailfin pretrain --config {shlex.quote(str(folder.config))}",
    )
    write_atomically(folder.report, render(content, lost).encode(errors="backslashreplace"))
    return folder.report
