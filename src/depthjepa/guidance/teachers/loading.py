"""Teachers by their names, for use from Python."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from depthjepa.faults import BadInput, nearest
from depthjepa.guidance.teachers.depthfm.network import Attention, DepthFM, load_depthfm
from depthjepa.guidance.teachers.fit import AUTOENCODER, CHECKPOINT
from depthjepa.guidance.teachers.transformers_depth import HuggingFaceDepth, Output, load_huggingface

NETWORKS = ("depthfm", "depthfm-tiny", "huggingface")


def tiny_files() -> tuple[Path, Path]:
    """Checkpoint and autoencoder of `depthfm-tiny`, which this package brings along."""
    place = Path(str(resources.files("depthjepa.guidance.teachers.depthfm"))) / "tiny"
    return place / CHECKPOINT, place / AUTOENCODER


def load_teacher(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    vae: str | Path | None = None,
    steps: int = 2,
    attention: Attention = "plain",
    ensemble: int = 1,
    seed: int = 0,
    output: Output = "depth",
    layer: int | None = None,
    side: int | None = None,
) -> DepthFM | HuggingFaceDepth:
    """Load a frozen depth network: `teacher.describe()`, `teacher.latents(images)` of images [b, 3, h, w] in [0, 1].

    `name` is `depthfm` (`checkpoint`, `vae`, `steps`, `attention`, `ensemble`, `seed`, `output`: see `load_depthfm`),
    `depthfm-tiny` (the same, with weights of its own) or `huggingface` (`checkpoint`: a folder or hub id; `output`,
    `layer`, `side`: see `load_huggingface`).

    Raises `BadInput`, also for arguments of the other kind.
    """
    if name not in NETWORKS:
        raise BadInput(f"there is no teacher network {name!r}{nearest(name, NETWORKS)}: {', '.join(NETWORKS)}")
    if name == "huggingface":
        if vae is not None or (steps, attention, ensemble, seed) != (2, "plain", 1, 0):
            raise BadInput("vae, steps, attention, ensemble and seed are for the teacher depthfm, not for huggingface")
        if checkpoint is None:
            raise BadInput(
                "the teacher huggingface needs checkpoint: a folder or hub id of a depth network, such as "
                "depth-anything/Depth-Anything-V2-Small-hf"
            )
        return load_huggingface(checkpoint, output=output, layer=layer, side=side)
    if (layer, side) != (None, None):
        raise BadInput(f"layer and side are for the teacher huggingface, not for {name}")
    if name == "depthfm-tiny":
        if checkpoint is not None or vae is not None:
            raise BadInput("the teacher depthfm-tiny has weights of its own: others are for the teacher depthfm")
        checkpoint, vae = tiny_files()
    if checkpoint is None or vae is None:
        raise BadInput(
            "the teacher depthfm needs checkpoint (released as depthfm-v1.ckpt) and vae (the autoencoder of Stable "
            "Diffusion 1.5: a folder or hub id)"
        )
    return load_depthfm(
        checkpoint, vae, steps=steps, attention=attention, ensemble=ensemble, seed=seed, output=output, name=name
    )
