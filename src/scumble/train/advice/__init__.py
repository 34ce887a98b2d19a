"""Advice from runs that were made: what their curves, gradients and spectra say, and what to run next.

Knows what a run wrote down, and nothing of how to train. Rules before a run are in `scumble.plan.advice`.
"""
