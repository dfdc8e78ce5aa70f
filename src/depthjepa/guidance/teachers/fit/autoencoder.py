"""The autoencoder of a compact teacher: images, and depth maps drawn as images, to latents and back.

Latents that copy colours best are not those that tell depth best: while it learns, a few convolutions guess the depth
latent from the image latent, and what they miss counts as well (not in DepthFM, whose autoencoder had seen millions of
photographs).
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa import runtime
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.depthfm.layout import CHANNELS
from depthjepa.guidance.teachers.depthfm.network import STRIDE, diffusers_library
from depthjepa.guidance.teachers.fit.config import FitConfig
from depthjepa.guidance.teachers.fit.pairs import depth_picture, encode_pair
from depthjepa.logbook import writing

CHANNELS_A_GROUP = 4  # of the autoencoder's group normalisation, as in Stable Diffusion's
HINT_WIDTH = 64


def build_autoencoder(config: FitConfig, seed: int) -> Any:
    """Return diffusers' AutoencoderKL at its initial weights, a function of (config, seed)."""
    groups = max(1, min(config.autoencoder_widths) // CHANNELS_A_GROUP)
    if any(width % groups for width in config.autoencoder_widths):
        raise BadInput(
            f"fit.autoencoder_widths={list(config.autoencoder_widths)}: each must be a multiple of {groups}, a quarter "
            f"of the smallest"
        )
    levels = len(config.autoencoder_widths)
    with runtime.seeded(seed, "autoencoder"):
        return diffusers_library().AutoencoderKL(
            latent_channels=CHANNELS,
            block_out_channels=config.autoencoder_widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            norm_num_groups=groups,
        )


class Hinted(nn.Module):
    """An autoencoder while it learns, and the convolutions that guess depth latents from image latents."""

    def __init__(self, autoencoder: Any, seed: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        sizes = (CHANNELS, HINT_WIDTH, HINT_WIDTH, CHANNELS)
        with runtime.seeded(seed, "hint"):
            layers = [nn.Conv2d(each, following, 3, padding=1) for each, following in pairwise(sizes)]
        self.hint = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])


def autoencoder_loss(hinted: Hinted, batch: Batch, config: FitConfig, seed: int, step: int) -> Tensor:
    """Mean absolute error of images and depth pictures after the autoencoder, its divergence term and the hint's.

    Both are cut to one random part of `autoencoder_crop` px: the network is convolutional.
    """
    autoencoder = hinted.autoencoder
    drawn, known = depth_picture(batch, config)
    side = [min(config.autoencoder_crop, each) for each in drawn.shape[-2:]]
    numbers = runtime.uniforms(2, seed=seed, stream="autoencoder crop", epoch=0, indices=np.array([step]))[0]
    top, left = (
        int(number * (full - part + 1)) for number, full, part in zip(numbers, drawn.shape[-2:], side, strict=True)
    )
    pictures = torch.cat([batch.images * 2 - 1, drawn])
    counts = torch.cat([torch.ones_like(known), known]).float()
    part = (..., slice(top, top + side[0]), slice(left, left + side[1]))
    pictures, counts = pictures[part], counts[part]
    posterior = autoencoder.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=runtime.generator(seed, f"autoencoder {step}"))
    latent = posterior.mean + posterior.std * noise.to(posterior.mean)
    error = (autoencoder.decode(latent).sample.float() - pictures).abs()
    # Unmeasured pixels count a little: a map without jumps at the holes is easier to tell.
    weight = 0.1 + 0.9 * counts
    loss: Tensor = (error * weight).mean() / weight.mean() + config.kl * posterior.kl().float().mean()
    if config.hint:
        loss = loss + config.hint * unexplained(hinted.hint, latent, counts)
    return loss


def unexplained(
    hint: nn.Module, latent: Float[Tensor, "pictures 4 rows cols"], counts: Float[Tensor, "pictures 1 h w"]
) -> Float[Tensor, ""]:
    """Share of the depth latents' variance that the hint does not tell from the image latents.

    The first half of the pictures are images, the second their depth. No gradient reaches depth latents: they would
    become easy to tell and stop saying depth.
    """
    image, depth = latent.float().chunk(2)
    depth = depth.detach()
    weight = F.avg_pool2d(counts[len(image) :], STRIDE)
    total = weight.sum().clamp(min=1e-6)
    mean = (depth * weight).sum((0, 2, 3), keepdim=True) / total
    spread = ((depth - mean).square() * weight).sum() / total
    missed = ((hint(image) - depth).square() * weight).sum() / total
    share: Tensor = missed / spread.clamp(min=1e-6)
    return share


def latent_scale(autoencoder: Any, batch: Batch, config: FitConfig) -> float:
    """The factor that brings latents of images and depth maps to a deviation of 1 (Rombach et al. 2022, D.1)."""
    pair = encode_pair(autoencoder, batch, config)
    return float(1 / torch.cat([pair.image, pair.depth]).float().std())


def save_autoencoder(autoencoder: Any, scale: float, folder: Path) -> None:
    """Write the autoencoder as diffusers does, in float16, with the factor that gives its latents a deviation of 1."""
    autoencoder.register_to_config(scaling_factor=scale)
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        autoencoder.half().save_pretrained(partial)
        partial.replace(folder)


def copy_autoencoder(earlier: Path, folder: Path) -> None:
    """Copy the autoencoder of an earlier fit, file by file (diffusers would write down where it was read from)."""
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.copytree(earlier, partial, dirs_exist_ok=True)
        partial.replace(folder)
