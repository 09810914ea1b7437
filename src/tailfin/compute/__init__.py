"""Where a run computes: the device, its precision and memory format, and trials of them.

Public: `device.Execution` and `find_device`, `trials.fastest`.
"""
