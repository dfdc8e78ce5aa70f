"""I-JEPA pretraining with depth guidance, and honest measurement of the geometry in the features.

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthjepa import evaluation
    from depthjepa.backbones.opening import load_encoder
    from depthjepa.commands.apply import predict
    from depthjepa.commands.compare import compare
    from depthjepa.commands.diagnose import diagnose
    from depthjepa.commands.embed import embed
    from depthjepa.commands.probe import probe
    from depthjepa.config.reading import load_config
    from depthjepa.faults import BadInput, RunStopped
    from depthjepa.guidance.teachers.loading import load_teacher
    from depthjepa.training import train

__version__ = "0.1.0"
__all__ = [
    "BadInput",
    "RunStopped",
    "compare",
    "diagnose",
    "embed",
    "evaluation",
    "load_config",
    "load_encoder",
    "load_teacher",
    "predict",
    "probe",
    "train",
]

_HOMES = {
    "BadInput": "faults",
    "RunStopped": "faults",
    "compare": "commands.compare",
    "diagnose": "commands.diagnose",
    "embed": "commands.embed",
    "load_config": "config.reading",
    "load_encoder": "backbones.opening",
    "load_teacher": "guidance.teachers.loading",
    "predict": "commands.apply",
    "probe": "commands.probe",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"depthjepa.{_HOMES[name]}"), name)
    if name == "evaluation":
        return importlib.import_module("depthjepa.evaluation")
    raise AttributeError(f"module 'depthjepa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
