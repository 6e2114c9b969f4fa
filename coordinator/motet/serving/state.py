"""The folder of a server: its key and its usage.

UsageStore(default_state() / USAGE_FILE)
"""

import os
from pathlib import Path

USAGE_FILE = "usage.sqlite"


def default_state() -> Path:
    """Where a server keeps them unless it is told: below $XDG_STATE_HOME, or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "motet" / "serving"
