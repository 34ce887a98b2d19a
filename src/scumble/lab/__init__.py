"""Whole experiments on top of everything else: the demo, the lesson's claims tested, how hard a data set is."""

from scumble.callable import make_callable

make_callable(__name__, "scumble.lab.lesson.lesson", "lab")
