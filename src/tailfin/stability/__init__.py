"""What moves in an encoder while it trains, part by part: monitors, statistics, collapse, signs and the verdict."""

from tailfin.stability.fluctuation import Fluctuation, fluctuation
from tailfin.stability.gradient import GradientMonitor
from tailfin.stability.probe import Probe
from tailfin.stability.signs import Sign, find_signs
from tailfin.stability.tails import TailDrift
from tailfin.stability.verdict import Verdict, judge

__all__ = [
    "Fluctuation",
    "GradientMonitor",
    "Probe",
    "Sign",
    "TailDrift",
    "Verdict",
    "find_signs",
    "fluctuation",
    "judge",
]
