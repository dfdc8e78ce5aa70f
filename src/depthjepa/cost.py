"""What a step costs: operations counted on shapes alone, the matmul rate measured here.

Operations are counted once, eagerly, on the meta device, where nothing is computed and attention is spelled out
(torch's counter does not see `scaled_dot_product_attention`). Two per multiply-add.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from depthjepa.config.run_config import RunConfig
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher
from depthjepa.losses import Latents
from depthjepa.masks import Masks, sample_masks
from depthjepa.method import build_method, build_teacher
from depthjepa.progress import duration
from depthjepa.runtime import matmul_rate


def step_flops(config: RunConfig, teacher: Teacher | None, batch_size: int) -> int:
    """Operations of one step's forward and backward passes, target encoder included, optimiser and teacher left out.

    Masks are the first batch's of this configuration. A supervised step is counted with its depth head, beside which
    that of the classes costs nothing.
    """
    if config.train.objective == "supervised":
        teacher = build_teacher(config, has_depth=True)
    with torch.device("meta"):
        method = build_method(config, teacher, classes=0).to("meta")
    images, masks, latents = example(config, teacher, batch_size, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        method(images, masks, latents).total.backward()
    return int(counter.get_total_flops())


def example(
    config: RunConfig, teacher: Teacher | None, batch_size: int, device: torch.device
) -> tuple[Tensor, Masks | None, Latents | None]:
    """Random images, the first batch's masks (a supervised run has none), random latents: all of the run's shapes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *config.data.size, generator=generator).to(device)
    masks = None
    if config.train.objective == "jepa":
        indices = np.arange(batch_size)
        masks = sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=indices, batch_index=0).to(device)
    if teacher is None:
        return images, masks, None
    shape = (batch_size, teacher.describe().channels, *config.target_cells)
    values = torch.randn(shape, generator=generator).to(device)
    return images, masks, Latents(values, torch.ones_like(values, dtype=torch.bool))


def estimate(
    config: RunConfig, teacher: Teacher | None, steps: int, world: int, device: torch.device, memory: int
) -> str:
    """One line before a run of `world` processes: about how long it takes, and the memory that is known of it.

    Half of the measured float32 (or bf16) matmul rate is taken as the speed of a step. A teacher that is a network
    and is asked about every crop is not counted.
    """
    share = max(1, config.train.batch_size // world)
    operations = step_flops(config, teacher, batch_size=min(share, 8)) / min(share, 8) * share
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    seconds = operations / (0.5 * matmul_rate(device, dtype, seconds=0.2)) * steps
    beside = "; the time of the teacher comes on top" if asks_network(config, teacher) else ""
    return (
        f"estimate: {steps} steps of {config.train.batch_size} images, {operations * world / 1e9:.3g} GFLOP each: "
        f"about {duration(seconds)} on this {device.type}, and {size_of(memory)} of memory{beside}"
    )


def asks_network(config: RunConfig, teacher: Teacher | None) -> bool:
    """Whether a network is asked about the crops of every step."""
    asked = isinstance(config.guidance, FeatureGuidance) and config.guidance.cache is None
    return asked and teacher is not None and not teacher.describe().needs_depth


def size_of(count: int) -> str:
    """Format bytes for people."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
