"""A compact teacher of DepthFM's kind from RGB-D pairs (Gui et al. 2024; DepthFM's own training code is not public).

Two networks learn one after the other. An autoencoder (Rombach et al. 2022, without their adversarial loss) brings
images, and depth maps drawn as grey images, to latents of four channels at an eighth of the sides. Latents that copy
colours best are not those that tell depth best: while it learns, a few convolutions guess the depth latent from the
image latent, and what they miss counts as well (not in DepthFM, whose autoencoder had seen millions of photographs).
Then a network learns the velocity that carries a noised image latent to the depth latent of the same picture in a
straight line (flow matching, Lipman et al. 2023; Gui et al., equations 4 to 7), given the clean image latent.

What is saved has the layout of the released DepthFM and is read by the same class. A depth map is drawn as the
logarithm of depth / zoom [m] (what a crop's pixels can tell, see `Batch`), `nearest` as -1 and `farthest` as 1.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from depthjepa import runtime
from depthjepa.data.samples import Batch
from depthjepa.depth import valid
from depthjepa.faults import BadInput
from depthjepa.fitting import update
from depthjepa.guidance.teachers.depthfm.layout import CHANNELS, released_keys, unet_config
from depthjepa.guidance.teachers.depthfm.network import STRIDE, diffusers_library, signal_share
from depthjepa.logbook import whole_file, writing
from depthjepa.optim import learning_rate
from depthjepa.settings import configuration

CHECKPOINT, AUTOENCODER = "teacher.ckpt", "vae"  # what a fitted teacher is, in its folder
TEXT_WIDTH = 16  # of the one word, all zeros, that stands for the empty text
CHANNELS_A_GROUP = 4  # of the autoencoder's group normalisation, as in Stable Diffusion's
HINT_WIDTH = 64
MEMORY = 200  # steps over which the flow's weights are averaged


@configuration
class FitConfig:
    """The two networks of a compact teacher, what they learn from, and for how long.

    The released DepthFM has an autoencoder of 128, 256, 512, 512 channels with 2 blocks a level, and a flow of width
    320 with multiples 1, 2, 4, 4 and 2 blocks. Widths of the flow are multiples of 32 (its group normalisation).
    """

    start: str | None = None
    """A fitted teacher to go on from, its folder or depthfm-tiny; its autoencoder is kept; null: random weights."""
    autoencoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 48, 48)
    """Channels of the autoencoder's four levels."""
    autoencoder_steps: PositiveInt = 1000
    """Steps of the autoencoder."""
    autoencoder_crop: PositiveInt = 64
    """Side of the parts of crops that the autoencoder learns from [px], a multiple of 8."""
    kl: NonNegativeFloat = 1e-6
    """Weight of the divergence of its latents from a standard normal."""
    hint: NonNegativeFloat = 0.1
    """Weight of what image latents do not tell a few convolutions of depth latents."""
    width: Annotated[int, Field(gt=0, multiple_of=32)] = 64
    """Channels of the flow."""
    multiples: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 1)
    """Channels of the flow's levels as multiples of its width."""
    blocks: PositiveInt = 1
    """Residual blocks of a level of the flow."""
    heads: PositiveInt = 4
    """Attention heads of the flow."""
    noising_step: Annotated[int, Field(ge=0, le=1000)] = 400
    """Noise of the image latent that the flow starts from, as a step of 1000; 0: none."""
    time_power: PositiveFloat = 1.0
    """Times of the flow are drawn as uniform ** power: above 1 its beginning counts more."""
    crops: PositiveInt = 16384
    """Crops whose latents are computed once; the flow learns from them."""
    steps: PositiveInt = 6000
    """Steps of the flow."""
    batch_size: PositiveInt = 32
    """Crops of a step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of both networks."""
    nearest: PositiveFloat = 0.5
    """Depth / zoom that is drawn as black [m]; nearer is black as well."""
    farthest: PositiveFloat = 100.0
    """Depth / zoom that is drawn as white [m]; farther is white as well."""
    holes: Literal["nearest", "farthest"] = "nearest"
    """What stands where nothing was measured: the next value, which does not count, or far away (sky), which does."""
    scored: tuple[PositiveFloat, PositiveFloat] | None = None
    """Depths that are judged, from and to [m]; null: from nearest to farthest."""
    val_images: PositiveInt = 500
    """Most held-out pairs that are judged."""
    checkpoint_every: PositiveInt = 200
    """Steps from one saved state to the next."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the networks' arithmetic."""
    device: str | None = None
    """cpu, cuda or cuda:N; null: the GPU where there is one, else the CPU."""
    threads: PositiveInt | None = None
    """CPU threads; null: PyTorch's choice."""

    @field_validator("autoencoder_crop")
    @classmethod
    def _whole_cells(cls, value: int) -> int:
        if value % STRIDE:
            raise ValueError(f"must be a multiple of {STRIDE} px, the side of a latent cell")
        return value

    @model_validator(mode="after")
    def _nearest_before_farthest(self) -> FitConfig:
        for key, (low, high) in {"nearest": (self.nearest, self.farthest), "scored": self.judged}.items():
            if low >= high:
                raise ValueError(
                    f"fit.{key}: the first depth must be nearer than the second, got {low:g} and {high:g} m"
                )
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """`ldm_hparams` of the flow: attention on every level but the finest (the finest, where it is the only)."""
        levels = range(len(self.multiples))
        return {
            "image_size": 32,
            "in_channels": 2 * CHANNELS,
            "out_channels": CHANNELS,
            "model_channels": self.width,
            "attention_resolutions": [2**level for level in levels if level or len(levels) == 1],
            "num_res_blocks": self.blocks,
            "channel_mult": list(self.multiples),
            "num_heads": self.heads,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "transformer_depth": 1,
            "context_dim": TEXT_WIDTH,
            "legacy": False,
        }

    @property
    def multiple(self) -> int:
        """Of an image's sides [px]: the flow halves its latent once less than it has levels."""
        return STRIDE << (len(self.multiples) - 1)

    @property
    def judged(self) -> tuple[float, float]:
        """Depths [m] that figures are about."""
        return self.scored or (self.nearest, self.farthest)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Latents of crops and of their depth maps, and how much each cell counts (its share of measured pixels)."""

    image: Float[Tensor, "n 4 rows cols"]
    depth: Float[Tensor, "n 4 rows cols"]
    weight: Float[Tensor, "n 1 rows cols"]

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Put pairs one after the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def chosen(self, numbers: Int[np.ndarray, " k"], scale: float, where: torch.device) -> Pairs:
        """Some of the pairs in float32, their latents times `scale`."""
        image, depth, weight = (
            part[torch.from_numpy(numbers)].to(where, torch.float32) for part in (self.image, self.depth, self.weight)
        )
        return Pairs(image * scale, depth * scale, weight)


def depth_picture(batch: Batch, config: FitConfig) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b 1 h w"]]:
    """Draw the depth of a batch as grey images in [-1, 1], larger = farther; and tell which pixels count.

    Values outside of `nearest` to `farthest` are clamped. Pixels without a measurement take the value of the nearest
    one that has (and do not count), or are far away (and count).
    """
    assert batch.depth is not None
    known = valid(batch.depth)
    low, high = math.log(config.nearest), math.log(config.farthest)
    metres = torch.where(known, batch.depth, 1.0) / batch.zoom[:, None, None, None]
    drawn = (2 * (metres.log() - low) / (high - low) - 1).clamp(-1, 1)
    if config.holes == "farthest":
        drawn, known = torch.where(known, drawn, 1.0), torch.ones_like(known)
    else:
        drawn = _filled(drawn, known)
    return drawn.expand(-1, 3, -1, -1).contiguous(), known


def _filled(values: Float[Tensor, "b 1 h w"], known: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Give unknown pixels the value of the nearest known one; an image without any becomes 0."""
    from scipy.ndimage import distance_transform_edt  # every command reads this module's configuration, few need this

    filled = torch.zeros_like(values)
    for row, (map_, mask) in enumerate(zip(values.cpu(), known.cpu().numpy(), strict=True)):
        if mask.any():
            places = distance_transform_edt(~mask[0], return_distances=False, return_indices=True)
            filled[row, 0] = map_[0, torch.from_numpy(places[0]).long(), torch.from_numpy(places[1]).long()].to(values)
    return filled


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


