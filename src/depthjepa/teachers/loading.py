"""Teachers by their names, for use from Python."""

from __future__ import annotations

from pathlib import Path

from depthjepa.faults import BadInput, nearest
from depthjepa.teachers.depthfm import Attention, DepthFM, load_depthfm

NETWORKS = ("depthfm",)


def load_teacher(
    name: str,
    *,
    checkpoint: str | Path,
    vae: str | Path,
    steps: int = 2,
    attention: Attention = "plain",
    ensemble: int = 1,
    seed: int = 0,
) -> DepthFM:
    """Load a frozen depth network: `teacher.describe()`, `teacher.latents(images)` of images [b, 3, h, w] in [0, 1].

    `name` is `depthfm`; the other arguments are those of `load_depthfm`. Raises `BadInput`.
    """
    if name not in NETWORKS:
        raise BadInput(f"there is no teacher network {name!r}{nearest(name, NETWORKS)}: {', '.join(NETWORKS)}")
    return load_depthfm(checkpoint, vae, steps=steps, attention=attention, ensemble=ensemble, seed=seed)
