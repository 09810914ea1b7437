"""What moves in an encoder while it trains, part by part: monitors, statistics, collapse, signs and the verdict."""

from tailfin.stability.fluctuation import Fluctuation, fluctuation
from tailfin.stability.gradient import GradientMonitor
from tailfin.stability.probe import Probe
from tailfin.stability.tails import TailDrift

__all__ = ["Fluctuation", "GradientMonitor", "Probe", "TailDrift", "fluctuation"]
