"""`python -m tailfin`."""

from tailfin.cli import main

main()
