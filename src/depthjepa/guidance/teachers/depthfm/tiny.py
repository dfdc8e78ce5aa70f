"""The teacher `depthfm-tiny`: a compact network of DepthFM's kind that comes with this package.

It was fitted on rendered streets (`depthjepa fit-teacher`, docs/teachers.md) and knows nothing else.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.teachers.depthfm.network import Attention, DepthFM, load_depthfm
from depthjepa.guidance.teachers.depthfm.released import SETTINGS, loaded
from depthjepa.guidance.teachers.fit.config import AUTOENCODER, CHECKPOINT
from depthjepa.guidance.teachers.loading import TeacherKind

NAME = "depthfm-tiny"
FITTED_ON = "scenes:0"  # with the ground truth of these scenes


def files() -> tuple[Path, Path]:
    """Its checkpoint and its autoencoder."""
    place = Path(str(resources.files("depthjepa.guidance.teachers.depthfm"))) / "weights"
    return place / CHECKPOINT, place / AUTOENCODER


def build(guidance: FeatureGuidance) -> DepthFM:
    """Load it with the settings of a run; raises `BadInput` for weights of one's own."""
    if guidance.teacher_checkpoint is not None or guidance.teacher_vae is not None:
        raise BadInput(
            f"guidance.teacher_checkpoint and guidance.teacher_vae are for teachers without weights of their own, not "
            f"for guidance.teacher={NAME}"
        )
    return loaded(guidance, *files())


def load(
    *, steps: int = 2, attention: Attention = "plain", ensemble: int = 1, seed: int = 0, output: str = "depth"
) -> DepthFM:
    """Load it for use from Python; arguments as of `load_depthfm`."""
    return load_depthfm(
        *files(), steps=steps, attention=attention, ensemble=ensemble, seed=seed, output=output, name=NAME
    )


def weights(guidance: FeatureGuidance) -> dict[str, str | Path | None]:
    """Its own files, by the keys that would name others."""
    return dict(zip(("teacher_checkpoint", "teacher_vae"), files(), strict=True))


TEACHER = TeacherKind(build, load, SETTINGS, weights, fitted_on=FITTED_ON)
