"""What a run takes, before anything is loaded: parameters, memory over the step, and time."""
