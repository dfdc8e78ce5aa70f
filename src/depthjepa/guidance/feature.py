"""Feature-level guidance: the method's tokens must also give the teacher's latents (paper, section 4.2.3).

A small head projects tokens on the patch grid. What it reads:

`predicted`  the paper's: context and predicted tokens, put back each in its place.
`context`    context tokens alone, where they stand.
`dense`      the context encoder's tokens of the whole image, in a pass of their own: what is read later is trained.
`both`       the first, then the third, by the same head; the mean of both losses.

The gradient reaches the context encoder and (`predicted`) the predictor, never the target encoder. With a linear head
the outputs for two targets are two heads on one layer norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from depthjepa import runtime
from depthjepa.faults import BadInput
from depthjepa.grid import reassemble
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.guide import ReadingGuide
from depthjepa.losses import Latents, feature_depth_loss
from depthjepa.masks import Masks
from depthjepa.model.blocks import block_at
from depthjepa.model.heads.head import Fill, LatentHead
from depthjepa.model.heads.table import LATENT_HEADS, reading_beside
from depthjepa.model.jepa import Judged, Read
from depthjepa.model.predictor import Predicted
from depthjepa.model.vit import VisionTransformer, initialise


class FeatureGuide(ReadingGuide):
    """The head, which tokens it reads, and how its latents are compared with the teacher's."""

    predictor_layers: tuple[int, ...] = ()

    def __init__(self, head: LatentHead, config: FeatureGuidance, depth: int) -> None:
        """`depth`: blocks of the encoder."""
        super().__init__(config)
        self.config: FeatureGuidance = config
        self.head = head
        self.layer = layer = block_at(config.layer_share, depth)
        last = depth - 1
        # None but the last one, which the predictor is given anyway.
        self.encoder_layers = (layer, last) if config.read == "context" and layer < last else ()

    def read(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
    ) -> dict[Read, Judged]:
        """Latents by what was read, and the cells that count (None: all)."""
        if self.config.detached:
            levels, predicted = [level.detach() for level in levels], predicted.detach()
        found: dict[Read, Judged] = {}
        for read in self.reads:
            if read == "dense":
                found[read] = self.read_dense(encoder, images), None
            elif read == "context":
                found[read] = self._placed(levels[0], masks.context, None, encoder.grid)
            else:
                found[read] = self.read_prediction(levels[-1], predicted.targets, masks, encoder)
        return found

    def read_dense(
        self, encoder: VisionTransformer, images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c rows cols"]:
        """Latents by the encoder's tokens of whole (normalised) images."""
        (tokens,) = encoder.features(images, (self.layer,))
        if self.config.detached:
            tokens = tokens.detach()
        latents: Tensor = self.head(tokens, torch.ones(tokens.shape[:2], device=tokens.device), encoder.grid)
        return latents

    def read_prediction(
        self,
        context: Float[Tensor, "b c d"],
        predicted: Float[Tensor, "b m k layers_d"],
        masks: Masks,
        encoder: VisionTransformer,
    ) -> Judged:
        """Latents by context and predicted tokens, each in its place.

        Of several target layers the last one is read: it is what the context tokens are.
        """
        hidden = predicted[..., -encoder.width :].flatten(1, 2).to(context.dtype)
        return self._placed(torch.cat([context, hidden], 1), *masks.all_tokens(), encoder.grid)

    def _placed(
        self,
        tokens: Float[Tensor, "b t d"],
        index: Int64[Tensor, "b t"],
        valid: Bool[Tensor, "b t"] | None,
        grid: tuple[int, int],
    ) -> Judged:
        whole, coverage = reassemble(tokens, index, grid[0] * grid[1], valid)
        return self.head(whole, coverage, grid), self.head.judged(coverage, grid)

    def compare(
        self,
        prediction: Float[Tensor, "b c rows cols"],
        target: Latents,
        judged: Bool[Tensor, "b 1 rows cols"] | None = None,
    ) -> Float[Tensor, ""]:
        """Smooth-L1 loss of latents on the cells that the teacher knows and, if given, that are judged.

        That of a second target is added with its weight.
        """
        valid = target.valid if judged is None else target.valid & judged
        parts = (each.chunk(self.targets, 1) for each in (prediction.float(), target.values, valid))
        first, *second = (feature_depth_loss(*part) for part in zip(*parts, strict=True))
        return first + sum((self.config.beside_weight * each for each in second), torch.zeros_like(first))


def build_feature_guide(config: FeatureGuidance, encoder: VisionTransformer, channels: int, seed: int) -> FeatureGuide:
    """Return the guide at its initial weights, for a teacher of so many channels, those of a second target included."""
    others = reading_beside(LATENT_HEADS)
    if config.fill == "learned" and config.head not in others:
        raise BadInput(
            f"guidance.fill=learned needs guidance.head={' or '.join(others)}: {config.head} never reads absent patches"
        )
    head = build_latent_head(config.head, config.fill, encoder.width, channels, seed)
    return FeatureGuide(head, config, len(encoder.blocks))


def build_latent_head(kind: str, fill: Fill, width: int, channels: int, seed: int) -> LatentHead:
    """Return a head from tokens to latents at its initial weights; a supervised run has one without a guide."""
    head: LatentHead = LATENT_HEADS.load(kind)(fill, width, channels)
    initialise(head, runtime.generator(seed, "head"))
    return head
