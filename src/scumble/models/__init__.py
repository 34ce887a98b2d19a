"""Bases: what a name stands for, loading it, the embedded default, threads, and the machine's report.

Import from the modules (`scumble.models.base`, `.threads`, `.doctor`): nothing heavy is loaded here.
Knows nothing of training, comparing and serving.
"""
