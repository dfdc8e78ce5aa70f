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

from depthjepa.depth import Numbers, to_metres
from depthjepa.faults import BadInput
from depthjepa.grid import reassemble, to_map
from depthjepa.losses import bound_loss, depth_loss
from depthjepa.masks import Masks
from depthjepa.model.decoders import DPT_LEVELS, TokenNorm, build_decoder, dpt_depths, expected_depth
from depthjepa.model.heads import GuidanceConfig, Latents
from depthjepa.model.vit import VisionTransformer

Depths = Float[Tensor, "b 1 h w"]


class PixelGuidance(nn.Module):
    """The head with all that it needs: which tokens it reads, the numbers that stand for depth, the loss.

    The maps that it gives are whitened numbers as `teachers.latents.Whitening` makes them of the truth.
    """

    def __init__(self, config: GuidanceConfig, encoder: VisionTransformer, predictor_depth: int, predictor_width: int):
        super().__init__()
        self.config = config
        kind = config.pixel_head
        self.grid, self.patch = encoder.grid, encoder.patch_size
        self.several = kind == "dpt"
        depth = len(encoder.blocks)
        shallow = sorted({max(0, round(share * depth) - 1) for share in config.layers})
        if (self.several and config.layers != (1.0,)) or (config.read != "dense" and shallow != [depth - 1]):
            raise BadInput(
                f"guidance.layers={list(config.layers)}: several layers, or another than the last, are for heads that "
                f"read guidance.read=dense, and not for dpt, which always reads four"
            )
        self.encoder_layers = dpt_depths(depth) if self.several else shallow
        self.predictor_layers = dpt_depths(predictor_depth) if self.several and config.read != "dense" else []
        token_width = encoder.width * (1 if self.several else len(self.encoder_layers))
        levels = DPT_LEVELS if self.several else 1
        self.from_predictor = nn.ModuleList(nn.Linear(predictor_width, encoder.width) for _ in self.predictor_layers)
        self.norms = nn.ModuleList(TokenNorm(config.norm, token_width) for _ in range(levels))
        # Predicted tokens vary less than those of whole images: a batch norm of both would fit neither.
        apart = config.read == "both" and config.norm == "batch"
        self.dense_norms = nn.ModuleList(TokenNorm(config.norm, token_width) for _ in range(levels if apart else 0))
        self.fill = nn.Parameter(torch.zeros(1, 1, token_width)) if config.fill == "learned" else None
        width = min(config.head_width, token_width)
        outputs = config.bins if config.target == "bins" else 1
        self.decoder = build_decoder(kind, token_width, outputs, self.patch, width)
        edges = torch.linspace(config.nearest, config.farthest, config.bins + 1)
        self.register_buffer("centres", (edges[:-1] + edges[1:]) / 2, persistent=False)

    @property
    def numbers(self) -> Numbers:
        """The numbers that maps are in, before whitening; bins are compared as logarithms."""
        return "log" if self.config.target == "bins" else self.config.target

    @property
    def reads_prediction(self) -> bool:
        """Whether it reads what the predictor says."""
        return self.config.read != "dense"

    def forward(
        self,
        levels: Sequence[Float[Tensor, "b n d"]],
        coverage: Float[Tensor, "b n"],
        grid: tuple[int, int],
        *,
        dense: bool = False,
    ) -> Depths:
        """Decode token grids, one a level, to a map; patches with coverage 0 are absent.

        `dense`: they are the encoder's of whole images, which may have norms of their own.
        """
        maps = []
        norms = self.dense_norms if dense and len(self.dense_norms) else self.norms
        for tokens, norm in zip(levels, norms, strict=True):
            tokens = norm(tokens, coverage)
            if self.fill is not None:
                tokens = torch.where(coverage[..., None] > 0, tokens, self.fill.to(tokens.dtype))
            maps.append(to_map(tokens, grid))
        found: Tensor = self.decoder(maps).float()
        if self.config.target == "bins":
            found = expected_depth(found, self.get_buffer("centres")).log()
        return found

    def read_dense(
        self, encoder: VisionTransformer, images: Float[Tensor, "b 3 h w"], *, detached: bool = False
    ) -> Depths:
        """Decode the encoder's tokens of whole (normalised) images, of any size that patches divide.

        `detached`: the gradient ends before the encoder.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            levels = encoder.features(images, self.encoder_layers)
        if not self.several:
            levels = [torch.cat(levels, -1)]
        grid = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        maps: Tensor = self(levels, torch.ones(levels[0].shape[:2], device=images.device), grid, dense=True)
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
                hidden = self.from_predictor[number](hidden)
            hidden = hidden.to(context[-1].dtype)
            both = torch.cat([context[number], hidden], 1) if self.config.scope == "full" else hidden
            whole, coverage = reassemble(both, index, cells, valid)
            levels.append(whole)
        return self(levels, coverage, self.grid), self._pixels(coverage)

    def judged(self, masks: Masks) -> Bool[Tensor, "b 1 h w"]:
        """The pixels on which `read_prediction` is judged under these masks."""
        index, valid = self._places(masks)
        ones = torch.ones(*index.shape, 1, device=index.device)
        return self._pixels(reassemble(ones, index, self.grid[0] * self.grid[1], valid)[1])

    def _places(self, masks: Masks) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"] | None]:
        """Patches of the tokens that are read, context first; and which of them are no padding."""
        index, valid = masks.targets.flatten(1), None if masks.valid is None else masks.valid.flatten(1)
        if self.config.scope == "full":
            index = torch.cat([masks.context, index], 1)
            if valid is not None:
                valid = torch.cat([torch.ones_like(masks.context, dtype=torch.bool), valid], 1)
        return index, valid

    def _pixels(self, coverage: Float[Tensor, "b n"]) -> Bool[Tensor, "b 1 h w"]:
        covered = to_map(coverage[..., None], self.grid) > 0
        return covered.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def loss(self, prediction: Depths, truth: Latents, judged: Bool[Tensor, "b 1 h w"] | None = None) -> Tensor:
        """Compare with the truth's whitened numbers where it is known and, if given, `judged`."""
        valid = truth.valid if judged is None else truth.valid & judged
        loss = depth_loss(prediction, truth.values, valid, self.config.loss, self.config.gradient)
        if truth.bound is None:
            return loss
        bound = truth.bound if judged is None else truth.bound & judged
        sign = -1 if self.numbers == "disparity" else 1  # a bound is of what is farther
        return loss + self.config.sky * bound_loss(sign * prediction, sign * truth.values, bound)

    def metres(self, numbers: Depths) -> Depths:
        """Depth [m] of maps from which the whitening was taken again."""
        return to_metres(numbers, self.numbers, self.config.nearest, self.config.farthest)
