"""The predictor: from context tokens to the embeddings of each target block.

Narrow transformer as in I-JEPA (Assran et al. 2023, section 3): context tokens are mapped to its width, a shared
mask token with the position of each target patch is appended, and every target block is a sequence of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor, nn

from depthjepa.faults import BadInput
from depthjepa.masks import Masks
from depthjepa.model.vit import Block, Shape, sine_cosine


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PredictorConfig:
    """Size of the predictor; its heads are the encoder's."""

    depth: PositiveInt = 6
    width: PositiveInt = 384


class Predictor(nn.Module):
    """Predict target embeddings [b, m, k, d] from context tokens [b, c, d] and the masks."""

    predictor_pos_embed: Tensor

    def __init__(self, config: PredictorConfig, encoder: Shape, grid: tuple[int, int]) -> None:
        super().__init__()
        if config.width % encoder.heads or config.width % 4:
            raise BadInput(
                f"predictor.width={config.width} must be a multiple of 4 and of the encoder's {encoder.heads} heads"
            )
        self.predictor_embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("predictor_pos_embed", sine_cosine(config.width, grid)[None].clone())
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, encoder.heads, 4 * config.width) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predictor_proj = nn.Linear(config.width, encoder.width)

    def forward(self, context: Float[Tensor, "b c d"], masks: Masks) -> Float[Tensor, "b m k d"]:
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
        for block in self.predictor_blocks:
            tokens = block(tokens, readable)
        predicted: Tensor = self.predictor_proj(self.predictor_norm(tokens[:, c:]))
        return predicted.view(b, m, k, -1)
