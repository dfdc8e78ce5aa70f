"""What a checkpoint of any layout holds, under our names; and encoders built from it without a second copy.

Our names are the reference's: `pos_embed`, `patch_embed.proj`, `blocks.N.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
mlp.fc2}`, `norm`; where an encoder has what the reference's do not: `prefix_tokens`, `blocks.N.{ls1, ls2}.gamma`.
Nothing here is guessed in silence: what a layout does not say is listed in `Contents.assumed`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from depthjepa.faults import BadInput
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, SHAPES, ModelConfig, VisionTransformer

Weights = dict[str, Tensor]
Which = Literal["target", "context", "single"]  # single: a file's one encoder of which it is not said which it is


@dataclass(frozen=True, slots=True)
class Contents:
    """A checkpoint of a foreign layout: its encoders, perhaps a predictor and the state of its training.

    `image_size` is (height, width) in pixels, None where the number of positions does not tell.
    """

    source: str
    layout: str
    holds: str  # which encoders, in words
    encoders: dict[Which, Weights]
    model: ModelConfig
    image_size: tuple[int, int] | None
    predictor: Weights | None = None
    training: dict[str, Any] | None = None  # the reference's optimiser and counters
    assumed: tuple[str, ...] = field(default=())


FIRST, PREFIX = "patch_embed.proj.weight", "prefix_tokens"
LAYER_SCALES = ("ls1.gamma", "ls2.gamma")
# What torch.compile and sharding put into names, at any place.
INSIDE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrapped(weights: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Tensors of one encoder without what wraps it: DDP's `module.`, Lightning's `model.`, `backbone.`, or any other.

    Where all names have it, nothing is lost. Raises `BadInput` for several encoders, and for an encoder amid others.
    """
    named = {INSIDE.sub("", key): value for key, value in weights.items()}
    prefixes = [key.removesuffix(FIRST) for key in named if key.endswith("." + FIRST) or key == FIRST]
    if len(prefixes) > 1 and "" not in prefixes:
        raise BadInput(
            f"{source} holds several encoders, whose names begin with {' and '.join(map(repr, sorted(prefixes)))}: "
            f"keep the tensors of one"
        )
    if len(prefixes) != 1:
        return named
    (prefix,) = prefixes
    if others := sorted(key for key in named if not key.startswith(prefix)):
        raise BadInput(
            f"{source} holds an encoder whose names begin with {prefix!r}, beside {few(others)}: keep the tensors of "
            f"the encoder alone"
        )
    return {key.removeprefix(prefix): value for key, value in named.items()}


def beginnings(names: Iterable[str]) -> str:
    """How names of tensors begin, for a message about names that are none of ours: `backbone. (150), head. (2)`."""
    counts = Counter(f"{name.split('.')[0]}." if "." in name else name for name in names)
    listed = [f"{begin} ({count})" if count > 1 else begin for begin, count in counts.most_common(4)]
    return ", ".join(listed) + ", …" * (len(counts) > 4)


def describe(
    weights: Weights,
    source: str | Path,
    *,
    heads: int | None = None,
    otherwise: int | None = None,
    eps: float = PLAIN.eps,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    deviation: tuple[float, ...] = IMAGENET_DEVIATION,
) -> tuple[ModelConfig, tuple[int, int] | None, tuple[str, ...]]:
    """Read size, patch size and image size off an encoder's tensors; and, in words, what had to be assumed.

    The number of attention heads leaves no trace in the tensors: it is `heads` where the file says them, else that of
    the released size with the same dimensions, else `otherwise`, else a guess (see `_heads`).

    Raises:
        BadInput: the tensors are not an encoder's.
    """
    width, depth, hidden, patch, tokens = _dimensions(weights, source)
    if classes := [key for key in weights if key in ("cls_token", "dist_token", "reg_token")]:
        patches = math.isqrt(tokens) ** 2
        positions = f" ({tokens} positions = {patches} + {tokens - patches})" * (tokens > patches)
        raise BadInput(
            f"{source} holds an encoder with a class token{positions}: {few(classes)}; encoders of I-JEPA have patches "
            f"alone, so it cannot be read (a run starts from it where it is in a folder of timm or transformers: "
            f"init.checkpoint)"
        )
    sizes = {(shape.width, shape.depth, shape.hidden): name for name, shape in SHAPES.items()}
    size = sizes.get((width, depth, hidden))
    assumed: tuple[str, ...] = ()
    if heads is None:
        heads = SHAPES[size].heads if size else otherwise
    if heads is None:
        heads = _heads(width, source)
        assumed = (f"{heads} attention heads (the layout does not say; model.heads=N if there are others)",)
    if width % heads:
        raise BadInput(f"{source} holds an encoder of width {width}, which {heads} attention heads do not divide")
    normal: dict[str, Any] = {"mean": mean, "deviation": deviation, "norm_eps": eps}
    if PREFIX in weights:
        normal["prefix_tokens"] = weights[PREFIX].shape[1]
    if (scale := weights.get(f"blocks.0.{LAYER_SCALES[0]}")) is not None:
        normal["layer_scale"] = float(scale.float().abs().mean())  # what they began at is not kept
    if size and heads == SHAPES[size].heads:
        model = ModelConfig(size=size, patch_size=patch, **normal)  # type: ignore[arg-type]
    else:
        model = ModelConfig("tiny", patch, width, depth, heads, hidden, **normal)
    side = math.isqrt(tokens)
    return model, (side * patch, side * patch) if side**2 == tokens else None, assumed


