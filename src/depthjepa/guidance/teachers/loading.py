"""What there is to know of a teacher beside its name, and loading one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthjepa.faults import BadInput, nearest
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher
from depthjepa.guidance.teachers.table import TEACHERS


@dataclass(frozen=True, slots=True)
class TeacherKind:
    """What there is to know of a teacher beside its name.

    `build` makes it of the keys `guidance.teacher_*`, `load` of Python's arguments (`depthjepa.load_teacher`); both
    raise `BadInput`. `settings` are the keys that change its latents, and `weights` the files that do: a cache of
    latents remembers both. `places` are the keys that say where its files lie. `fitted_on` names data whose depth the
    weights that come with this package have seen.
    """

    build: Callable[[FeatureGuidance], Teacher]
    load: Callable[..., Any] | None = None  # None: it is no network by itself
    settings: tuple[str, ...] = ()
    weights: Callable[[FeatureGuidance], Mapping[str, str | Path | None]] = lambda _: {}
    places: tuple[str, ...] = ()
    fitted_on: str | None = None

    @property
    def is_network(self) -> bool:
        """Whether it sees images alone; otherwise it reads the depth of the data."""
        return self.load is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys of guidance, beside those that all teachers have, that change what it says."""
        return (*self.settings, *self.places)


def teacher_kind(name: str) -> TeacherKind:
    """What there is to know of a teacher; raises `BadInput` for a name that no row has."""
    kind = TEACHERS.load(name)
    assert isinstance(kind, TeacherKind)
    return kind


def networks() -> tuple[str, ...]:
    """Names of the teachers that are networks: of these `depthjepa teach` can keep the latents."""
    return tuple(name for name in TEACHERS.names if teacher_kind(name).is_network)


def load_teacher(name: str, **settings: Any) -> Any:
    """Load a frozen depth network: `teacher.describe()`, `teacher.latents(images)` of images [b, 3, h, w] in [0, 1].

    `name` is a row of `TEACHERS` that is a network; `settings` are the arguments of its own loader. `depthfm`: see
    `depthfm.network.load_depthfm` (`checkpoint`, `vae`, `steps`, `attention`, `ensemble`, `seed`, `output`);
    `depthfm-tiny`: the same without `checkpoint` and `vae`; `huggingface`: see `transformers_depth.load_huggingface`
    (`checkpoint`, `output`, `layer`, `side`); `onnx`: see `onnx_depth.load_onnx` (`checkpoint`, `output`, `direction`,
    `unit`, `mean`, `deviation`, `multiple`).

    Raises `BadInput`, also for an argument that this teacher does not take or lacks.
    """
    if name not in (known := networks()):
        raise BadInput(f"there is no teacher network {name!r}{nearest(name, known)}: {', '.join(known)}")
    load = teacher_kind(name).load
    assert load is not None
    taken = {key: each for key, each in inspect.signature(load).parameters.items() if key != "name"}
    for key in settings:
        if key not in taken:
            raise BadInput(f"the teacher {name} takes no {key!r}{nearest(key, taken)}: it has {', '.join(taken)}")
    if lacking := [key for key, each in taken.items() if each.default is each.empty and settings.get(key) is None]:
        raise BadInput(f"the teacher {name} needs {' and '.join(lacking)}: {TEACHERS.row(name).about}")
    return load(**settings)
