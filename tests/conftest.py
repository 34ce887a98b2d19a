"""What all tests share: nothing is asked of the network, and one thread is used unless a test says otherwise.

Tests run in two processes (`make test`): threads of both on the same two cores would wait for each other.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("SCUMBLE_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there

from tests.bases import letters_base, tiny_base_folder

__all__ = ["letters_base", "tiny_base_folder"]
