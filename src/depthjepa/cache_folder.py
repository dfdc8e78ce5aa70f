"""Where depthjepa keeps what it can make again: listings, indexes of shards, pieces of shards that lie elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$DEPTHJEPA_CACHE`, else `depthjepa` in `$XDG_CACHE_HOME` or `~/.cache`; it need not be there yet."""
    if own := os.environ.get("DEPTHJEPA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthjepa"
