"""Managing: adapters as files, in and out.

The mathematics is in `scumble.lora`; knows nothing of how adapters were trained.
"""
