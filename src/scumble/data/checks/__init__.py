"""The checks of `scumble data check`, grouped by what they look at.

Each has a name, a severity, one sentence on what goes wrong if it is ignored, and what to do.
"""
