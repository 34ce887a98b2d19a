"""What all tests share: nothing is asked of the network, and one thread is used unless a test says otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("SCUMBLE_THREADS", "1")

from tests.bases import letters_base, tiny_base_folder

__all__ = ["letters_base", "tiny_base_folder"]
