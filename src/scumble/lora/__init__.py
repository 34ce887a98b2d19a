"""The mathematics of adapters: the format, the bank and its layer, and how an update is computed.

Knows nothing of data, of training, or of the command line.
"""
