"""What a run takes, before anything is loaded: parameters, memory over the step, and time."""

from scumble.callable import make_callable

make_callable(__name__, "scumble.plan.plan", "plan")
