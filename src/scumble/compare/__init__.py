"""Before and after: base and adapter on the same prompts, in one batch.

Knows the bank and the data; knows nothing of training.
"""

from scumble.callable import make_callable

make_callable(__name__, "scumble.compare.run", "compare")
