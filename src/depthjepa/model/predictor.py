"""The predictor: from context tokens to the embeddings of each target block.

Narrow transformer as in I-JEPA (Assran et al. 2023, section 3): context tokens are mapped to its width, a shared
mask token with the position of each target patch is appended, and every target block is a sequence of its own.
`together` puts the patches of all blocks into one sequence, each once (see `Masks.joined`), as V-JEPA does with its
masks: the context is read once instead of once a block, which is most of a predictor's cost on small grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from depthjepa.faults import BadInput
from depthjepa.masks import Masks
from depthjepa.model.blocks import Block, through
from depthjepa.model.vit import Shape, sine_cosine
from depthjepa.settings import configuration


@configuration
class PredictorConfig:
    """Size of the predictor; its heads are the encoder's."""

    depth: PositiveInt = 6
    """Blocks."""
    width: PositiveInt = 384
    """Width of tokens, a multiple of 4 and of the encoder's heads."""
    blocks: Literal["apart", "together"] = "apart"
    """Target blocks: a sequence for each, or all in one, which costs less."""


class Predicted(NamedTuple):
    """What the predictor says: of each target patch its embedding, and where asked for its pixels; of visible patches.

    The width of an embedding is that of all target layers together.
    """

    targets: Float[Tensor, "b m k d"]
    pixels: Float[Tensor, "b m k pixels"] | None = None
    visible: Float[Tensor, "b m c d"] | None = None
    levels: tuple[Float[Tensor, "b m k width"], ...] = ()  # of target patches inside the predictor, where asked for

    def detach(self) -> Predicted:
        """The same without its history: a gradient ends here."""
        pixels, visible = (None if each is None else each.detach() for each in (self.pixels, self.visible))
        return Predicted(self.targets.detach(), pixels, visible, tuple(level.detach() for level in self.levels))


class Predictor(nn.Module):
    """Predict embeddings of `layers` layers of the target encoder, `pixels` values a patch, and visible tokens."""

    predictor_pos_embed: Tensor

    def __init__(
        self,
        config: PredictorConfig,
        encoder: Shape,
        grid: tuple[int, int],
        *,
        layers: int = 1,
        pixels: int = 0,
        visible: bool = False,
    ) -> None:
        super().__init__()
        if config.width % encoder.heads or config.width % 4:
            raise BadInput(
                f"predictor.width={config.width} must be a multiple of 4 and of the encoder's {encoder.heads} heads"
            )
        self.together, self.visible = config.blocks == "together", visible
        self.predictor_embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("predictor_pos_embed", sine_cosine(config.width, grid)[None].clone())
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, encoder.heads, 4 * config.width) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predictor_proj = nn.Linear(config.width, layers * encoder.width)
        self.predictor_pixels = nn.Linear(config.width, pixels) if pixels else None

    def forward(self, context: Float[Tensor, "b c d"], masks: Masks, levels: Sequence[int] = ()) -> Predicted:
        """Predict; `levels` are blocks (0-based) after which the tokens of target patches are wanted as well."""
        b, c, _ = context.shape
        m, k = masks.targets.shape[1:]
        positions = self.predictor_pos_embed[0]
        seen = self.predictor_embed(context) + positions[masks.context]
        hidden = self.mask_token + positions[masks.targets.flatten(0, 1)]
        tokens = torch.cat([seen.repeat_interleave(m, 0), hidden.to(seen.dtype)], 1)
        readable = None
        if masks.valid is not None:
            valid = masks.valid.flatten(0, 1)
            readable = torch.cat([valid.new_ones(b * m, c), valid], 1)[:, None, None]
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.predictor_blocks):
            tokens = through(block, tokens, readable)
            if number in levels:
                kept[number] = self.predictor_norm(tokens[:, c:]).reshape(b, m, k, -1)
        tokens = self.predictor_norm(tokens)
        predicted = tokens[:, c:].reshape(b, m, k, -1)
        return Predicted(
            self.predictor_proj(predicted),
            None if self.predictor_pixels is None else self.predictor_pixels(predicted),
            self.predictor_proj(tokens[:, :c]).view(b, m, c, -1) if self.visible else None,
            tuple(kept[level] for level in levels),
        )
