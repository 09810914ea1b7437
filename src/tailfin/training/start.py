"""A training from its first step, or from its checkpoint: the loop of a setup, and who listens to it."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

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
    config, step, epoch = setup.config, setup.step(), setup.steps_per_epoch
    held = restore(folder.checkpoint, step, config, setup.data.train)
    listeners: list[Listener] = []
    with ExitStack() as opened:
        opened.callback(_close, listeners)
        if setup.world.leads:
            logs = {
                name: Log(getattr(folder, name), held.lengths[name])
                for name in LOGS
                if name != "stability" or config.monitored()
            }
            metrics = Metrics(logs["metrics"], setup.encoder, step.schedule, epoch, setup.execution.device)
            timing = Timing(logs["timing"], config.batch_size)
            monitors = monitors_of(setup, logs.get("stability"))
            epochs = _spread(config.epochs, config.knn_evaluations)
            validation = Validation(logs["metrics"], validate, epochs, epoch)
            kept: list[Listener] = [metrics, timing, monitors, validation]
            about = identity(config, setup.data)
            listeners += [
                *kept,
                Telling(progress, metrics, timing, validation),
                Checkpoints(folder.checkpoint, step, kept, logs, about, config.checkpoint_minutes),
            ]
        else:
            # The monitors of all processes hear and look together; what there is to write, the first one writes.
            listeners.append(monitors_of(setup, None))
        if held.state is not None:
            for listener in listeners:
                understand(f"checkpoint {folder.checkpoint}", partial(listener.restore, held.state))
        opened.pop_all()
    return Loop(step, setup.feed(), listeners, held.step)


def monitors_of(setup: Setup, log: Log | None) -> Monitors:
    """The monitors that a run's settings ask for."""
    wanted = setup.config.monitored()
    return Monitors(
        log,
        setup.gradient_monitor() if "gradient" in wanted else None,
        setup.probe() if "probe" in wanted else None,
        setup.config.accumulate,
        setup.execution.device,
        setup.world.mean,
    )


def _close(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _spread(epochs: int, times: int) -> frozenset[int]:
    """Epochs, counted from 1, after which to evaluate: evenly spread, the last one included."""
    times = min(times, epochs)
    return frozenset(math.ceil(epochs * (i + 1) / times) for i in range(times))
