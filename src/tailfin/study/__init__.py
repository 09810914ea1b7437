"""Studies: grids of runs, statistics over seeds, and what they say about the claims.

Public: `command.study`. `spec` is what a study file asks for, `execution` runs it, `results` says what came out.
"""
