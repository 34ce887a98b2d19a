"""Weights of a blend learned from examples."""
