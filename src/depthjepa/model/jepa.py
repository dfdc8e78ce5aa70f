"""I-JEPA with depth guidance: the method on one page (paper, figure 1).

A context encoder sees part of the image, a predictor guesses the embeddings that the target encoder (a moving
average of the context encoder) gives to hidden blocks. With feature-level guidance, context and predicted tokens
are put back on the patch grid and projected to the latents of a frozen depth teacher; with pixel-level guidance a head
decodes the depth of every pixel. That gradient reaches the context encoder and the predictor, never the target encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt, field_validator
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.grid import distance_to_nearest, gather, patchify, reassemble
from depthjepa.losses import (
    covariance_loss,
    feature_depth_loss,
    gaussian_loss,
    latent_loss,
    pixel_loss,
    variance_loss,
    visible_loss,
)
from depthjepa.masks import Masks
from depthjepa.model.heads import GuidanceHead, Latents
from depthjepa.model.pixel_guidance import PixelGuidance
from depthjepa.model.predictor import Predicted, Predictor
from depthjepa.model.vit import VisionTransformer

Share = Annotated[float, Field(ge=0, le=1)]


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class LossConfig:
    """Weights of the terms beside guidance; the defaults are I-JEPA's: the latent loss alone, of the last layer.

    `target_layers` are depths of the target encoder as shares of its blocks (1: the last one), `target_norm` what is
    done to its tokens: each is layer-normalised, or each channel is standardised over the batch. `visible` grows from 0
    at the share `visible_from` of the run to its weight at `visible_full`. `variance`, `covariance` and `gaussian`
    (SIGReg) act on the mean of each image's context tokens, in the part of the batch that a process holds.
    """

    latent: NonNegativeFloat = 1.0
    target_layers: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    target_norm: Literal["layer", "batch"] = "layer"
    pixel: NonNegativeFloat = 0.0
    visible: NonNegativeFloat = 0.0
    visible_from: Share = 0.25
    visible_full: Share = 0.5
    variance: NonNegativeFloat = 0.0
    covariance: NonNegativeFloat = 0.0
    gaussian: NonNegativeFloat = 0.0
    gaussian_directions: PositiveInt = 256

    @field_validator("target_layers")
    @classmethod
    def _some_layers(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or sorted(set(value)) != list(value):
            raise ValueError("name at least one layer, in ascending order, each only once")
        return value

    def layers(self, depth: int) -> list[int]:
        """Blocks (0-based) whose outputs are the targets."""
        return [max(0, round(share * depth) - 1) for share in self.target_layers]

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


class JEPA(nn.Module):
    """Context encoder, target encoder, predictor and, when guided, the head."""

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        head: GuidanceHead | PixelGuidance | None,
        weight: float,
        loss: LossConfig | None = None,
        *,
        detached: bool = False,
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.head = head
        self.weight = weight
        self.detached = detached  # guidance then teaches the head alone: a control
        self.loss = loss or LossConfig()
        self.layers = self.loss.layers(len(encoder.blocks))

    @property
    def encoder(self) -> VisionTransformer:
        """The encoder that is evaluated: the target encoder, as in the I-JEPA paper."""
        return self.target_encoder

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        masks: Masks,
        teacher: Latents | None = None,
        labels: Tensor | None = None,
        progress: float = 1.0,
    ) -> Losses:
        """Losses of normalised images; `teacher` holds the whitened latents (or pixel values) of a guided step.

        `progress` is the share of the run that is done, in [0, 1].
        """
        config, visible = self.loss, self.loss.visible_weight(progress)
        levels, predicted, masks = self.predict(images, masks)
        context = levels[-1]
        terms: dict[str, tuple[float, Tensor]] = {}
        if config.latent or visible:
            targets = self.targets(images)
        if config.latent:
            wanted = gather(targets, masks.targets.flatten(1)).view(*masks.targets.shape, -1)
            terms["loss_jepa"] = config.latent, latent_loss(predicted.targets.float(), wanted, masks.valid)
        if predicted.visible is not None:
            distance = distance_to_nearest(masks.context, masks.targets, self.context_encoder.grid[1], masks.valid)
            near = visible_loss(predicted.visible.float(), gather(targets, masks.context), distance)
            terms["loss_visible"] = visible, near
        if predicted.pixels is not None:
            patches = gather(patchify(images, self.context_encoder.patch_size), masks.targets.flatten(1))
            patches = patches.view(*masks.targets.shape, -1)
            terms["loss_pixel"] = config.pixel, pixel_loss(predicted.pixels.float(), patches, masks.valid)
        terms |= self.spread(context, progress)
        levels, predicted = self.heard(levels, predicted)
        if isinstance(self.head, GuidanceHead) and teacher is not None:
            latents, judged = self.guide(levels[-1], predicted.targets, masks)
            depth = feature_depth_loss(latents.float(), teacher.values, teacher.valid & judged)
            terms["loss_depth"] = self.weight, depth
        if isinstance(self.head, PixelGuidance) and teacher is not None:
            read = self.depth_maps(images, levels, predicted, masks)
            each = [self.head.loss(maps, teacher, judged) for maps, judged in read.values()]
            terms["loss_depth"] = self.weight, torch.stack(each).mean()
        total = sum((weight * value for weight, value in terms.values()), images.new_zeros(()))
        return Losses(total, {name: value for name, (_, value) in terms.items()})

    def predict(self, images: Float[Tensor, "b 3 h w"], masks: Masks) -> tuple[list[Tensor], Predicted, Masks]:
        """Context tokens [b, c, d], last those of the last layer, and the prediction; other layers where a head reads.

        With them the masks that the prediction is about: a predictor with one sequence has all blocks in one.
        """
        if self.predictor.together:
            masks = masks.joined(self.context_encoder.grid[0] * self.context_encoder.grid[1])
        if isinstance(self.head, PixelGuidance) and self.head.reads_prediction:
            levels = self.context_encoder.features(images, self.head.encoder_layers, masks.context)
            return levels, self.predictor(levels[-1], masks, self.head.predictor_layers), masks
        context = self.context_encoder(images, masks.context)
        return [context], self.predictor(context, masks), masks

    def heard(self, levels: list[Tensor], predicted: Predicted) -> tuple[list[Tensor], Predicted]:
        """What the head is given of `predict`; with `detached` its gradient ends here."""
        if not self.detached:
            return levels, predicted
        inside = tuple(level.detach() for level in predicted.levels)
        return [level.detach() for level in levels], predicted._replace(
            targets=predicted.targets.detach(), levels=inside
        )

    def depth_maps(
        self, images: Float[Tensor, "b 3 h w"], levels: Sequence[Tensor], predicted: Predicted, masks: Masks
    ) -> dict[str, tuple[Float[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"] | None]]:
        """What a pixel head decodes, by what it reads (`predicted`, `dense`), whitened; and the pixels that count."""
        assert isinstance(self.head, PixelGuidance)
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        if self.head.reads_prediction:
            found["predicted"] = self.read_prediction(levels, predicted, masks)
        if self.head.config.read != "predicted":
            found["dense"] = self.head.read_dense(self.context_encoder, images, detached=self.detached), None
        return found

    def read_prediction(
        self, levels: Sequence[Tensor], predicted: Predicted, masks: Masks
    ) -> tuple[Float[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"]]:
        """Decode what `predict` gave; of several target layers the last one is read."""
        assert isinstance(self.head, PixelGuidance)
        width = self.context_encoder.width
        return self.head.read_prediction(levels, predicted.levels or (predicted.targets[..., -width:],), masks)

    def spread(self, context: Float[Tensor, "b c d"], progress: float) -> dict[str, tuple[float, Tensor]]:
        """Terms against collapse, on the mean of each image's context tokens."""
        config = self.loss
        terms: dict[str, tuple[float, Tensor]] = {}
        if not (config.variance or config.covariance or config.gaussian):
            return terms
        # In float32: what a batch's deviations fall short of is less than bf16 can tell.
        with runtime.precision("fp32", context.device):
            pooled = context.float().mean(1)
            if config.variance:
                terms["loss_variance"] = config.variance, variance_loss(pooled)
            if config.covariance:
                terms["loss_covariance"] = config.covariance, covariance_loss(pooled)
            if config.gaussian:
                # New ones each step, and the same ones when the step is done again.
                generator = torch.Generator().manual_seed(round(progress * 2**40))
                random = torch.randn(pooled.shape[1], config.gaussian_directions, generator=generator)
                directions = F.normalize(random.to(pooled.device), dim=0)
                terms["loss_gaussian"] = config.gaussian, gaussian_loss(pooled, directions)
        return terms

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n layers_d"]:
        """Embeddings of the whole image by the target encoder, normalised layer by layer, side by side."""
        found = [tokens.float() for tokens in self.target_encoder.features(images, self.layers)]
        if self.loss.target_norm == "layer":
            return torch.cat([F.layer_norm(tokens, tokens.shape[-1:]) for tokens in found], -1)
        return torch.cat([(tokens - tokens.mean((0, 1))) / (tokens.std((0, 1)) + 1e-5) for tokens in found], -1)

    def guide(
        self, context: Float[Tensor, "b c d"], predicted: Float[Tensor, "b m k layers_d"], masks: Masks
    ) -> tuple[Float[Tensor, "b channels rows cols"], Tensor]:
        """Put context and predicted tokens back on the grid, project them; and the cells that count.

        Of several target layers the last one is read: it is what the context tokens are.
        """
        assert isinstance(self.head, GuidanceHead)
        grid, width = self.context_encoder.grid, self.context_encoder.width
        tokens = torch.cat([context, predicted[..., -width:].flatten(1, 2).to(context.dtype)], 1)
        index = torch.cat([masks.context, masks.targets.flatten(1)], 1)
        valid = None
        if masks.valid is not None:
            valid = torch.cat([torch.ones_like(masks.context, dtype=torch.bool), masks.valid.flatten(1)], 1)
        whole, coverage = reassemble(tokens, index, grid[0] * grid[1], valid)
        return self.head(whole, coverage, grid), self.head.judged(coverage, grid)

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: target = m * target + (1 - m) * context."""
        target: list[Tensor] = list(self.target_encoder.parameters())
        context: list[Tensor] = list(self.context_encoder.parameters())
        torch._foreach_mul_(target, momentum)
        torch._foreach_add_(target, context, alpha=1 - momentum)
