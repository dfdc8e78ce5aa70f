"""The supervised row of a table: the same encoder trained end to end on what the others are only probed for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from depthjepa.losses import Latents, feature_depth_loss
from depthjepa.masks import Masks
from depthjepa.model.heads.head import LatentHead
from depthjepa.model.jepa import Losses
from depthjepa.model.vit import VisionTransformer


class Supervised(nn.Module):
    """Encoder of the whole image with a linear depth head on its tokens and a linear classifier on their mean.

    Depth (latents of the ground truth) and labels are used where the data have them. Each loss is divided by that of
    a constant prediction (`floor` for depth, the logarithm of the number of classes), so that neither drowns the other.
    """

    floor: float = 1.0  # set once the teacher's statistics are known

    def __init__(self, encoder: VisionTransformer, depth_head: LatentHead | None, classes: int) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.classes = classes
        self.head = nn.ModuleDict()
        if depth_head is not None:
            self.head["depth"] = depth_head
        if classes:
            self.head["classes"] = nn.Linear(encoder.width, classes)

    @property
    def encoder(self) -> VisionTransformer:
        """The encoder that is evaluated."""
        return self.context_encoder

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        masks: Masks | None = None,
        target: Latents | None = None,
        labels: Int64[Tensor, " b"] | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Smooth-L1 depth loss and cross-entropy of the labels, and the sum of their ratios to a constant's."""
        tokens = self.context_encoder(images)
        parts: dict[str, Tensor] = {}
        total = tokens.new_zeros(())
        if target is not None and "depth" in self.head:
            latents, _ = self.depth_latents(tokens)
            parts["loss_depth"] = feature_depth_loss(latents.float(), target.values, target.valid)
            total = total + parts["loss_depth"] / self.floor
        if labels is not None and "classes" in self.head:
            logits = self.head["classes"](tokens.mean(1))
            parts["loss_classes"] = F.cross_entropy(logits.float(), labels)
            total = total + parts["loss_classes"] / math.log(self.classes)
        return Losses(total, parts)

    def depth_latents(
        self, tokens: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b c rows cols"], Bool[Tensor, "b 1 rows cols"]]:
        """Latents of every cell, and that all of them count."""
        head, grid = self.head["depth"], self.context_encoder.grid
        assert isinstance(head, LatentHead)
        everywhere = torch.ones(tokens.shape[:2], device=tokens.device)
        return head(tokens, everywhere, grid), head.judged(everywhere, grid)

    def after_step(self, momentum: float) -> None:
        """Nothing follows the optimiser's step here."""
