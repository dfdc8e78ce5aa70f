"""Feature-level guidance: context and predicted tokens must also give the teacher's latents (paper, section 4.2.3).

Both are put back on the patch grid, each in its place, and projected by a small head. The gradient reaches the context
encoder and the predictor, never the target encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.faults import BadInput
from depthjepa.grid import reassemble
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.losses import Latents, feature_depth_loss
from depthjepa.masks import Masks
from depthjepa.model.decoders import FeatureHead, LatentHead
from depthjepa.model.jepa import Judged, Read
from depthjepa.model.predictor import Predicted
from depthjepa.model.vit import VisionTransformer, initialise


class FeatureGuide(nn.Module):
    """The head on reassembled tokens, and how its latents are compared with the teacher's."""

    encoder_layers: tuple[int, ...] = ()  # the last one, which the predictor is given anyway
    predictor_layers: tuple[int, ...] = ()

    def __init__(self, head: LatentHead, weight: float, *, detached: bool = False) -> None:
        super().__init__()
        self.head, self.weight = head, weight
        self.detached = detached  # guidance then teaches the head alone: a control

    def read(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
    ) -> dict[Read, Judged]:
        """Latents by what was read, and the cells that count.

        Of several target layers the last one is read: it is what the context tokens are.
        """
        context, targets = levels[-1], predicted.targets
        if self.detached:
            context, targets = context.detach(), targets.detach()
        tokens = torch.cat([context, targets[..., -encoder.width :].flatten(1, 2).to(context.dtype)], 1)
        index = torch.cat([masks.context, masks.targets.flatten(1)], 1)
        valid: Bool[Tensor, "b t"] | None = None
        if masks.valid is not None:
            valid = torch.cat([torch.ones_like(masks.context, dtype=torch.bool), masks.valid.flatten(1)], 1)
        whole, coverage = reassemble(tokens, index, encoder.grid[0] * encoder.grid[1], valid)
        return {"predicted": (self.head(whole, coverage, encoder.grid), self.head.judged(coverage, encoder.grid))}

    def compare(
        self,
        prediction: Float[Tensor, "b c rows cols"],
        target: Latents,
        judged: Bool[Tensor, "b 1 rows cols"] | None = None,
    ) -> Float[Tensor, ""]:
        """Smooth-L1 loss of whitened latents on the cells that the teacher knows and, if given, that are judged."""
        valid = target.valid if judged is None else target.valid & judged
        return feature_depth_loss(prediction.float(), target.values, valid)

    def loss(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
        target: Latents,
    ) -> Float[Tensor, ""]:
        """The guidance loss of a step; see `model.jepa.Guide`."""
        prediction, judged = self.read(encoder, images, levels, predicted, masks)["predicted"]
        return self.compare(prediction, target, judged)


def build_feature_guide(config: FeatureGuidance, width: int, channels: int, seed: int) -> FeatureGuide:
    """Return the guide at its initial weights, for tokens of a width and a teacher of so many channels."""
    if config.head == "linear" and config.fill == "learned":
        raise BadInput("guidance.fill=learned needs guidance.head=conv: the linear head never reads absent patches")
    head = build_latent_head(config.head, config.fill, width, channels, seed)
    return FeatureGuide(head, config.weight, detached=config.detached)


def build_latent_head(
    kind: FeatureHead, fill: Literal["zero", "learned"], width: int, channels: int, seed: int
) -> LatentHead:
    """Return a head from tokens to latents at its initial weights; a supervised run has one without a guide."""
    head = LatentHead(kind, fill, width, channels)
    initialise(head, runtime.generator(seed, "head"))
    return head
