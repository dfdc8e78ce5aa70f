"""The blocks of a vision transformer (Dosovitskiy et al. 2021): pre-norm attention and MLP, GELU, no dropout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LONGEST_SPELLED_OUT = 1024  # tokens; beyond, their scores would fill the memory


class Traits(NamedTuple):
    """What an encoder has beyond that of I-JEPA; the defaults are nothing."""

    prefix: int = 0  # tokens before those of the patches: class token, registers
    layer_scale: float | None = None  # what the scale of each half of a block begins at; None: there is none
    eps: float = 1e-6  # of the norms


PLAIN = Traits()


def block_at(share: float, depth: int) -> int:
    """The block (0-based) that ends at a share, in (0, 1], of an encoder's depth."""
    return max(0, round(share * depth) - 1)


class Block(nn.Module):
    """Pre-norm transformer block; with a layer scale, what each half adds is multiplied channel by channel."""

    recomputed = False  # whether `through` keeps nothing of what is inside for the way back

    def __init__(self, width: int, heads: int, hidden: int, traits: Traits = PLAIN) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=traits.eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=traits.eps)
        self.mlp = MLP(width, hidden)
        initial = traits.layer_scale
        self.ls1, self.ls2 = (nn.Identity() if initial is None else LayerScale(width, initial) for _ in range(2))

    def forward(
        self, tokens: Float[Tensor, "b n d"], readable: Bool[Tensor, "b 1 1 n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), readable))
        return torch.add(tokens, self.ls2(self.mlp(self.norm2(tokens))))


def through(
    block: nn.Module, tokens: Float[Tensor, "b n d"], readable: Bool[Tensor, "b 1 1 n"] | None = None
) -> Float[Tensor, "b n d"]:
    """Tokens after a block; one that is `recomputed` is computed again on the way back (Chen et al. 2016).

    Then its tokens alone are kept, a seventeenth of what is inside. The figures are the same to the bit: nothing in a
    block is drawn.
    """
    after: Tensor
    if block.recomputed and torch.is_grad_enabled():
        after = checkpoint(block, tokens, readable, use_reentrant=False, preserve_rng_state=False)
    else:
        after = block(tokens, readable)
    return after


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, CaiT, equation 3)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return tokens * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention; tokens that are not `readable` (padding) are attended to by none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "b n d"], readable: Bool[Tensor, "b 1 1 n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        b, n, d = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attend = spelled_out_attention if self._spelled_out(query) else F.scaled_dot_product_attention
        mixed = attend(query, key, value, attn_mask=readable)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        return projected

    @staticmethod
    def _spelled_out(query: Float[Tensor, "b heads n d"]) -> bool:
        """Whether to take two products: the fused kernel's backward is 3 to 6 times slower in bf16 on a CPU.

        On the meta device operations are counted, and torch's counter does not see the fused kernel.
        """
        bf16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
        return query.is_meta or (bf16_on_cpu and query.shape[2] <= LONGEST_SPELLED_OUT)


def spelled_out_attention(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads n d"],
    value: Float[Tensor, "b heads n d"],
    attn_mask: Bool[Tensor, "b 1 1 n"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """What `scaled_dot_product_attention` computes, as two matrix products."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    mixed: Tensor = scores.softmax(-1) @ value
    return mixed


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        narrowed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return narrowed
