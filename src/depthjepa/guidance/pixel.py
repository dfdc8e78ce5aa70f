"""Pixel-level guidance: depth of every pixel, read from the method's tokens and compared with the truth (paper, 4.2.2).

What the head reads:

`predicted`  what the paper's heads read. Scope `target`: the predicted tokens where they stand, all other patches
             absent, and only target patches count. Scope `full`: context tokens beside them, each in its place.
`dense`      the context encoder's tokens of the whole image, in a pass of their own: what is read later is trained.
`both`       the one, then the other, by the same head; the mean of both losses.

The `dpt` head reads four depths. Predicted tokens exist in the predictor alone, so at target patches these are four
depths of the predictor, brought to the encoder's width; at context patches, four of the context encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.depth import to_metres
from depthjepa.faults import BadInput
from depthjepa.grid import reassemble, to_map
from depthjepa.guidance.config import PixelGuidance
from depthjepa.guidance.guide import ReadingGuide
from depthjepa.losses import Latents, bound_loss, depth_loss
from depthjepa.masks import Masks
from depthjepa.model.blocks import block_at
from depthjepa.model.heads.head import PixelHead, equal_depths
from depthjepa.model.heads.table import PIXEL_HEADS
from depthjepa.model.jepa import Judged, Read
from depthjepa.model.predictor import Predicted
from depthjepa.model.vit import VisionTransformer

Depths = Float[Tensor, "b 1 h w"]


class FilledHead(nn.Module):
    """Token grids, one a level, to a map of numbers for depth; an absent patch is zero or a learned token."""

    def __init__(self, config: PixelGuidance, patch: int, token_width: int, predictor: tuple[int, int]) -> None:
        """`predictor`: of how many of its depths tokens are read, and their width."""
        super().__init__()
        depths, width = predictor
        self.from_predictor = nn.ModuleList(nn.Linear(width, token_width) for _ in range(depths))
        self.fill = nn.Parameter(torch.zeros(1, 1, token_width)) if config.fill == "learned" else None
        kind: type[PixelHead] = PIXEL_HEADS.load(config.head)
        self.decoder = kind(token_width, 1, patch, min(config.head_width, token_width))

    def forward(
        self, levels: Sequence[Float[Tensor, "b n d"]], coverage: Float[Tensor, "b n"], grid: tuple[int, int]
    ) -> Depths:
        """Decode; patches with coverage 0 are absent."""
        if self.fill is not None:
            there = coverage[..., None] > 0
            levels = [torch.where(there, tokens, self.fill.to(tokens.dtype)) for tokens in levels]
        found: Tensor = self.decoder([to_map(tokens, grid) for tokens in levels])
        return found.float()


class PixelGuide(ReadingGuide):
    """The head with all that it needs: which tokens it reads, what counts, the loss.

    The maps that it gives are whitened numbers as `target.Whitening` makes them of the truth.
    """

    def __init__(self, config: PixelGuidance, encoder: VisionTransformer, predictor_depth: int, predictor_width: int):
        super().__init__(config)
        self.config: PixelGuidance = config
        self.grid, self.patch = encoder.grid, encoder.patch_size
        levels = PIXEL_HEADS.load(config.head).levels
        self.several = levels > 1
        depth = len(encoder.blocks)
        shallow = sorted({block_at(share, depth) for share in config.layers})
        if (self.several and config.layers != (1.0,)) or (config.read != "dense" and shallow != [depth - 1]):
            raise BadInput(
                f"guidance.layers={list(config.layers)}: several layers, or another than the last, are for heads that "
                f"read guidance.read=dense, and not for a head that always reads several, as dpt does four"
            )
        self.layers = tuple(equal_depths(depth, levels) if self.several else shallow)
        reads_prediction = config.read != "dense"
        self.encoder_layers = self.layers if reads_prediction else ()
        self.predictor_layers = (
            tuple(equal_depths(predictor_depth, levels)) if self.several and reads_prediction else ()
        )
        width = encoder.width * (1 if self.several else len(self.layers))
        self.head = FilledHead(config, self.patch, width, (len(self.predictor_layers), predictor_width))

    def read(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
    ) -> dict[Read, Judged]:
        """Maps by what was read; and the pixels that count (None: all)."""
        if self.config.detached:
            levels, predicted = [level.detach() for level in levels], predicted.detach()
        found: dict[Read, Judged] = {}
        if "predicted" in self.reads:
            # Of several target layers the last one is read.
            forecast = predicted.levels or (predicted.targets[..., -encoder.width :],)
            found["predicted"] = self.read_prediction(levels, forecast, masks)
        if "dense" in self.reads:
            found["dense"] = self.read_dense(encoder, images), None
        return found

    def read_dense(self, encoder: VisionTransformer, images: Float[Tensor, "b 3 h w"]) -> Depths:
        """Decode the encoder's tokens of whole (normalised) images, of any size that patches divide."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.detached):
            levels = encoder.features(images, self.layers)
        if not self.several:
            levels = [torch.cat(levels, -1)]
        grid = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        maps: Tensor = self.head(levels, torch.ones(levels[0].shape[:2], device=images.device), grid)
        return maps

    def read_prediction(
        self, context: Sequence[Float[Tensor, "b c d"]], predicted: Sequence[Float[Tensor, "b m k _"]], masks: Masks
    ) -> tuple[Depths, Bool[Tensor, "b 1 h w"]]:
        """Decode predicted tokens (and context tokens, scope `full`), level by level; and the pixels that count.

        `predicted` are the predicted embeddings, or for dpt the predictor's own tokens of `predictor_layers`.
        """
        cells = self.grid[0] * self.grid[1]
        index, valid = self._places(masks)
        levels = []
        coverage = context[-1].new_zeros(0)
        for number, tokens in enumerate(predicted):
            hidden = tokens.flatten(1, 2)
            if self.several:
                hidden = self.head.from_predictor[number](hidden)
            hidden = hidden.to(context[-1].dtype)
            both = torch.cat([context[number], hidden], 1) if self.config.scope == "full" else hidden
            whole, coverage = reassemble(both, index, cells, valid)
            levels.append(whole)
        return self.head(levels, coverage, self.grid), self._pixels(coverage)

    def judged(self, masks: Masks) -> Bool[Tensor, "b 1 h w"]:
        """The pixels on which `read_prediction` is judged under these masks."""
        index, valid = self._places(masks)
        ones = torch.ones(*index.shape, 1, device=index.device)
        return self._pixels(reassemble(ones, index, self.grid[0] * self.grid[1], valid)[1])

    def _places(self, masks: Masks) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"] | None]:
        """Patches of the tokens that are read, context first; and which of them are no padding."""
        return masks.all_tokens() if self.config.scope == "full" else masks.target_tokens()

    def _pixels(self, coverage: Float[Tensor, "b n"]) -> Bool[Tensor, "b 1 h w"]:
        covered = to_map(coverage[..., None], self.grid) > 0
        return covered.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def compare(
        self, prediction: Depths, target: Latents, judged: Bool[Tensor, "b 1 h w"] | None = None
    ) -> Float[Tensor, ""]:
        """Compare with the truth's whitened numbers where it is known and, if given, `judged`."""
        valid = target.valid if judged is None else target.valid & judged
        loss = depth_loss(prediction, target.values, valid, self.config.loss, self.config.gradient)
        if target.bound is None:
            return loss
        bound = target.bound if judged is None else target.bound & judged
        sign = -1 if self.config.target == "disparity" else 1  # a bound is of what is farther
        return loss + self.config.sky * bound_loss(sign * prediction, sign * target.values, bound)

    def metres(self, numbers: Depths) -> Depths:
        """Depth [m] of maps from which the whitening was taken again."""
        return to_metres(numbers, self.config.target, self.config.nearest, self.config.farthest)


def build_pixel_guide(
    config: PixelGuidance, encoder: VisionTransformer, predictor_depth: int, predictor_width: int, seed: int
) -> PixelGuide:
    """Return the guide at its initial weights: PyTorch's own, which keep a signal's size from layer to layer.

    The deviation of 0.02 that transformers start with would leave a thousandth of it behind five convolutions.
    """
    with runtime.seeded(seed, "head"):
        return PixelGuide(config, encoder, predictor_depth, predictor_width)
