"""What a step is, and what listens to it.

Public: `setup.prepare`, which makes a `Setup` of settings; `start.start`, which makes a `Loop` of it; `Loop.run`.
"""