class Learner:
    """A network, its optimiser and, if asked for, the moving average of its weights; saved and resumed as one."""

    def __init__(self, network: Any, config: FitConfig, steps: int, *, averaged: bool) -> None:
        self.network, self.steps, self.step, self._config = network, steps, 0, config
        self._losses: list[float] = []  # since they were last asked for
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-4)
        self.average = (
            AveragedModel(
                network,
                multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / MEMORY),  # type: ignore[no-untyped-call]
            )
            if averaged
            else None
        )

    def update(self, loss: Tensor) -> None:
        """One step of AdamW at a rate that rises over a twentieth of the steps and falls by a cosine."""
        warmup, lr = max(1, self.steps // 20), self._config.lr
        rate = learning_rate(self.step + 1, start=lr / 100, peak=lr, final=lr / 100, warmup=warmup, steps=self.steps)
        self._losses.append(float(update(self.optimizer, [loss], rate, clip=1.0)))
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1

    def mean_loss(self) -> float:
        """Mean loss of the steps since it was last asked for."""
        mean, self._losses = sum(self._losses) / len(self._losses), []
        return mean

    @property
    def learned(self) -> Any:
        """The network to keep."""
        return self.network if self.average is None else self.average.module

    def save(self, file: Path, part: str) -> None:
        """Write all that is needed to go on with this part."""
        content = {
            "part": part,
            "step": self.step,
            "losses": self._losses,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        with whole_file(file) as stream:
            torch.save(content, stream)

    def resume(self, file: Path, part: str) -> None:
        """Go on from what `save` wrote, if it is of this part."""
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["part"] != part:
            return
        self.step, self._losses = content["step"], content["losses"]
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])


@torch.no_grad()
def encode_pair(autoencoder: Any, batch: Batch, config: FitConfig) -> Pairs:
    """Latents of a batch's crops and depth maps as the autoencoder gives them (not scaled), float16 on the CPU."""
    drawn, known = depth_picture(batch, config)
    with runtime.precision(config.precision, drawn.device):
        image, depth = (autoencoder.encode(each).latent_dist.mode() for each in (batch.images * 2 - 1, drawn))
    image, depth = image.half().cpu(), depth.half().cpu()
    return Pairs(image, depth, F.avg_pool2d(known.float(), STRIDE).half().cpu())


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
