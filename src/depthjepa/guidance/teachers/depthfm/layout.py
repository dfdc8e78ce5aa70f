"""From the released DepthFM's layout to diffusers': the network's hyperparameters, and the names of its weights.

The released checkpoint names both as the latent diffusion code base does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from depthjepa.faults import BadInput

CHANNELS = 4  # of a latent

# diffusers' name of a residual block's part -> the released one.
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_config(hparams: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Translate the hyperparameters of a latent diffusion UNet to the arguments of diffusers' UNet2DConditionModel."""

    def whole(key: str, default: int | None = None) -> int:
        value = hparams.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"{path}: ldm_hparams.{key} is {value!r}, expected a whole number above 0")
        return value

    def wholes(key: str) -> tuple[int, ...]:
        value = hparams.get(key)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(each, int) for each in value):
            raise BadInput(f"{path}: ldm_hparams.{key} is {value!r}, expected a list of whole numbers")
        return tuple(value)

    if not hparams.get("use_spatial_transformer"):
        raise BadInput(f"{path}: ldm_hparams.use_spatial_transformer is not true: DepthFM reads its text by attention")
    for key, channels in (("in_channels", 2 * CHANNELS), ("out_channels", CHANNELS)):
        if whole(key) != channels:
            raise BadInput(f"{path}: ldm_hparams.{key} is {hparams[key]}, but DepthFM has {channels}")
    widths = tuple(whole("model_channels") * factor for factor in wholes("channel_mult"))
    if hparams.get("num_head_channels", -1) == -1:
        heads = tuple(whole("num_heads") for _ in widths)
    else:
        heads = tuple(width // whole("num_head_channels") for width in widths)
    reached = wholes("attention_resolutions")
    attends = [2**level in reached for level in range(len(widths))]
    return {
        "in_channels": 2 * CHANNELS,
        "out_channels": CHANNELS,
        "block_out_channels": widths,
        "down_block_types": tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        "layers_per_block": whole("num_res_blocks"),
        "cross_attention_dim": whole("context_dim"),
        "transformer_layers_per_block": whole("transformer_depth", 1),
        "use_linear_projection": bool(hparams.get("use_linear_in_transformer", False)),
        "attention_head_dim": heads,  # diffusers' misnomer: the number of heads of each level
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def released_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Map the modules of diffusers' UNet to the released names; a weight's name is its module's and a suffix.

    The released UNet numbers its blocks through all levels: one for each residual block (with its attention) and
    one for each halving on the way down; on the way up the doubling closes the last block of its level.
    """
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
    }

    def residual(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{part}": f"{theirs}.{released}" for part, released in RESIDUAL.items()})

    residual("mid_block.resnets.0", "middle_block.0")
    residual("mid_block.resnets.1", "middle_block.2")
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    block = 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            residual(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            if kind.startswith("CrossAttn"):
                names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind.startswith("CrossAttn")
        for layer in range(layers + 1):
            residual(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            if attends:
                names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{1 + attends}.conv"
    return names


def released_keys(unet: nn.Module, config: Mapping[str, Any]) -> dict[str, str]:
    """Map every weight of diffusers' UNet to its name in the released `state_dict`."""
    names = released_names(config)
    return {
        key: next(theirs + key.removeprefix(ours) for ours, theirs in names.items() if key.startswith(f"{ours}."))
        for key in unet.state_dict()
    }
