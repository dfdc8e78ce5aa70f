"""I-JEPA with depth guidance: the method on one page (paper, figure 1).

A context encoder sees part of the image, a predictor guesses the embeddings that the target encoder (a moving
average of the context encoder) gives to hidden blocks. With feature-level guidance, context and predicted tokens
are put back on the patch grid and projected to the latents of a frozen depth teacher; that gradient reaches the
context encoder and the predictor, never the target encoder.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import ConfigDict, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor, nn

from depthjepa.grid import gather, reassemble
from depthjepa.losses import feature_depth_loss, latent_loss
from depthjepa.masks import Masks
from depthjepa.model.heads import GuidanceHead, Latents
from depthjepa.model.predictor import Predictor
from depthjepa.model.vit import VisionTransformer


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class GuidanceConfig:
    """Whether and how depth guides.

    `teacher` is `depth`, ground truth turned into latents, or `depthfm`, a frozen network that needs
    `teacher_checkpoint` (released as depthfm-v1.ckpt) and `teacher_vae` (a folder or hub id).
    """

    kind: Literal["none", "feature"] = "none"
    weight: NonNegativeFloat = 1.0
    head: Literal["linear", "conv"] = "linear"
    fill: Literal["zero", "learned"] = "zero"
    teacher: Literal["depth", "depthfm"] = "depth"
    teacher_checkpoint: str | None = None
    teacher_vae: str | None = None
    teacher_steps: PositiveInt = 2  # Euler steps
    teacher_attention: Literal["plain", "rescaled"] = "plain"


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss that is minimised, and its parts by their names in `metrics.jsonl`."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class JEPA(nn.Module):
    """Context encoder, target encoder, predictor and, when guided, the head."""

    def __init__(
        self, encoder: VisionTransformer, predictor: Predictor, head: GuidanceHead | None, weight: float
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.head = head
        self.weight = weight

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
    ) -> Losses:
        """Losses of normalised images; `teacher` holds the whitened latents of a guided step."""
        context = self.context_encoder(images, masks.context)
        predicted = self.predictor(context, masks)
        loss_jepa = latent_loss(predicted.float(), self.targets(images, masks), masks.valid)
        if self.head is None or teacher is None:
            return Losses(loss_jepa, {"loss_jepa": loss_jepa})
        latents, judged = self.guide(context, predicted, masks)
        loss_depth = feature_depth_loss(latents.float(), teacher.values, teacher.valid & judged)
        return Losses(loss_jepa + self.weight * loss_depth, {"loss_jepa": loss_jepa, "loss_depth": loss_depth})

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "b 3 h w"], masks: Masks) -> Float[Tensor, "b m k d"]:
        """Embeddings of the whole image by the target encoder, layer-normalised, at the target patches."""
        tokens = self.target_encoder(images).float()
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        chosen = gather(tokens, masks.targets.flatten(1))
        return chosen.view(*masks.targets.shape, -1)

    def guide(
        self, context: Float[Tensor, "b c d"], predicted: Float[Tensor, "b m k d"], masks: Masks
    ) -> tuple[Float[Tensor, "b channels rows cols"], Tensor]:
        """Put context and predicted tokens back on the grid, project them; and the cells that count."""
        assert self.head is not None
        grid = self.context_encoder.grid
        tokens = torch.cat([context, predicted.flatten(1, 2).to(context.dtype)], 1)
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
