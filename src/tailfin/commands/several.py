"""Several processes of one run: started with settings that are known to be right, and agreed before they train."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailfin.commands.checking import check
from tailfin.compute.device import find_device
from tailfin.compute.world import check_share
from tailfin.errors import UserError
from tailfin.run import config as settings
from tailfin.run import layers
from tailfin.run.versions import source
from tailfin.training.checkpoints import fingerprint
from tailfin.training.setup import Setup


def start_processes(
    words: Sequence[str],
    devices: int,
    typed: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    resume: str | Path | None = None,
) -> int | None:
    """Run `tailfin pretrain` as several processes, once its settings are known to be right.

    Args:
        words: Of the command line, `--devices` among them.
        devices: How many processes.
        typed, file, resume: As for `pretrain`.

    Returns:
        The exit code; None where one process is enough, which this one is.

    Raises:
        UserError: Settings that are wrong, or devices that this machine lacks.
        Failed: A process ended for no reason that it could say.
    """
    # Torch's launcher takes a second to import.
    from tailfin.compute import launch

    config = layers.layered(layers.base(file, resume), typed)
    launch.check(devices, find_device(config.device))
    if devices == 1:
        return None
    check(config)
    check_share(config.batch_size, config.accumulate, devices)
    left = list(words)
    for place in [place for place, word in enumerate(left) if word.split("=")[0] == "--devices"][::-1]:
        del left[place : place + (1 if "=" in left[place] else 2)]
    return launch.launch(("pretrain", *left), devices)


def check_agreement(setup: Setup) -> None:
    """Find a process with other settings, images or code than the first one before they train together.

    Raises:
        UserError: Naming the process and what differs.
    """
    asked = settings.as_dict(setup.config).items()
    own = {
        "settings": [each for each in asked if each[0] not in settings.HARMLESS],
        "images": fingerprint(setup.data.train),
        "code": source(),
    }
    first, *others = setup.world.every(own)

    def compare() -> None:
        for rank, other in enumerate(others, 1):
            if differing := [name for name, value in other.items() if value != first[name]]:
                raise UserError(f"process {rank} has other {' and '.join(differing)} than the first one")

    setup.world.first(compare)
