"""What a report is made of: plain data, so that a page can be rebuilt from a run folder alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PartRow:
    """One part of the encoder, in forward order.

    Attributes:
        name: The part's name, such as `layer4`.
        share: Its share of the encoder's forward FLOPs, in [0, 1].
        momentum: Whether it keeps momentum weights.
        on_target_path: Whether it lies at or after the fork, so that the target path runs it again.
    """

    name: str
    share: float
    momentum: bool
    on_target_path: bool


@dataclass(frozen=True)
class ReportContent:
    """Everything one pretraining run says about itself.

    Whatever is missing (an empty sequence, an absent key, None) is told in the page as a sentence.

    Attributes:
        config: Resolved settings; may be nested. `method` and `data` name the page.
        metrics: Rows {"step", "epoch", "loss", "lr", "decay"?} and, at evaluations, {"step", "epoch", "knn"},
            `knn` being the validation accuracy in percent.
        timing: Rows {"step", "images_per_second", "data_wait"}; `data_wait` is a fraction of the step's time.
        stability: Rows {"step", "gradient"} and {"step", "probe"} of stability.jsonl.
        result: The run's results: accuracies in percent, `target_cost` as fractions of the forward
            computation, `seconds` of wall time.
        parts: The encoder's parts in forward order.
        placement: The placement as it was written.
        views: uint8 [n, 1 + v, C, S, S]: each image, then its augmented views.
        neighbours: uint8 [n, 1 + k, C, S, S]: each test image, then its nearest training images.
        neighbour_names: The class names beneath `neighbours`, n rows of 1 + k; None without labels.
        skipped: Files that could not be read, and why.
        command: The command that repeats the run.
    """

    config: Mapping[str, object]
    metrics: Sequence[Mapping[str, object]]
    timing: Sequence[Mapping[str, object]]
    stability: Sequence[Mapping[str, object]]
    result: Mapping[str, object]
    parts: Sequence[PartRow]
    placement: str
    views: Tensor | None
    neighbours: Tensor | None
    neighbour_names: Sequence[Sequence[str]] | None
    skipped: Sequence[tuple[str, str]]
    command: str
