"""Which settings have an effect beside which others: a key that was given and changes nothing is refused by name.

A run that ignores what it was asked for ends well and is another experiment. Keys of one kind of guidance beside
another, and keys that a layout of data has no use for as long as they are at their defaults, are refused where kinds
and layouts are chosen; here stand all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from depthjepa.config.run_config import RunConfig
from depthjepa.data.layouts.layout import layouts_that_read
from depthjepa.data.order import weighted_roots
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance, NoGuidance, PixelGuidance
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.kinds import Table
from depthjepa.model.heads.table import LATENT_HEADS, PIXEL_HEADS, reading_beside


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys (`part.` is all of a part) that have an effect in some configurations alone, and what it takes."""

    keys: tuple[str, ...]
    act: Callable[[RunConfig], bool]
    takes: str

    def governs(self, key: str) -> bool:
        """Whether the rule is about this key."""
        return any(key.startswith(each) if each.endswith(".") else key == each for each in self.keys)


def _jepa(config: RunConfig) -> bool:
    return config.train.objective == "jepa"


def _has_head(config: RunConfig) -> bool:
    return config.guidance.kind != "none" or not _jepa(config)


def _reads_prediction(config: RunConfig) -> bool:
    return not isinstance(config.guidance, PixelGuidance) or config.guidance.read != "dense"


def _size_is_named(config: RunConfig) -> bool:
    return None in (config.model.width, config.model.depth)  # heads and hidden follow the width


def _either(heads: Table) -> str:
    """The heads that read beside a patch: `cnn, deep-cnn or dpt`."""
    *others, last = reading_beside(heads)
    return f"{', '.join(others)} or {last}" if others else last


RULES = (
    Rule(("masks.", "predictor.", "loss.", "optim.momentum", "optim.final_momentum", "optim.average_over"), _jepa,
         "train.objective=jepa"),
    Rule(("guidance.",), lambda config: _jepa(config) or config.guidance.kind == "none", "train.objective=jepa"),
    Rule(("masks.bias", "masks.context_scale", "masks.target_scale", "masks.target_aspect", "masks.targets"),
         lambda config: config.masks.kind == "multiblock", "masks.kind=multiblock"),
    Rule(("masks.mae_share", "masks.mae_shape"), lambda config: config.masks.kind == "mae", "masks.kind=mae"),
    Rule(("model.size",), _size_is_named, "model.width or model.depth to be null"),
    Rule(("loss.visible_from", "loss.visible_full"), lambda config: config.loss.visible > 0, "loss.visible above 0"),
    Rule(("loss.gaussian_directions",), lambda config: config.loss.gaussian > 0, "loss.gaussian above 0"),
    Rule(("loss.spread",), lambda config: max(config.loss.variance, config.loss.covariance, config.loss.gaussian) > 0,
         "loss.variance, loss.covariance or loss.gaussian above 0"),
    Rule(("loss.target_layers",), lambda config: config.loss.latent > 0, "loss.latent above 0"),
    Rule(("guidance.fill",), lambda config: isinstance(config.guidance, NoGuidance) or config.guidance.reads_holes,
         f"a head that reads beside a patch ({_either(LATENT_HEADS)}; of pixels {_either(PIXEL_HEADS)}, and "
         f"guidance.read=predicted or both)"),
    Rule(("guidance.scope",), _reads_prediction, "guidance.read=predicted or both"),
    Rule(("guidance.turn",), lambda config: getattr(config.guidance, "schedule", "released") != "constant",
         "guidance.schedule=released or late"),
    Rule(("guidance.beside_weight",), lambda config: getattr(config.guidance, "beside", "image") != "none",
         "guidance.beside=image, random or another"),
    Rule(("init.thaw_steps",), lambda config: config.init.frozen_steps > 0, "init.frozen_steps above 0"),
    Rule(("train.whitening_images", "optim.head_lr"), _has_head,
         "guidance (guidance.kind=feature or pixel), or train.objective=supervised"),
    Rule(("optim.warmup_epochs",), lambda config: config.optim.warmup_steps is None, "optim.warmup_steps=null"),
    Rule(("optim.momentum", "optim.final_momentum"), lambda config: config.optim.average_over is None,
         "optim.average_over=null"),
    Rule(("evaluation.depth_steps", "evaluation.nearest", "evaluation.farthest"),
         lambda config: config.evaluation.depth_readout != "ridge", "evaluation.depth_readout=linear, linear4 or dpt"),
)  # fmt: skip


def refuse_idle(given: Iterable[str], *configs: RunConfig) -> None:
    """Raise `BadInput` with every key of `given` that has an effect in none of the `configs`, and what it takes.

    `configs`: what is asked for as a whole and, of a recipe, the recipe by itself: settings laid over one may switch
    off what its keys belong to.
    """
    faults = [fault for key in given if all(fault := why_idle(key, config) for config in configs)]
    if faults:
        raise BadInput("configuration: " + "; ".join(dict.fromkeys(faults)))


def why_idle(key: str, config: RunConfig) -> str:
    """Why a key has no effect in a configuration, and what gives it one; empty where it has."""
    takes = next((rule.takes for rule in RULES if rule.governs(key) and not rule.act(config)), None)
    takes = takes or _teacher_that_reads(key, config) or _layout_that_reads(key, config)
    return f"{key} has no effect here: it takes {takes}" if takes else ""


def _teacher_that_reads(key: str, config: RunConfig) -> str:
    """The teachers that read a key `guidance.teacher_*`; empty where the one that is asked for does."""
    guidance, name = config.guidance, key.removeprefix("guidance.")
    if not isinstance(guidance, FeatureGuidance) or not key.startswith("guidance.teacher_"):
        return ""
    readers = [each for each in TEACHERS.names if name in teacher_kind(each).reads]
    return "" if not readers or guidance.teacher in readers else f"guidance.teacher={' or '.join(readers)}"


def _layout_that_reads(key: str, config: RunConfig) -> str:
    """The layouts of data that read a key `data.*`; empty where one of the roots has such a layout."""
    if not key.startswith("data.") or not config.data.root:
        return ""
    return layouts_that_read(key.removeprefix("data."), [root for root, _ in weighted_roots(config.data.root)])
