"""A training from its first step, or from its checkpoint: the loop of a setup, and who listens to it."""

import math
from collections.abc import Callable

from tailfin.files.reading import understand
from tailfin.run.folder import Log, RunFolder
from tailfin.training.checkpoints import LOGS, Checkpoints, identity, restore
from tailfin.training.listeners import Listener, Metrics, Progress, Telling, Timing, Validation
from tailfin.training.loop import Loop
from tailfin.training.monitors import Monitors
from tailfin.training.setup import Setup


def start(setup: Setup, folder: RunFolder, validate: Callable[[], float] | None, progress: Progress) -> Loop:
    """The loop that trains a setup in its run folder, from the checkpoint there if there is one.

    Args:
        setup: What to train.
        folder: Where to keep it.
        validate: Gives the validation accuracy, looked at `knn_evaluations` times; None where there are no labels.
        progress: Told after each log row.

    Raises:
        UserError: The folder's checkpoint is damaged or belongs to other settings or other data.
    """
    config, step = setup.config, setup.step()
    held = restore(folder.checkpoint, step, config, setup.data.train)
    files = {name: getattr(folder, name) for name in LOGS}
    logs = {
        name: Log(file, held.lengths[name])
        for name, file in files.items()
        if name != "stability" or config.monitored()
    }
    metrics = Metrics(
        logs["metrics"],
        setup.encoder,
        step.schedule,
        setup.steps_per_epoch,
        held.losses,
    )
    monitors = monitors_of(setup, logs.get("stability"))
    understand(
        f"checkpoint {folder.checkpoint}", lambda: monitors.restore(held.tensors, setup.execution.device)
    )
    timing = Timing(logs["timing"], config.batch_size)
    epochs = _spread(config.epochs, config.knn_evaluations)
    validation = Validation(logs["metrics"], validate, epochs, setup.steps_per_epoch, held.knn)
    kept: list[Listener] = [metrics, timing, monitors, validation]
    listeners: list[Listener] = [
        *kept,
        Telling(progress, metrics, timing, validation),
        Checkpoints(
            folder.checkpoint,
            step,
            kept,
            {name: logs.get(name) for name in LOGS},
            identity(config, setup.data),
            config.checkpoint_minutes,
        ),
    ]
    return Loop(step, setup.feed(), listeners, held.step)


def monitors_of(setup: Setup, log: Log | None) -> Monitors:
    """The monitors that a run's settings ask for."""
    wanted = setup.config.monitored()
    return Monitors(
        log,
        setup.gradient_monitor() if "gradient" in wanted else None,
        setup.probe() if "probe" in wanted else None,
        setup.config.accumulate,
    )


def _spread(epochs: int, times: int) -> frozenset[int]:
    """Epochs, counted from 1, after which to evaluate: evenly spread, the last one included."""
    times = min(times, epochs)
    return frozenset(math.ceil(epochs * (i + 1) / times) for i in range(times))
