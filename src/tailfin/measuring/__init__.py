"""What a few steps tell before a run: where momentum would steady it, and where its time goes.

Public: `advice.advise`, `timing.bench`.
"""
