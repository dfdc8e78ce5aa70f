"""Reading a checkpoint of any layout, strictly: ours in one file or in parts, others with what their tensors tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from depthjepa.checkpoints import parts
from depthjepa.checkpoints.checkpoint import FORMAT, Checkpoint
from depthjepa.checkpoints.foreign import from_contents, heads_of
from depthjepa.config.reading import read_resolved
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput
from depthjepa.formats.opening import KINDS, open_file, open_folder, open_name
from depthjepa.formats.weights import Contents, beginnings
from depthjepa.guidance.target import Whitening
from depthjepa.logbook import REST, RunFolder, step_of_parts

KEPT = ("step", "epoch", "config", "classes", "model", "optimizer", "whitening", "floor", "skipped", "reference")
RENAMED = {"head.": "guide.head."}  # beginnings of the names of a guided run's weights, in format 2 and now


def load_checkpoint(
    checkpoint: str | Path,
    settings: Sequence[str] = (),
    like: RunConfig | None = None,
    *,
    moments: bool = False,
    held: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Read a checkpoint of any layout; its tensors stay in the file until they are used.

    `checkpoint` is a run folder (its newest checkpoint), a file, a Hugging Face or timm folder, a hub id or a timm
    name. `settings` (`model.heads=3`, …) complete the configuration of a foreign layout, which says little of it; what
    is still not said is taken from `like`.

    A checkpoint in parts is read into memory, the optimiser's `moments` where they are asked for; a process that has
    shares of the networks (`held`, their state dictionary) reads its shares alone.

    Raises:
        BadInput: nothing is there, a file is truncated, unsafe or of no known layout, or tensors do not fit.
    """
    path, heads = Path(checkpoint), heads_of(settings, like)
    path = path.parent if path.name == REST else path
    if path.is_dir():
        last = path if (path / REST).is_file() else RunFolder(path).checkpoint()
        if last is not None and last.is_dir():
            return _own(_parts(path, last, moments, held), last)
        if last is not None:
            return _own(open_file(last), last)
        if step_of_parts(path) is not None:
            raise BadInput(
                f"{path} is what a kill has left of a checkpoint, {REST} is not there: give the run folder, of which "
                f"the newest whole one is taken"
            )
        if (path / "config.yaml").exists():
            raise BadInput(f"{path} holds no checkpoint: {path / 'checkpoints' / 'last.pt'} is not there")
        return from_contents(open_folder(path, heads=heads), path / "config.json", settings, like)
    if path.is_file():
        found = open_file(path, heads)
        return from_contents(found, path, settings, like) if isinstance(found, Contents) else _own(found, path)
    if path.suffix in (".pt", ".pth", ".tar", ".safetensors") or path.is_absolute():
        raise BadInput(f"there is no checkpoint {path}: give {KINDS}")
    return from_contents(open_name(str(checkpoint), heads), path, settings, like)


def refuse_lost(saved: Checkpoint) -> None:
    """Refuse to build the guide or to go on with a run that needs what this version no longer has; say what."""
    if saved.lost:
        raise BadInput(
            f"{saved.path} was trained with {', '.join(saved.lost)}, which this version no longer has: its encoder can "
            f"be probed, embedded and converted, but the run cannot go on, nor its own head be asked"
        )


def _parts(asked: Path, path: Path, moments: bool, held: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The content of a checkpoint in parts; of a run that goes on meanwhile the next one, where this one is gone."""
    try:
        return parts.read(path, moments=moments, held=held)
    except BadInput:
        newer = RunFolder(asked).checkpoint()
        if path.exists() or newer is None or not newer.is_dir():
            raise
        return parts.read(newer, moments=moments, held=held)


def _own(content: Any, path: Path) -> Checkpoint:
    if not isinstance(content, dict) or "format" not in content or "config" not in content:
        held = f" (its keys: {beginnings(map(str, content))})" if isinstance(content, dict) and content else ""
        raise BadInput(f"{path} is not a checkpoint: it is neither depthjepa's nor of a layout that it reads{held}")
    if content["format"] not in (2, FORMAT):
        raise BadInput(f"{path} has format {content['format']}, and this version of depthjepa reads 2 and {FORMAT}")
    if absent := [each for each in KEPT if each not in content]:
        raise BadInput(f"{path} is no whole checkpoint: {', '.join(absent)} is missing; copy or write it again")
    config, lost = read_resolved(content["config"])
    model, optimizer = content["model"], content["optimizer"]
    if content["format"] == 2 and config.train.objective == "jepa":
        model, optimizer = _renamed(model, optimizer)
    white = content["whitening"]
    return Checkpoint(
        step=content["step"],
        epoch=content["epoch"],
        config=config,
        lost=lost,
        classes=tuple(content["classes"]),
        model=model,
        optimizer=optimizer,
        whitening=None if white is None else Whitening(white["mean"], white["deviation"]),
        floor=content["floor"],
        skipped=tuple(content["skipped"]),
        path=path,
        reference=content["reference"],
    )


def _renamed(model: dict[str, Tensor], optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Networks and optimiser of format 2 under today's names."""

    def now(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in RENAMED.items() if name.startswith(old)), name)

    groups = [group | {"param_names": list(map(now, group["param_names"]))} for group in optimizer["param_groups"]]
    return {now(key): value for key, value in model.items()}, {**optimizer, "param_groups": groups}
