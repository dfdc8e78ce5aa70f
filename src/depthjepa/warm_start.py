"""Starting a run from a checkpoint of any layout (`init.checkpoint`).

Both encoders and, where the file holds it, the predictor are taken over; head and optimiser start anew. A file that
holds one encoder gives it to both. Position embeddings are stretched to the run's grid when it has another.
"""

from __future__ import annotations

from depthjepa import checkpoint
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig
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
    saved = checkpoint.load(config.init.checkpoint, like=config)
    return f"start from {config.init.checkpoint}: {take_over(method, config, saved)}"


def take_over(method: JEPA | Supervised, config: RunConfig, saved: Checkpoint) -> str:
    """Load the weights of a checkpoint into the networks of a run; see `start_from`.

    The networks take the checkpoint's own tensors where they can: whoever trains them changes the checkpoint.
    """
    _refuse_other_model(saved, config)
    grids = saved.config.grid, config.grid
    taken = [f"{saved.which('context')} encoder as context encoder"]
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
    here, there = config.model, saved.config.model
    faults = [
        f"model.{key}={ours} here and {theirs} there"
        for key, ours, theirs in (
            *zip(here.shape._fields, here.shape, there.shape, strict=True),
            ("patch_size", here.patch_size, there.patch_size),
            ("mean", here.mean, there.mean),
            ("deviation", here.deviation, there.deviation),
        )
        if ours != theirs
    ]
    if saved.part("predictor") and config.train.objective == "jepa":
        faults += [
            f"predictor.{key}={getattr(config.predictor, key)} here and {getattr(saved.config.predictor, key)} there"
            for key in ("depth", "width")
            if getattr(config.predictor, key) != getattr(saved.config.predictor, key)
        ]
    if faults:
        origin = f"init.checkpoint={config.init.checkpoint}" if config.init.checkpoint else saved.path
        raise BadInput(f"{origin} does not fit the run: {'; '.join(faults)}")


def _stretched(saved: Checkpoint, name: str, grids: tuple[tuple[int, int], tuple[int, int]]) -> Weights:
    weights = {key: value.float() for key, value in saved.part(name).items()}
    for key in ("pos_embed", "predictor_pos_embed"):
        if key in weights and grids[0] != grids[1]:
            weights[key] = stretch(weights[key], *grids)
    return weights


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
