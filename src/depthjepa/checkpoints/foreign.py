"""A file of another layout as a checkpoint: its configuration is what its tensors tell, and what is said besides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.faults import BadInput
from depthjepa.formats import reference
from depthjepa.formats.weights import Contents, assemble, load_strictly
from depthjepa.logbook import plain
from depthjepa.model.predictor import Predictor


def from_contents(
    contents: Contents, path: Path, settings: Sequence[str] = (), like: RunConfig | None = None
) -> Checkpoint:
    """Give foreign contents the configuration that they tell, and check every tensor; see `load_checkpoint`."""
    config = _configuration(contents, settings, like)
    for which, weights in contents.encoders.items():
        assemble(config.model, config.grid, weights, f"{contents.source} ({which} encoder)")
    if contents.predictor is not None:
        with torch.device("meta"):
            predictor = Predictor(config.predictor, config.model.shape, config.grid)
        load_strictly(predictor, contents.predictor, f"{contents.source} (predictor)", assign=True)
    model = {
        f"{which}_encoder.{key}": value
        for which, weights in contents.encoders.items()
        for key, value in weights.items()
    }
    model |= {f"predictor.{key}": value for key, value in (contents.predictor or {}).items()}
    training = contents.training or {}
    return Checkpoint(
        step=reference.steps_of(training),
        epoch=float(training.get("epoch") or 0),
        config=config,
        classes=(),
        model=model,
        optimizer={},
        whitening=None,
        floor=None,
        skipped=(),
        path=path,
        layout=contents.layout,
        holds=contents.holds,
        assumed=contents.assumed,
        reference=contents.training,
    )


def _configuration(contents: Contents, settings: Sequence[str], like: RunConfig | None) -> RunConfig:
    image_size, patch = contents.image_size, contents.model.patch_size
    positions = next(iter(contents.encoders.values()))["pos_embed"].shape[1]
    given = _setting(settings, "data.image_size") or (like.data.size if like else None)
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(side, int) for side in given):
        # Sides that make as many patches as there are positions are believed, others are what to stretch to.
        image_size = tuple(given) if (given[0] // patch) * (given[1] // patch) == positions else image_size
    if image_size is None and _setting(settings, "data.image_size"):
        raise BadInput(
            f"{contents.source} has positions for {positions} patches of {patch} px, and data.image_size={given} has "
            f"another number of them"
        )
    if image_size is None:
        raise BadInput(
            f"{contents.source} has positions for an image that is not square, and does not say its sides: give "
            f"data.image_size=[HEIGHT,WIDTH]{_class_token(positions)}"
        )
    content = to_mapping(RunConfig())
    content["name"] = Path(contents.source).name.removesuffix(".tar").rpartition(".")[0] or Path(contents.source).name
    content["model"] = plain({key: getattr(contents.model, key) for key in content["model"]})
    content["data"] |= {
        "root": "",
        "image_size": image_size[0] if image_size[0] == image_size[1] else plain(image_size),
    }
    if contents.predictor is not None:
        blocks = {key.split(".")[1] for key in contents.predictor if key.startswith("predictor_blocks.")}
        width = contents.predictor["mask_token"].shape[-1] if "mask_token" in contents.predictor else 0
        content["predictor"] = {"depth": len(blocks), "width": width}
    if contents.training:
        content["masks"] |= {"bias": "reference"}
        sizes = [contents.training.get(key) for key in ("batch_size", "world_size")]
        if all(isinstance(size, int) and size > 0 for size in sizes):
            content["train"] |= {"batch_size": sizes[0] * sizes[1]}  # type: ignore[operator]
        if isinstance(contents.training.get("lr"), float):
            content["optim"] |= {"lr": contents.training["lr"]}
    return build_config(content, [text for text in settings if not text.startswith("data.image_size=")])


def _class_token(positions: int) -> str:
    patches = positions - 1
    if math.isqrt(patches) ** 2 != patches:
        return ""
    return f" (or it has a class token, {positions} positions = {patches} + 1: encoders of I-JEPA have patches alone)"


def heads_of(settings: Sequence[str], like: RunConfig | None) -> int | None:
    """Attention heads by the settings or by a run that is to start from the file: most layouts leave them out."""
    given = _setting(settings, "model.heads")
    if isinstance(given, int) and given > 0:
        return given
    return like.model.shape.heads if like else None


def _setting(settings: Sequence[str], key: str) -> Any:
    """What the last setting of a key says, None without one."""
    values = [text.partition("=")[2] for text in settings if text.startswith(f"{key}=")]
    return yaml.safe_load(values[-1]) if values else None
