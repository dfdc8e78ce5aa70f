"""Where depthjepa keeps what it can make again: listings, indexes of shards, pieces of shards that lie elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from depthjepa.faults import BadInput


def cache_folder() -> Path:
    """`$DEPTHJEPA_CACHE`, else `depthjepa` in `$XDG_CACHE_HOME` or `~/.cache`; it need not be there yet.

    Raises `BadInput` where the system knows of no home.
    """
    try:
        return _cache_folder()
    except RuntimeError as fault:
        raise BadInput(f"there is no cache folder ({fault}): name one by the variable DEPTHJEPA_CACHE") from fault


def _cache_folder() -> Path:
    if own := os.environ.get("DEPTHJEPA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthjepa"
