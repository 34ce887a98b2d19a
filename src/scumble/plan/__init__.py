"""What a run takes, before anything is loaded: parameters, memory over the step, and time."""

from scumble.callable import make_callable

# the function that can also measure, and that lies above: the plan itself touches no device
make_callable(__name__, "scumble.lab.planning", "plan")
