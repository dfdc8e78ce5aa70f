"""The flow of a compact teacher: the velocity that carries a noised image latent to the depth latent.

Flow matching in a straight line (Lipman et al. 2023; Gui et al. 2024, equations 4 to 7), given the clean image latent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthjepa import runtime
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.depthfm.layout import released_keys, unet_config
from depthjepa.guidance.teachers.depthfm.network import diffusers_library, signal_share
from depthjepa.guidance.teachers.fit.config import TEXT_WIDTH, FitConfig
from depthjepa.guidance.teachers.fit.pairs import Pairs
from depthjepa.logbook import whole_file


def build_flow(config: FitConfig, seed: int) -> Any:
    """Return diffusers' UNet2DConditionModel at its initial weights, a function of (config, seed)."""
    if any(config.width * multiple % config.heads for multiple in config.multiples):
        raise BadInput(f"fit.heads={config.heads} does not divide the widths of the flow, multiples of {config.width}")
    with runtime.seeded(seed, "flow"):
        network = diffusers_library().UNet2DConditionModel(**unet_config(config.hyperparameters(), Path("fit")))
        # As diffusion models begin: what is predicted at first is nothing, not noise.
        torch.nn.init.zeros_(network.conv_out.weight)
        torch.nn.init.zeros_(network.conv_out.bias)
    # On a CPU torch's fused attention goes back slowly: written out, a step takes a fifth less.
    network.set_attn_processor(diffusers_library().models.attention_processor.AttnProcessor())
    return network


def begin_at(flow: Any, earlier: Any, place: Path) -> None:
    """Give a flow the weights of an earlier one; raises `BadInput`, with what differs, for another network."""
    differing = [
        f"{key}={earlier.config[key]} there and {value} here"
        for key, value in flow.config.items()
        if not key.startswith("_") and earlier.config[key] != value
    ]
    if differing:
        raise BadInput(f"fit.start={place} is another network: {', '.join(differing)}")
    flow.load_state_dict(earlier.state_dict())


def flow_loss(flow: Any, pairs: Pairs, config: FitConfig, seed: int, step: int) -> Tensor:
    """Mean squared error of the velocity at random times between the noised image latent and the depth latent."""
    draws = runtime.generator(seed, f"flow {step}")
    noise = torch.randn(pairs.image.shape, generator=draws).to(pairs.image)
    time = torch.rand(len(noise), generator=draws).to(pairs.image) ** config.time_power
    share = signal_share(config.noising_step / 1000)
    start = math.sqrt(share) * pairs.image + math.sqrt(1 - share) * noise
    at = time[:, None, None, None]
    state = start + at * (pairs.depth - start)
    text = torch.zeros(len(noise), 1, TEXT_WIDTH, device=noise.device)
    velocity = flow(torch.cat([state, pairs.image], 1), time, encoder_hidden_states=text).sample.float()
    error = (velocity - (pairs.depth - start)).square().mean(1, keepdim=True)
    loss: Tensor = (error * pairs.weight).sum() / pairs.weight.sum().clamp(min=1e-6)
    return loss


def save_flow(flow: Any, config: FitConfig, file: Path) -> None:
    """Write a checkpoint in the layout of the released depthfm-v1.ckpt, in float16."""
    hyperparameters = config.hyperparameters()
    keys = released_keys(flow, unet_config(hyperparameters, file))
    content = {
        "noising_step": config.noising_step,
        "empty_text_embedding": torch.zeros(1, 1, TEXT_WIDTH),
        "ldm_hparams": hyperparameters,
        "state_dict": {keys[ours]: weight.half().cpu() for ours, weight in flow.state_dict().items()},
    }
    with whole_file(file) as stream:
        torch.save(content, stream)
