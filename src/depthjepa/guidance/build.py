"""From the configuration of guidance to the teacher, the guide and the target: the only switch on its kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from depthjepa.data.contents import Contents, stamps_of
from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Source
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance, NoGuidance, PixelGuidance
from depthjepa.guidance.feature import FeatureGuide, build_feature_guide
from depthjepa.guidance.pixel import PixelGuide, build_pixel_guide
from depthjepa.guidance.target import Target, Teacher
from depthjepa.guidance.teachers.cache import cached_teacher, fingerprints, names_of, open_cache
from depthjepa.guidance.teachers.controls import CONTROLS, NONE, build_controls
from depthjepa.guidance.teachers.ground_truth import DepthPixels
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.model.jepa import Guide
from depthjepa.model.predictor import PredictorConfig
from depthjepa.model.vit import VisionTransformer

Guidance = NoGuidance | FeatureGuidance | PixelGuidance
AnyGuide = FeatureGuide | PixelGuide


def build_guidance_teacher(config: Guidance, *, has_depth: bool, root: str, seed: int) -> Teacher | None:
    """The teacher, or the control in its place; None without guidance. `root` names the data in messages.

    Raises `BadInput` where it cannot be had, or needs depth and the data have none.
    """
    match config:
        case FeatureGuidance():
            kind = teacher_kind(config.teacher)
            if not (has_depth or kind.is_network):
                raise BadInput(
                    f"guidance.teacher={config.teacher} needs depth, but data.root={root} has none: give "
                    f"{with_depth()}, or take guidance.kind=none"
                )
            teacher = kind.build(config) if config.cache is None else cached_teacher(config)
            return build_controls(teacher, config.control, config.beside, seed)
        case PixelGuidance():
            if not has_depth:
                raise BadInput(
                    f"guidance.kind=pixel needs depth, but data.root={root} has none: give {with_depth()}, "
                    f"or let a depth network teach (guidance.kind=feature)"
                )
            return DepthPixels(config.target, config.nearest, config.farthest, config.zoom_aware, config.sky > 0)
        case NoGuidance():
            return None


def build_guide(
    config: Guidance, encoder: VisionTransformer, predictor: PredictorConfig, channels: int, seed: int
) -> AnyGuide | None:
    """The guide at its initial weights, for a teacher of so many channels; None without guidance."""
    match config:
        case FeatureGuidance():
            return build_feature_guide(config, encoder, channels, seed)
        case PixelGuidance():
            return build_pixel_guide(config, encoder, predictor.depth, predictor.width, seed)
        case NoGuidance():
            return None


def build_guidance_target(
    config: Guidance, guide: Guide, teacher: Teacher, grid: tuple[int, int], size: tuple[int, int]
) -> Target:
    """What the guide is to say, not yet fitted; for a patch grid and an image size in pixels."""
    assert not isinstance(config, NoGuidance)
    return Target(teacher, config.cells(grid, size), config.centre, config.clip, guide.compare)


def learned_depths(config: Guidance) -> tuple[tuple[float, float] | None, str]:
    """From and to which depth [m] a run learns, with the keys that say so; None: all of it."""
    if isinstance(config, PixelGuidance):
        return (config.nearest, config.farthest), "guidance.nearest, guidance.farthest"
    return None, ""


def asks_network(config: Guidance) -> bool:
    """Whether a depth network guides: it can be asked about any image, with or without depth."""
    return isinstance(config, FeatureGuidance) and teacher_kind(config.teacher).is_network


def asked_directly(config: Guidance, *, control: bool = False) -> Guidance:
    """The same guidance without a cache, which may lack images, and (unless `control`) by the teacher alone."""
    if not isinstance(config, FeatureGuidance):
        return config
    return replace(config, cache=None) if control else replace(config, cache=None, control="none", beside="none")


def seen_by_teacher(config: Guidance, data: str) -> str | None:
    """What to say where a teacher was fitted to the depth of the very data (a source's name) that it teaches on.

    What a run learns from it there is worth less than it looks: on data of one's own the teacher knows no depth.
    """
    if not isinstance(config, FeatureGuidance) or (seen := teacher_kind(config.teacher).fitted_on) is None:
        return None
    if seen not in (part.partition("+")[0] for part in data.split(",")):  # under whatever photographs
        return None
    return (
        f"{config.teacher} was fitted to the depth of {seen} itself: take other data (data.root=scenes:1) for a "
        f"teacher that has never seen them"
    )


def tells_depth(config: Guidance) -> bool:
    """Whether what the head says can be held against depth: not where it learns the image or a random network."""
    return not isinstance(config, FeatureGuidance) or config.control == NONE or CONTROLS[config.control].of_depth


def contents_of_teacher(config: Guidance) -> dict[str, Contents]:
    """What teaches a run, wherever it lies: the `latents` of its cache, or the weights of its `teacher`; else empty."""
    if not isinstance(config, FeatureGuidance):
        return {}
    if config.cache is not None:
        return {"latents": open_cache(Path(config.cache)).contents()}
    weights = fingerprints(config)
    told = " ".join(f"{key}={value}" for key, value in sorted(weights.items()))
    return {"teacher": Contents(len(weights), told)} if weights else {}


def refuse_other_images(config: Guidance, source: Source) -> str | None:
    """Raise `BadInput` where the cache of a run was made of other images of these names; say where that is unknown."""
    if not isinstance(config, FeatureGuidance) or config.cache is None:
        return None
    return open_cache(Path(config.cache)).refuse_other_images(names_of(source), stamps_of(source)[:, 0])


def refuse_images_without_latents(config: Guidance, source: Source) -> None:
    """Find out before the first step whether the cache of a run has the latents of all its images."""
    if isinstance(config, FeatureGuidance) and config.cache is not None:
        open_cache(Path(config.cache)).rows(names_of(source))
