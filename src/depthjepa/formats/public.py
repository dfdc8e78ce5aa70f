"""Public vision transformers (DINOv2, MAE, DeiT, supervised ViTs) under our names, and ours under theirs.

A class token, a distillation token and registers become our prefix tokens, in their order. Where such a token has a
position of its own, that is added to it: nothing else ever is. Positions of patches stay what they learned. What stands
beside the encoder (classifier, pooler, decoder, mask token) is left out; any other tensor is refused where the encoder
is built, so nothing is half read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depthjepa.faults import BadInput
from depthjepa.formats.weights import LAYER_SCALES, PREFIX, Weights, few
from depthjepa.model.vit import ModelConfig

Named = dict[str, tuple[str, ...]]  # our name, and theirs: one, or the three that ours joins


@dataclass(frozen=True, slots=True)
class Names:
    """How a class of transformers names what stands before the blocks, and the parts of one, in its files."""

    prefix: tuple[str, ...]  # each a tensor [1, tokens, width]
    block: Mapping[str, str]
    scales: tuple[str, str] | None = None  # of its layer scale

    def named(self, depth: int) -> Named:
        """Each of our names with theirs, but for prefix and positions."""
        names: Named = {}
        for kind in ("weight", "bias"):
            names[f"patch_embed.proj.{kind}"] = (f"embeddings.patch_embeddings.projection.{kind}",)
            names[f"norm.{kind}"] = (f"layernorm.{kind}",)
        for number in range(depth):
            ours, theirs = f"blocks.{number}", f"encoder.layer.{number}"
            for kind in ("weight", "bias"):
                names |= {f"{ours}.{part}.{kind}": (f"{theirs}.{each}.{kind}",) for part, each in self.block.items()}
                parts = tuple(f"{theirs}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
                names[f"{ours}.attn.qkv.{kind}"] = parts
            for scale, each in zip(LAYER_SCALES, self.scales or (), strict=False):
                names[f"{ours}.{scale}"] = (f"{theirs}.{each}",)
        return names


CLASS, POSITIONS = "embeddings.cls_token", "embeddings.position_embeddings"
REGISTERS, DISTILLATION = "embeddings.register_tokens", "embeddings.distillation_token"
_AFTER_ATTENTION = "attention.output.dense"
VIT = Names(
    (CLASS, DISTILLATION),
    {
        "norm1": "layernorm_before",
        "attn.proj": _AFTER_ATTENTION,
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)
DINOV2 = Names(
    (CLASS, REGISTERS),
    {"norm1": "norm1", "attn.proj": _AFTER_ATTENTION, "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    ("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
# In the files of transformers: what wraps the encoder, and what stands beside it.
_WRAPPED = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers)\.")
_BESIDE = re.compile(r"^(decoder|classifier|cls_classifier|distillation_classifier|pooler|head|lm_head)\b|mask_token$")
_TIMM_PREFIX = ("cls_token", "dist_token", "reg_token")
_TIMM_BESIDE = re.compile(r"^(head|head_dist|fc_norm)\.")


@dataclass(frozen=True, slots=True)
class Renamed:
    """An encoder's tensors under our names, and the names of those that were left out."""

    weights: Weights
    left_out: tuple[str, ...]


def from_transformers(stored: Mapping[str, Tensor], names: Names, patches: int, source: str) -> Renamed:
    """Rename the tensors of a file; `patches` are how many positions are of patches. Raises `BadInput` for missing."""
    inner = {_WRAPPED.sub("", key): value for key, value in stored.items()}
    left_out = sorted(key for key in inner if _BESIDE.search(key))
    kept = {key: value for key, value in inner.items() if key not in left_out}
    numbers = [int(found[1]) for key in kept if (found := re.match(r"encoder\.layer\.(\d+)\.", key))]
    weights = _embeddings(kept, names.prefix, POSITIONS, patches, source)
    for ours, theirs in names.named(1 + max(numbers, default=-1)).items():
        if absent := [name for name in theirs if name not in kept]:
            raise BadInput(f"{source} lacks {few(absent)}")
        weights[ours] = joined([kept.pop(name) for name in theirs])
    return Renamed(weights | kept, tuple(left_out))  # what is left bears a name that no encoder of ours has


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of ours from theirs: as it is, or query, key and value together."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def taken_apart(weight: Tensor, theirs: Sequence[str]) -> Weights:
    """The opposite of `joined`, by their names (copies: files know no shared memory)."""
    parts = [weight] if len(theirs) == 1 else [part.clone() for part in weight.chunk(3)]
    return dict(zip(theirs, parts, strict=True))


def from_timm(stored: Mapping[str, Tensor], patches: int, source: str) -> Renamed:
    """Rename the tensors of a vision transformer of timm, whose blocks bear our names; see `from_transformers`."""
    left_out = sorted(key for key in stored if _TIMM_BESIDE.search(key))
    kept = {key: value for key, value in stored.items() if key not in left_out}
    return Renamed(_embeddings(kept, _TIMM_PREFIX, "pos_embed", patches, source) | kept, tuple(left_out))


def _embeddings(kept: dict[str, Tensor], prefix: tuple[str, ...], positions: str, patches: int, source: str) -> Weights:
    """Take prefix and positions out of `kept`; a position before those of the patches goes to the token that has it."""
    if positions not in kept:
        raise BadInput(f"{source} has no {positions}: its positions are not added to patches")
    table = kept.pop(positions).float()
    tokens = [kept.pop(name) for name in prefix if name in kept]
    own = table.shape[1] - patches
    before = torch.cat(tokens, 1).float() if tokens else table[:, :0]
    if not 0 <= own <= before.shape[1]:
        raise BadInput(
            f"{source} has {table.shape[1]} positions for {patches} patches and {before.shape[1]} other tokens"
        )
    weights = {"pos_embed": table[:, own:]}
    if before.shape[1]:
        weights[PREFIX] = torch.cat([before[:, :own] + table[:, :own], before[:, own:]], 1)
    return weights


def to_timm(weights: Weights) -> Weights:
    """The names of timm, where patches alone have positions (`no_embed_class`)."""
    renamed = dict(weights)
    if PREFIX in renamed:
        prefix = renamed.pop(PREFIX)
        renamed["cls_token"] = prefix[:, :1]
        if prefix.shape[1] > 1:
            renamed["reg_token"] = prefix[:, 1:]
    return renamed


def to_transformers(weights: Weights, model: ModelConfig, names: Names) -> Weights:
    """The names of a class of transformers that has a class token, whose position is nothing.

    Where the class has a layer scale and the encoder none, that is 1.
    """
    prefix, positions = weights[PREFIX], weights["pos_embed"]
    renamed = {CLASS: prefix[:, :1], POSITIONS: torch.cat([torch.zeros_like(prefix[:, :1]), positions], 1)}
    if prefix.shape[1] > 1:
        renamed[REGISTERS] = prefix[:, 1:]
    if names.scales:
        renamed["embeddings.mask_token"] = torch.zeros(1, model.shape.width)  # which masks nothing here
    for ours, theirs in names.named(model.shape.depth).items():
        if ours not in weights:
            (name,) = theirs
            renamed[name] = torch.ones(model.shape.width)
            continue
        renamed |= taken_apart(weights[ours], theirs)
    return renamed
