"""Where Scumble keeps what it can make again. Knows nothing of what is kept there."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Give the cache folder: `SCUMBLE_HOME`, or `~/.cache/scumble`. It is not created.

    Returns:
        An absolute path.
    """
    home = os.environ.get("SCUMBLE_HOME", "").strip()
    folder = Path(home).expanduser() if home else Path.home() / ".cache" / "scumble"
    return folder.absolute()
