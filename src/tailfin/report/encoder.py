"""The picture of the encoder: its parts, their share of the compute, the fork and the momentum parts."""

from collections.abc import Sequence
from html import escape

from tailfin.report.content import PartRow
from tailfin.report.words import share

# More columns than these leave no room for their labels in a window of 900 pixels: then each part is a row.
MOST_COLUMNS = 9


def cost_in_words(parts: Sequence[PartRow]) -> str:
    """What the target path costs, from the parts' shares, as one sentence."""
    repeated = [part for part in parts if part.on_target_path]
    if not repeated:
        return (
            "There is no target path: the target is the online branch itself, and nothing is computed twice."
        )
    said = f"The target path repeats {share(sum(part.share for part in repeated))} of the forward computation"
    if len(repeated) == len(parts):
        return f"{said}: it forks before the first part, and the whole encoder runs twice."
    return f"{said}: it forks at {repeated[0].name}, and what lies before is computed once for both branches."


def picture(parts: Sequence[PartRow]) -> str:
    """An HTML figure with one column a part: share of the forward FLOPs, online box, box on the target path.

    Boxes rather than a plot, so that a narrow window can turn the columns into rows at full text size.
    """
    largest = max((part.share for part in parts), default=0) or 1
    forked = False
    columns = []
    for part in parts:
        forks = part.on_target_path and not forked
        forked |= forks
        columns.append(_column(part, part.share / largest, forks))
    described = "; ".join(f"{part.name} {share(part.share)}, {_role(part)}" for part in parts)
    many = " many" if len(parts) > MOST_COLUMNS else ""
    return f"""<figure class="encoder">
<div class="parts{many}" role="img" aria-label="{escape(f"Parts of the encoder in forward order: {described}.")}">
<div class="part heads" aria-hidden="true"><span class="name"></span><span class="bar">forward FLOPs</span>
<span class="box">online</span><span class="box">target</span></div>
{"".join(columns)}
</div>
<ul class="legend">
<li><span class="key online"></span>online weights, with gradient</li>
<li><span class="key momentum"></span>momentum weights (EMA)</li>
<li><span class="key frozen"></span>online weights again, without gradient</li>
<li><span class="key shared"></span>computed once, shared by the target</li>
<li><span class="key fork"></span>fork</li>
</ul>
</figure>"""


def _role(part: PartRow) -> str:
    if part.momentum:
        return "momentum weights on the target path"
    if part.on_target_path:
        return "online weights repeated on the target path"
    return "computed once"


def _column(part: PartRow, level: float, forks: bool) -> str:
    kind, label = "shared", "shared"
    if part.momentum:
        kind, label = "momentum", "momentum"
    elif part.on_target_path:
        kind, label = "frozen", "online"
    return f"""<div class="part{" forks" if forks else ""}" style="--level:{level:.4f}">
<span class="name">{escape(part.name)}</span>
<span class="bar"><span class="fill"></span><span class="value">{escape(share(part.share))}</span></span>
<span class="box online">online</span>
<span class="box {kind}"><span class="label">{label}</span></span></div>
"""
