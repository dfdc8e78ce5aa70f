"""Starting a run from a checkpoint of any layout (`init.checkpoint`).

Both encoders and, where the file holds it, the predictor are taken over; head and optimiser start anew. A file that
holds one encoder gives it to both. Position embeddings are stretched to the run's grid when it has another. A vision
transformer of timm or transformers (DINOv2, MAE, DeiT, supervised ones) keeps its class token and registers: they go
through both encoders before the patches.
"""

from __future__ import annotations

from typing import Any

from depthjepa.backbones import vit
from depthjepa.backbones.as_ours import PUBLIC, as_ours
from depthjepa.backbones.network import OpenedNetwork
from depthjepa.backbones.opening import family_of
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.foreign import from_contents
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput
from depthjepa.formats.weights import Weights, load_strictly
from depthjepa.model.jepa import JEPA
from depthjepa.model.supervised import Supervised
from depthjepa.model.vit import stretch


def start_from(method: JEPA | Supervised, config: RunConfig) -> str:
    """Load the weights of `config.init.checkpoint` into the networks; say in one line what was taken.

    Raises:
        BadInput: the checkpoint cannot be read, or its networks are of another size than the run's.
    """
    assert config.init.checkpoint is not None
    family, found = family_of(config.init.checkpoint)
    if family is vit.FAMILY:
        saved = load_checkpoint(config.init.checkpoint, like=config)
    else:
        opened = family.open(found, ())
        assert isinstance(opened, OpenedNetwork)
        saved = from_contents(as_ours(opened), found.place, like=config)
    return f"start from {config.init.checkpoint}: {take_over(method, config, saved)}"


def take_over(method: JEPA | Supervised, config: RunConfig, saved: Checkpoint) -> str:
    """Load the weights of a checkpoint into the networks of a run; see `start_from`.

    The networks take the checkpoint's own tensors where they can: whoever trains them changes the checkpoint.
    """
    _refuse_other_model(saved, config)
    grids = saved.config.grid, config.grid
    whole = f"{saved.holds}: " if saved.layout == PUBLIC else ""
    taken = [f"{whole}{saved.which('context')} encoder as context encoder"]
    # Tensors are put in place as they lie in the file: a network of several GB is not held twice.
    context = _stretched(saved, f"{saved.which('context')}_encoder", grids)
    load_strictly(method.context_encoder, context, saved.path, assign=True)
    predictor = "none needed"
    if isinstance(method, JEPA):
        taken.append(f"{saved.which('target')} encoder as target encoder")
        target = _stretched(saved, f"{saved.which('target')}_encoder", grids)
        # One encoder for both, or a file that holds it twice as one, must not become one memory.
        shared = {value.data_ptr() for value in context.values()}
        target = {key: value.clone() if value.data_ptr() in shared else value for key, value in target.items()}
        load_strictly(method.target_encoder, target, saved.path, assign=True)
        predictor = "starts at random: the checkpoint holds none"
        if saved.part("predictor"):
            load_strictly(method.predictor, _stretched(saved, "predictor", grids), saved.path, assign=True)
            predictor = "taken as well"
    stretched = "" if grids[0] == grids[1] else f"; positions stretched from {_by(grids[0])} to {_by(grids[1])} patches"
    assumed = "".join(f"; assumed: {what}" for what in saved.assumed)
    return f"{', '.join(taken)}; predictor {predictor}{stretched}{assumed}"


def _refuse_other_model(saved: Checkpoint, config: RunConfig) -> None:
    if differing := _differing(saved, config):
        origin = f"init.checkpoint={config.init.checkpoint}" if config.init.checkpoint else saved.path
        faults = [f"{key}={ours} here and {theirs} there" for key, ours, theirs in differing]
        advice = " ".join(f"{key}={_written(theirs)}" for key, _, theirs in differing)
        raise BadInput(f"{origin} does not fit the run: {'; '.join(faults)}; take {advice}")


def _differing(saved: Checkpoint, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Keys in which the networks of a run and of a checkpoint differ, with both values."""
    here, there = config.model, saved.config.model
    keys = ("patch_size", "prefix_tokens", "norm_eps", "mean", "deviation")
    pairs: list[tuple[str, Any, Any]] = [
        (f"model.{key}", ours, theirs)
        for key, ours, theirs in zip(here.shape._fields, here.shape, there.shape, strict=True)
    ]
    pairs += [(f"model.{key}", getattr(here, key), getattr(there, key)) for key in keys]
    if (here.layer_scale is None) != (there.layer_scale is None):  # what scales begin at does not matter
        pairs.append(("model.layer_scale", here.layer_scale, there.layer_scale))
    if saved.part("predictor") and config.train.objective == "jepa":
        ours, theirs = config.predictor, saved.config.predictor
        pairs += [(f"predictor.{key}", getattr(ours, key), getattr(theirs, key)) for key in ("depth", "width")]
    return [(key, ours, theirs) for key, ours, theirs in pairs if ours != theirs]


def _written(value: Any) -> str:
    """A value as it is given on the command line."""
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def _stretched(saved: Checkpoint, name: str, grids: tuple[tuple[int, int], tuple[int, int]]) -> Weights:
    weights = {key: value.float() for key, value in saved.part(name).items()}
    for key in ("pos_embed", "predictor_pos_embed"):
        if key in weights and grids[0] != grids[1]:
            weights[key] = stretch(weights[key], *grids)
    return weights


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
