"""From a configuration to the networks and the teacher of a run."""

from __future__ import annotations

import torch

from depthjepa import distributed, runtime
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput
from depthjepa.guidance.build import build_guidance_target, build_guidance_teacher, build_guide
from depthjepa.guidance.feature import build_latent_head
from depthjepa.guidance.target import Target, Teacher
from depthjepa.guidance.teachers.ground_truth import DepthTeacher
from depthjepa.model.blocks import Block
from depthjepa.model.jepa import JEPA
from depthjepa.model.predictor import Predictor
from depthjepa.model.supervised import Supervised
from depthjepa.model.vit import VisionTransformer, initialise


def build_encoder(config: RunConfig) -> VisionTransformer:
    """Return the encoder at its initial weights: a function of the configuration's seed alone.

    This is also the random encoder that tables set beside a trained one.
    """
    model = config.model
    try:
        encoder = VisionTransformer(
            model.shape, model.patch_size, config.grid, model.mean, model.deviation, model.traits
        )
    except (RuntimeError, MemoryError) as fault:
        if isinstance(fault, RuntimeError) and "allocate" not in str(fault):
            raise
        raise BadInput(
            f"an encoder of model.width={model.shape.width} and model.depth={model.shape.depth} for "
            f"data.image_size={config.data.image_size} does not fit into memory: choose smaller ones"
        ) from fault
    initialise(encoder, runtime.generator(config.seed, "encoder"))
    return encoder


def build_teacher(config: RunConfig, *, has_depth: bool) -> Teacher | None:
    """Return the teacher of a guided or supervised run, None where none is asked for."""
    if config.train.objective == "supervised":
        return DepthTeacher() if has_depth else None
    return build_guidance_teacher(config.guidance, has_depth=has_depth, root=config.data.root, seed=config.seed)


def build_target(config: RunConfig, method: JEPA | Supervised, teacher: Teacher) -> Target:
    """Return what a guided or supervised run is to say of depth, not yet fitted."""
    if isinstance(method, JEPA):
        assert method.guide is not None
        return build_guidance_target(config.guidance, method.guide, teacher, config.grid, config.data.size)
    return Target(teacher, config.target_cells)


def build_method(config: RunConfig, teacher: Teacher | None, classes: int) -> JEPA | Supervised:
    """Return the networks at their initial weights.

    Encoder, predictor and head are drawn from streams of their own, so a guided run and its unguided twin start
    from the same encoder and predictor.
    """
    method = _build_method(config, teacher, classes)
    if config.train.checkpoint_blocks:
        recompute_blocks(method)
    return method


def _build_method(config: RunConfig, teacher: Teacher | None, classes: int) -> JEPA | Supervised:
    encoder = build_encoder(config)
    channels = None if teacher is None else teacher.describe().channels
    if config.train.objective == "supervised":
        return _build_supervised(config, encoder, channels, classes)
    guide = None
    if channels is not None:
        guide = build_guide(config.guidance, encoder, config.predictor, channels, config.seed)
    if not (config.loss.latent or config.loss.pixel or guide):
        raise BadInput("loss.latent=0 leaves nothing to learn: give loss.pixel or guidance.kind=feature or pixel")
    if config.loss.visible and not config.loss.latent:
        raise BadInput("loss.visible is the latent loss on visible tokens: it needs loss.latent above 0")
    predictor = Predictor(
        config.predictor,
        config.model.shape,
        config.grid,
        layers=len(config.loss.target_layers),
        pixels=3 * config.model.patch_size**2 if config.loss.pixel else 0,
        visible=config.loss.visible > 0,
    )
    initialise(predictor, runtime.generator(config.seed, "predictor"))
    return JEPA(encoder, predictor, guide, config.loss)


def _build_supervised(config: RunConfig, encoder: VisionTransformer, channels: int | None, classes: int) -> Supervised:
    if classes == 1:
        raise BadInput(f"train.objective=supervised needs at least two classes, and {config.data.root} has one")
    if channels is None and not classes:
        raise BadInput(f"train.objective=supervised needs depth or labels; {config.data.root} has neither")
    head = None if channels is None else build_latent_head("linear", "zero", encoder.width, channels, config.seed)
    method = Supervised(encoder, head, classes)
    if classes:
        initialise(method.head["classes"], runtime.generator(config.seed, "classes"))
    return method


def recompute_blocks(method: JEPA | Supervised) -> None:
    """Have every transformer block computed again on the way back, in place of keeping what is inside it."""
    for module in method.modules():
        if isinstance(module, Block):
            module.recomputed = True


def shard_blocks(method: JEPA | Supervised, ranks: distributed.Ranks, device: torch.device) -> None:
    """Leave each process its share of the networks, of which it puts together one transformer block at a time."""
    distributed.shard(method, [module for module in method.modules() if isinstance(module, Block)], ranks, device)


def compile_blocks(method: JEPA | Supervised) -> None:
    """Have torch.compile fuse the work within each transformer block, in place; the weights keep their names.

    All blocks of a width share one compiled graph, so the wait before the first step does not grow with the depth.
    """
    for module in method.modules():
        if isinstance(module, Block):
            module.compile()


def parameter_count(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
