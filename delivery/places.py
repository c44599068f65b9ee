"""Where things lie that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """PRUNE_EXPORT_CACHE, else the user's cache directory."""
    named = os.environ.get("PRUNE_EXPORT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prune-export"
