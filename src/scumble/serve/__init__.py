"""Serving: adapters of one base, to talk to.

Knows the bank; knows nothing of how adapters were trained.
"""
