"""Training: one loop on one frozen base, what it decides for the user, and what it writes down.

Knows nothing of serving.
"""

from scumble.callable import make_callable

make_callable(__name__, "scumble.train.run", "train")
