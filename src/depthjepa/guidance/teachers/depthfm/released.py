"""The teacher `depthfm`: DepthFM by its released checkpoint."""

from __future__ import annotations

from pathlib import Path

from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.teachers.depthfm.network import DepthFM, load_depthfm
from depthjepa.guidance.teachers.loading import TeacherKind

SETTINGS = ("teacher_steps", "teacher_attention", "teacher_seed", "teacher_output")


def build(guidance: FeatureGuidance) -> DepthFM:
    """Load the networks that `guidance.teacher_*` name; raises `BadInput`."""
    if guidance.teacher_checkpoint is None or guidance.teacher_vae is None:
        raise BadInput(
            "guidance.teacher=depthfm needs guidance.teacher_checkpoint (released as depthfm-v1.ckpt) and "
            "guidance.teacher_vae (the autoencoder of Stable Diffusion 1.5: a folder or hub id)"
        )
    return loaded(guidance, guidance.teacher_checkpoint, guidance.teacher_vae)


def loaded(guidance: FeatureGuidance, checkpoint: str | Path, vae: str | Path) -> DepthFM:
    """A DepthFM of these files with the settings of a run."""
    return load_depthfm(
        checkpoint,
        vae,
        steps=guidance.teacher_steps,
        attention=guidance.teacher_attention,
        seed=guidance.teacher_seed,
        output=guidance.teacher_output,
        name=guidance.teacher,
    )


def weights(guidance: FeatureGuidance) -> dict[str, str | Path | None]:
    """The files that decide what it says."""
    return {"teacher_checkpoint": guidance.teacher_checkpoint, "teacher_vae": guidance.teacher_vae}


TEACHER = TeacherKind(build, load_depthfm, SETTINGS, weights, ("teacher_checkpoint", "teacher_vae"))
