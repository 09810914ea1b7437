"""What moves in an encoder while it trains, part by part: monitors, statistics, collapse, signs and the verdict."""

from tailfin.stability.fluctuation import Fluctuation, fluctuation
from tailfin.stability.gradient import GradientMonitor
from tailfin.stability.probe import Probe

__all__ = ["Fluctuation", "GradientMonitor", "Probe", "fluctuation"]
