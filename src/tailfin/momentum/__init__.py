"""Momentum placed on parts of an encoder."""

from tailfin.momentum.encoder import MomentumEncoder
from tailfin.momentum.parts import Parts, split
from tailfin.momentum.placement import Placement
from tailfin.momentum.update import Decay, scale_decay

__all__ = ["Decay", "MomentumEncoder", "Parts", "Placement", "scale_decay", "split"]