def _dimensions(weights: Weights, source: str | Path) -> tuple[int, int, int, int, int]:
    """Width, depth, width of the MLP, patch size and number of positions."""
    if other := [key for key, value in weights.items() if not isinstance(value, Tensor)]:
        raise BadInput(f"{source} does not hold an encoder of I-JEPA: {few(other)} should be tensors")
    try:
        width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
        _, tokens, _ = weights["pos_embed"].shape
        hidden, _ = weights["blocks.0.mlp.fc1.weight"].shape
    except (KeyError, ValueError) as fault:
        absent = f"{fault.args[0]} is missing among names that begin with {beginnings(weights)}"
        reason = absent if isinstance(fault, KeyError) else "its tensors have other dimensions"
        raise BadInput(f"{source} does not hold an encoder of I-JEPA: {reason}") from fault
    if channels != 3:
        raise BadInput(f"{source} holds an encoder of {channels} channels; depthjepa's read RGB")
    depth = 1 + max(int(number[1]) for key in weights if (number := re.match(r"blocks\.(\d+)\.", key)))
    return width, depth, hidden, patch, tokens


def _heads(width: int, source: str | Path) -> int:
    """One head a 64 of the width, as every released size up to large has, else three, as tiny has."""
    heads = width // 64 if width % 64 == 0 else 3
    if width % heads:
        raise BadInput(f"{source} does not say how many attention heads its width {width} has: give model.heads=N")
    return heads


def assemble(model: ModelConfig, grid: tuple[int, int], weights: Weights, source: str | Path) -> VisionTransformer:
    """Build an encoder around given tensors, in eval mode and without gradients.

    The tensors become its parameters as they are (mapped from the file, where they were): nothing is drawn, nothing
    is held twice.
    """
    with torch.device("meta"):
        encoder = VisionTransformer(model.shape, model.patch_size, grid, model.mean, model.deviation, model.traits)
    load_strictly(encoder, {key: value.float() for key, value in weights.items()}, source, assign=True)
    return encoder.eval().requires_grad_(False)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path, *, assign: bool = False) -> None:
    """Load weights where names and shapes all agree; raises `BadInput` that names what does not.

    `assign` puts the given tensors in place of the model's instead of copying them.
    """
    refuse_misfit(model.state_dict(), weights, f"{source} does not fit the model")
    # Files may hold parameters where we have buffers: what is kept must be plain tensors.
    model.load_state_dict({key: value.detach() for key, value in weights.items()}, assign=assign)


def refuse_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise `BadInput` that begins with `what` unless names and shapes all agree."""
    other = [
        f"{key} is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected.keys() & found.keys()
        if expected[key].shape != found[key].shape
    ]
    refuse_other_names(expected, found, what, other)


def refuse_other_names(
    expected: Mapping[str, Any], found: Mapping[str, Any], what: str, other: Sequence[str] = ()
) -> None:
    """Raise `BadInput` that begins with `what` and names what is missing, left over, or otherwise amiss."""
    missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or left_over or other:
        faults = [f"missing {few(missing)}"] * bool(missing) + [f"left over {few(left_over)}"] * bool(left_over)
        raise BadInput(f"{what}: " + "; ".join(faults + sorted(other)[:3]))


def few(names: list[str]) -> str:
    """List the first three names and count the rest."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def encoder_names(model: ModelConfig) -> list[str]:
    """Names of an encoder's tensors, in the order of its state."""
    shape, traits = model.shape, model.traits
    blocks = [
        name
        for number in range(shape.depth)
        for name in (
            *(
                f"blocks.{number}.{part}.{kind}"
                for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
                for kind in ("weight", "bias")
            ),
            *(f"blocks.{number}.{scale}" for scale in LAYER_SCALES if traits.layer_scale is not None),
        )
    ]
    first = [*[PREFIX] * bool(traits.prefix), "pos_embed", FIRST, "patch_embed.proj.bias"]
    return [*first, *blocks, "norm.weight", "norm.bias"]
