"""I-JEPA with depth guidance: the method on one page (paper, figure 1).

A context encoder sees part of the image, a predictor guesses the embeddings that the target encoder (a moving
average of the context encoder) gives to hidden blocks. A guide asks of the same tokens that they give depth as well;
its gradient reaches the context encoder and the predictor, never the target encoder. What it reads and how it compares
is its own affair (`guidance`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor, nn

from depthjepa import distributed, runtime
from depthjepa.grid import distance_to_nearest, gather, patchify, reassemble
from depthjepa.losses import (
    Latents,
    covariance_loss,
    gaussian_loss,
    latent_loss,
    pixel_loss,
    position_free,
    variance_loss,
    visible_loss,
)
from depthjepa.masks import Masks
from depthjepa.model.blocks import block_at
from depthjepa.model.predictor import Predicted, Predictor
from depthjepa.model.vit import VisionTransformer
from depthjepa.settings import configuration

Share = Annotated[float, Field(ge=0, le=1)]
# What a guide's map is read from: tokens under masks (context and predicted, or context alone), or of whole images.
Read = Literal["predicted", "context", "dense"]
Judged = tuple[Tensor, Tensor | None]  # a map, and the cells of it that count (None: all)


@configuration
class LossConfig:
    """Weights of the terms beside guidance; the defaults are I-JEPA's: the latent loss alone, of the last layer.

    `visible` grows from 0 at the share `visible_from` of the run to its weight at `visible_full`. `variance`,
    `covariance` and `gaussian` act on what `spread` names, over the images of all processes (of one accumulated part).
    """

    latent: NonNegativeFloat = 1.0
    """Weight of the latent loss of target patches (I-JEPA)."""
    target_layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    """Layers of the target encoder that are predicted, as shares of its depth; 1: the last one."""
    pixel: NonNegativeFloat = 0.0
    """Weight of the loss of target patches' pixels (MAE)."""
    visible: NonNegativeFloat = 0.0
    """Weight of the latent loss of the context's own patches."""
    visible_from: Share = 0.25
    """Share of the run at which the weight of visible begins to grow from 0."""
    visible_full: Share = 0.5
    """Share of the run from which visible has its whole weight."""
    variance: NonNegativeFloat = 0.0
    """Weight of the variance term against collapse (VICReg)."""
    covariance: NonNegativeFloat = 0.0
    """Weight of the covariance term against collapse (VICReg)."""
    gaussian: NonNegativeFloat = 0.0
    """Weight of the distance from a normal distribution against collapse (SIGReg)."""
    gaussian_directions: PositiveInt = 256
    """Random directions along which that distance is taken in a step."""
    spread: Literal["images", "tokens", "both"] = "images"
    """What these terms spread: means of images' context tokens, single tokens less their position's mean, or both."""

    @field_validator("target_layers")
    @classmethod
    def _some_layers(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or sorted(set(value)) != list(value):
            raise ValueError("name at least one layer, in ascending order, each only once")
        return value

    def layers(self, depth: int) -> list[int]:
        """Blocks (0-based) whose outputs are the targets."""
        return [block_at(share, depth) for share in self.target_layers]

    def visible_weight(self, progress: float) -> float:
        """Weight of the loss on visible tokens at a share of the run."""
        if self.visible_full <= self.visible_from:
            return self.visible if progress >= self.visible_from else 0.0
        return self.visible * min(
            1.0, max(0.0, (progress - self.visible_from) / (self.visible_full - self.visible_from))
        )


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss that is minimised, and its parts by their names in `metrics.jsonl`."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


Terms = dict[str, tuple[float, Tensor]]  # weight and value by the name in `metrics.jsonl`


@runtime_checkable
class Guide(Protocol):
    """All that is known here of guidance: its weight, the layers that it wants to be kept, what it reads, its loss."""

    @property
    def weight(self) -> float:
        """Weight of its loss beside the latent loss, where all of it holds."""
        ...

    def weight_at(self, progress: float) -> float:
        """That weight when a share of the run, in [0, 1], is done."""
        ...

    @property
    def encoder_layers(self) -> Sequence[int]:
        """Blocks of the context encoder whose tokens it reads, the last one among them; none: the last one alone."""
        ...

    @property
    def predictor_layers(self) -> Sequence[int]:
        """Blocks of the predictor whose tokens it reads."""
        ...

    @property
    def targets(self) -> int:
        """Equal parts of its maps' channels: what the teacher says, and a second target beside it."""
        ...

    def read(
        self, encoder: VisionTransformer, images: Tensor, levels: Sequence[Tensor], predicted: Predicted, masks: Masks
    ) -> dict[Read, Judged]:
        """Maps of depth, by what they are read from."""
        ...

    def compare(self, prediction: Tensor, target: Latents, judged: Tensor | None = None) -> Tensor:
        """Loss of one map."""
        ...

    def loss(
        self,
        encoder: VisionTransformer,
        images: Tensor,
        levels: Sequence[Tensor],
        predicted: Predicted,
        masks: Masks,
        target: Latents,
    ) -> Tensor:
        """Loss of a step; `levels` are context tokens [b, c, d] of `encoder_layers`, the last ones last."""
        ...


class JEPA(nn.Module):
    """Context encoder, target encoder, predictor and, when guided, the guide (a module as well)."""

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        guide: Guide | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.guide = guide
        self.loss = loss or LossConfig()
        self.target_layers = self.loss.layers(len(encoder.blocks))

    @property
    def encoder(self) -> VisionTransformer:
        """The encoder that is evaluated: the target encoder, as in the I-JEPA paper."""
        return self.target_encoder

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        masks: Masks,
        target: Latents | None = None,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Losses of normalised images; `target` holds the whitened latents (or pixel values) of a guided step.

        `progress` is the share of the run that is done, in [0, 1]; from `generator` come the directions of SIGReg
        (None: always the same ones).
        """
        levels, predicted, masks = self.predict(images, masks)
        terms = self.latent_terms(images, predicted, masks, self.loss.visible_weight(progress))
        terms |= self.pixel_term(images, predicted, masks)
        terms |= self.spread_terms(levels[-1], masks.context, generator)
        if self.guide is not None and target is not None:
            depth = self.guide.loss(self.context_encoder, images, levels, predicted, masks, target)
            terms["loss_depth"] = self.guide.weight_at(progress), depth
        total = sum((weight * value for weight, value in terms.values()), images.new_zeros(()))
        return Losses(total, {name: value for name, (_, value) in terms.items()})

    def predict(self, images: Float[Tensor, "b 3 h w"], masks: Masks) -> tuple[list[Tensor], Predicted, Masks]:
        """Context tokens [b, c, d], last those of the last layer, and the prediction; other layers where a guide reads.

        With them the masks that the prediction is about: a predictor with one sequence has all blocks in one.
        """
        if self.predictor.together:
            masks = masks.joined(self.context_encoder.grid[0] * self.context_encoder.grid[1])
        wanted = self.guide.encoder_layers if self.guide else ()
        levels = self.context_encoder.features(images, wanted or (-1,), masks.context)
        return levels, self.predictor(levels[-1], masks, self.guide.predictor_layers if self.guide else ()), masks

    def latent_terms(
        self, images: Float[Tensor, "b 3 h w"], predicted: Predicted, masks: Masks, visible: float
    ) -> Terms:
        """The latent loss at hidden patches and, with a weight `visible`, at the context's own."""
        terms: Terms = {}
        if not (self.loss.latent or visible):
            return terms
        targets = self.targets(images)
        if self.loss.latent:
            wanted = gather(targets, masks.targets.flatten(1)).view(*masks.targets.shape, -1)
            terms["loss_jepa"] = self.loss.latent, latent_loss(predicted.targets.float(), wanted, masks.valid)
        if predicted.visible is not None:
            distance = distance_to_nearest(masks.context, masks.targets, self.context_encoder.grid[1], masks.valid)
            near = visible_loss(predicted.visible.float(), gather(targets, masks.context), distance)
            terms["loss_visible"] = visible, near
        return terms

    def pixel_term(self, images: Float[Tensor, "b 3 h w"], predicted: Predicted, masks: Masks) -> Terms:
        """The loss of hidden patches' pixels, where the predictor says them."""
        if predicted.pixels is None:
            return {}
        patches = gather(patchify(images, self.context_encoder.patch_size), masks.targets.flatten(1))
        patches = patches.view(*masks.targets.shape, -1)
        return {"loss_pixel": (self.loss.pixel, pixel_loss(predicted.pixels.float(), patches, masks.valid))}

    def spread_terms(
        self, context: Float[Tensor, "b c d"], index: Int64[Tensor, "b c"], generator: torch.Generator | None
    ) -> Terms:
        """Terms against collapse, on the context tokens at the patches `index`: those of all processes of a step.

        Where they act on means and on single tokens, each is the mean of both.
        """
        config = self.loss
        terms: Terms = {}
        if not (config.variance or config.covariance or config.gaussian):
            return terms
        # In float32: what a batch's deviations fall short of is less than bf16 can tell.
        with runtime.precision("fp32", context.device):
            pooled = distributed.with_others(context.float().mean(1))
            spread = [pooled] if config.spread != "tokens" else []
            if config.spread != "images":
                spread.append(self.single_tokens(context.float(), index))
            if config.variance:
                terms["loss_variance"] = config.variance, _mean(map(variance_loss, spread))
            if config.covariance:
                terms["loss_covariance"] = config.covariance, _mean(map(covariance_loss, spread))
            if config.gaussian:
                generator = generator or torch.Generator().manual_seed(0)
                random = torch.randn(context.shape[-1], config.gaussian_directions, generator=generator)
                directions = F.normalize(random.to(context.device), dim=0)
                each = (gaussian_loss(vectors, directions, len(pooled)) for vectors in spread)
                terms["loss_gaussian"] = config.gaussian, _mean(each)
        return terms

    def single_tokens(self, context: Float[Tensor, "b c d"], index: Int64[Tensor, "b c"]) -> Float[Tensor, "k d"]:
        """The context tokens of all processes, each less the mean of its position."""
        # On the whole grid, which all processes have alike, however many context tokens each has.
        cells = self.context_encoder.grid[0] * self.context_encoder.grid[1]
        tokens, coverage = reassemble(context, index, cells)
        everywhere = distributed.with_others(tokens.flatten(1)).view(-1, *tokens.shape[1:])
        return position_free(everywhere, distributed.with_others(coverage) > 0)

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n layers_d"]:
        """Embeddings of the whole image by the target encoder, layer-normalised layer by layer, side by side."""
        found = [tokens.float() for tokens in self.target_encoder.features(images, self.target_layers)]
        return torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in found], -1)

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: target = m * target + (1 - m) * context."""
        target = [distributed.own(parameter) for parameter in self.target_encoder.parameters()]
        context = [distributed.own(parameter) for parameter in self.context_encoder.parameters()]
        torch._foreach_mul_(target, momentum)
        torch._foreach_add_(target, context, alpha=1 - momentum)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
