"""The command line: words are parsed once, and what commands find is said on the screen.

Public: `main`.
"""

from tailfin.cli.main import main

__all__ = ["main"]
