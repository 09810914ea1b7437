"""Several processes of one run on this machine, started by torch's own launcher."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tailfin.compute.world import launched
from tailfin.errors import Failed, OfProcess, UserError, printable

MARK = "TAILFIN_LAUNCHED"
"""In the environment of the processes that this launcher started: it says what ended one of them."""
PROGRAM = ("-P", "-m", "tailfin")
"""Without -P, a statistics.py in the folder that a run is started in would run in place of Python's own."""


def check(devices: int, device: torch.device) -> None:
    """Find that so many devices cannot be had.

    Raises:
        UserError: There are fewer, or the processes are started by another launcher already.
    """
    if devices < 1:
        raise UserError(f"--devices is {devices}; it must be at least 1")
    if launched() > 1:
        raise UserError(f"--devices {devices}: {launched()} processes were started already, by torchrun")
    there = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    if devices > there:
        what = "CUDA devices" if device.type == "cuda" else "processors"
        raise UserError(f"--devices is {devices}; this machine has {there} {what}")


def launch(words: Sequence[str], devices: int) -> int:
    """Run `tailfin` with these words as several processes, the first of which speaks.

    Returns:
        The exit code: that of the process which failed first.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    os.environ[MARK] = "1"
    logs = Path(tempfile.mkdtemp(prefix="tailfin-"))
    # What torch's reducer has to say of parameters that take part in every step after all is for nobody here.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    others = dict.fromkeys(range(1, devices), Std.ALL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=logs.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=others),
    )
    try:
        elastic_launch(config, sys.executable)(*PROGRAM, *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        own = error.failures[0].exitcode if 0 in error.failures else 0
        if own == 2 or (rank == 0 and own > 0):  # it has said why
            return int(own)
        said = _last(logs, rank)
        if code == 2:
            raise OfProcess(said.removeprefix("tailfin: ")) from None
        raise Failed(
            f"process {rank} of {devices} ended with {code}: {said}; all it said is in {logs}"
        ) from None
    except SignalException as stop:
        return 128 + int(stop.sigval)
    shutil.rmtree(logs, ignore_errors=True)
    return 0


def _last(logs: Path, rank: int) -> str:
    """The last line that a process wrote to its standard error."""
    for file in sorted(logs.glob(f"*/attempt_*/{rank}/stderr.log"), reverse=True):
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return printable(lines[-1])
    return "it said nothing"
