"""Whole experiments on top of everything else: the demo, and how hard a data set is."""
