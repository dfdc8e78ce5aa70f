"""From a configuration to the networks and the teacher of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from depthjepa import runtime
from depthjepa.config import RunConfig
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Teacher
from depthjepa.guidance.teachers.cache import CachedTeacher, different, made_of, open_cache
from depthjepa.guidance.teachers.controls import build_control
from depthjepa.guidance.teachers.depthfm.network import load_depthfm
from depthjepa.guidance.teachers.ground_truth import DepthPixels, DepthTeacher
from depthjepa.guidance.teachers.loading import tiny_files
from depthjepa.guidance.teachers.transformers_depth import load_huggingface
from depthjepa.model.heads import GuidanceConfig, GuidanceHead
from depthjepa.model.jepa import JEPA
from depthjepa.model.pixel_guidance import PixelGuidance
from depthjepa.model.predictor import Predictor
from depthjepa.model.supervised import Supervised
from depthjepa.model.vit import Block, VisionTransformer, initialise


def build_encoder(config: RunConfig) -> VisionTransformer:
    """Return the encoder at its initial weights: a function of the configuration's seed alone.

    This is also the random encoder that tables set beside a trained one.
    """
    model = config.model
    encoder = VisionTransformer(model.shape, model.patch_size, config.grid, model.mean, model.deviation)
    initialise(encoder, runtime.generator(config.seed, "encoder"))
    return encoder


def build_teacher(config: RunConfig, *, has_depth: bool) -> Teacher | None:
    """Return the teacher of a guided or supervised run, None where none is asked for."""
    if config.train.objective == "supervised":
        return DepthTeacher() if has_depth else None
    guidance = config.guidance
    if guidance.kind == "none":
        return None
    if guidance.kind == "pixel":
        if not has_depth:
            raise BadInput(
                f"guidance.kind=pixel needs depth, but data.root={config.data.root} has none: give an RGB-D folder or "
                f"`scenes`, or let a depth network teach (guidance.kind=feature)"
            )
        numbers = "log" if guidance.target == "bins" else guidance.target
        return DepthPixels(numbers, guidance.nearest, guidance.farthest, guidance.zoom_aware, guidance.sky > 0)
    if guidance.cache is not None:
        teacher = _cached_teacher(guidance)
    else:
        teacher = load_network(guidance) or _depth_teacher(config, has_depth=has_depth)
    return build_control(teacher, guidance.control, config.seed)


def load_network(guidance: GuidanceConfig) -> Teacher | None:
    """Return the teacher network that is asked for, None for ground truth; raises `BadInput`."""
    if guidance.teacher == "depthfm":
        if guidance.teacher_checkpoint is None or guidance.teacher_vae is None:
            raise BadInput(
                "guidance.teacher=depthfm needs guidance.teacher_checkpoint (released as depthfm-v1.ckpt) and "
                "guidance.teacher_vae (the autoencoder of Stable Diffusion 1.5: a folder or hub id)"
            )
        return _depthfm(guidance, guidance.teacher_checkpoint, guidance.teacher_vae)
    if guidance.teacher == "huggingface":
        if guidance.teacher_checkpoint is None:
            raise BadInput(
                "guidance.teacher=huggingface needs guidance.teacher_checkpoint: a folder or hub id of a depth "
                "network, such as depth-anything/Depth-Anything-V2-Small-hf"
            )
        return load_huggingface(
            guidance.teacher_checkpoint, output=guidance.teacher_output, layer=guidance.teacher_layer
        )
    if guidance.teacher_checkpoint is not None or guidance.teacher_vae is not None:
        raise BadInput(
            f"guidance.teacher_checkpoint and guidance.teacher_vae are for depthfm and huggingface, not for "
            f"guidance.teacher={guidance.teacher}"
        )
    return _depthfm(guidance, *tiny_files()) if guidance.teacher == "depthfm-tiny" else None


def _depthfm(guidance: GuidanceConfig, checkpoint: str | Path, vae: str | Path) -> Teacher:
    return load_depthfm(
        checkpoint,
        vae,
        steps=guidance.teacher_steps,
        attention=guidance.teacher_attention,
        seed=guidance.teacher_seed,
        output=guidance.teacher_output,
        name=guidance.teacher,
    )


def _cached_teacher(guidance: GuidanceConfig) -> Teacher:
    """Open the cache; weights that are not named are taken for those it was made of."""
    cache = open_cache(Path(guidance.cache or ""))
    asked, there = made_of(guidance), dict(cache.facts.made_of)
    for key in ("teacher_checkpoint", "teacher_vae"):
        if key not in asked:
            there.pop(key, None)
    if differing := different(there, asked):
        raise BadInput(f"guidance.cache={guidance.cache} holds latents of another teacher or size: {differing}")
    return CachedTeacher(cache)


def _depth_teacher(config: RunConfig, *, has_depth: bool) -> Teacher:
    if not has_depth:
        raise BadInput(
            f"guidance.teacher=depth needs depth, but data.root={config.data.root} has none: give an RGB-D folder "
            f"or `scenes`, or take guidance.kind=none"
        )
    return DepthTeacher()


def build_method(config: RunConfig, teacher: Teacher | None, classes: int) -> JEPA | Supervised:
    """Return the networks at their initial weights.

    Encoder, predictor and head are drawn from streams of their own, so a guided run and its unguided twin start
    from the same encoder and predictor.
    """
    encoder = build_encoder(config)
    head = None if teacher is None else build_head(config, encoder, teacher.describe().channels)
    if config.train.objective == "supervised":
        assert not isinstance(head, PixelGuidance)
        if classes == 1:
            raise BadInput(f"train.objective=supervised needs at least two classes, and {config.data.root} has one")
        if head is None and not classes:
            raise BadInput(f"train.objective=supervised needs depth or labels; {config.data.root} has neither")
        method = Supervised(encoder, head, classes)
        if classes:
            initialise(method.head["classes"], runtime.generator(config.seed, "classes"))
        return method
    if not (config.loss.latent or config.loss.pixel or head):
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
    return JEPA(encoder, predictor, head, config.guidance.weight, config.loss, detached=config.guidance.detached)


def build_head(config: RunConfig, encoder: VisionTransformer, channels: int) -> GuidanceHead | PixelGuidance:
    """Return the head of a guided run, or of a supervised one, at its initial weights."""
    guidance = config.guidance
    if guidance.kind == "pixel" and config.train.objective == "jepa":
        # PyTorch's own initial weights, which keep a signal's size from layer to layer: the deviation of 0.02 that
        # transformers start with would leave a thousandth of it behind five convolutions.
        with runtime.seeded(config.seed, "head"):
            return PixelGuidance(guidance, encoder, config.predictor.depth, config.predictor.width)
    kind = guidance.feature_head if config.train.objective == "jepa" else "linear"
    if kind == "linear" and guidance.fill == "learned":
        raise BadInput("guidance.fill=learned needs guidance.head=conv: the linear head never reads absent patches")
    head = GuidanceHead(kind, guidance.fill, encoder.width, channels)
    initialise(head, runtime.generator(config.seed, "head"))
    return head


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
