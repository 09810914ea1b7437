"""Studies: grids of runs, statistics over seeds, and what they say about the claims."""
