"""AdamW, its parameter groups, and all rates as pure functions of the step.

Facts are the released I-JEPA code's: linear warm-up then cosine for the learning rate, cosine for the weight decay
(its paper: linear), linear for the momentum of the target encoder; no decay for biases and one-dimensional
parameters; no gradient clipping. Because rates are functions there is nothing to save and nothing to replay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from depthjepa.settings import configuration

Share = Annotated[float, Field(ge=0, le=1)]


@configuration
class OptimConfig:
    """Rates of a run. The learning rate is the one used, unless `lr_batch` asks for scaling.

    The moving average that is the target encoder reaches back over about 1 / (1 - momentum) steps. `average_over`
    says how far as shares of the run, at its start and at its end, and takes the place of both momenta: what suits
    300 epochs of ImageNet is a standstill in a thousand steps.
    """

    lr: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    start_lr: NonNegativeFloat = 2e-4
    """Learning rate that the linear warm-up starts from."""
    final_lr: NonNegativeFloat = 1e-6
    """Learning rate that the cosine ends at."""
    lr_batch: PositiveInt | None = None
    """Batch that the three are meant for: they grow in proportion to the run's own; null: taken as they are."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of warm-up; null: by warmup_epochs."""
    warmup_epochs: NonNegativeFloat | None = None
    """Epochs of warm-up; null: a tenth of the steps."""
    weight_decay: NonNegativeFloat = 0.04
    """Weight decay at the start; none for biases and one-dimensional parameters."""
    final_weight_decay: NonNegativeFloat = 0.4
    """Weight decay at the end, reached by a cosine."""
    momentum: Share = 0.996
    """Momentum of the target encoder's moving average at the start."""
    final_momentum: Share = 1.0
    """Momentum at the end, reached linearly."""
    average_over: tuple[Share, Share] | None = None
    """How far the average reaches back, at start and end, as shares of the run; null: by the momenta."""
    # Below 1 the schedules would run past their end, where the cosine turns and the momentum exceeds 1.
    stretch: Annotated[float, Field(ge=1)] = 1.0
    """Schedules are laid out over this many times the steps, which ends them early (the reference's ipe_scale)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Betas of AdamW."""
    eps: PositiveFloat = 1e-8
    """Epsilon of AdamW."""
    clip: PositiveFloat | None = None
    """Largest norm of the gradient; null: no clipping."""
    head_lr: NonNegativeFloat | None = None
    """Peak learning rate of guidance's or supervised heads, on the same schedule; null: as lr."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of an encoder's block divided by that of the block above; 1: all alike."""

    def warmup(self, steps: int, steps_per_epoch: int) -> int:
        """Return the number of warm-up steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_epochs is not None:
            return int(self.warmup_epochs * steps_per_epoch)
        return max(1, steps // 10)


def rates(
    config: OptimConfig, step: int, *, steps: int, epoch_steps: int, batch_size: int, thaw: tuple[int, int] = (0, 0)
) -> dict[str, float]:
    """All rates of the update that follows `step` updates, of a run of `steps`.

    `thaw`: after how many frozen steps encoder and predictor learn, and over how many their rate grows from 0 then:
    `thaw_scale` multiplies it, and not the head's.
    """
    length = int(config.stretch * steps)
    scale = 1.0 if config.lr_batch is None else batch_size / config.lr_batch
    lr = learning_rate(
        step + 1,
        start=scale * config.start_lr,
        peak=scale * config.lr,
        final=scale * config.final_lr,
        warmup=config.warmup(steps, epoch_steps),
        steps=length,
    )
    decay = weight_decay(step + 1, start=config.weight_decay, final=config.final_weight_decay, steps=length)
    if config.average_over is None:
        kept = momentum(step, start=config.momentum, final=config.final_momentum, steps=length)
    else:
        kept = momentum_over(step, start=config.average_over[0], final=config.average_over[1], steps=length)
    head_scale = 1.0 if config.head_lr is None else config.head_lr / config.lr
    thawed = thaw_scale(step + 1, *thaw)
    return {"lr": lr, "weight_decay": decay, "momentum": kept, "head_scale": head_scale, "thaw_scale": thawed}


def learning_rate(step: int, *, start: float, peak: float, final: float, warmup: int, steps: int) -> float:
    """Rate of the update number `step` (the first is 1): linear from `start` to `peak`, then cosine to `final`."""
    if step < warmup:
        return start + step / max(1, warmup) * (peak - start)
    progress = (step - warmup) / max(1, steps - warmup)
    return max(final, final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def thaw_scale(step: int, frozen: int, steps: int) -> float:
    """Share of the rate that holds for what was frozen at the update number `step` (the first is 1).

    It grows linearly over `steps` updates after the `frozen` ones: their moments of AdamW are empty yet.
    """
    return min(1.0, max(0.0, (step - frozen) / steps)) if steps and frozen else 1.0


def weight_decay(step: int, *, start: float, final: float, steps: int) -> float:
    """Decay of the update number `step` (the first is 1): a half cosine from `start` to `final`."""
    value = final + (start - final) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(final, value) if final >= start else max(final, value)


def momentum(step: int, *, start: float, final: float, steps: int) -> float:
    """Momentum of the moving average after the update number `step + 1`: linear from `start` to `final`."""
    return start + step * (final - start) / steps


def momentum_over(step: int, *, start: float, final: float, steps: int) -> float:
    """Momentum of an average that reaches back over a share of the `steps`, which goes linearly from start to final.

    1 - 1 / (share x steps), and 0 (no average) where that is a step or less.
    """
    reach = (start + step * (final - start) / steps) * steps
    return max(0.0, 1 - 1 / reach) if reach > 0 else 0.0


Role = Literal["encoder", "head"]
HEADS = ("guide.", "head.")  # names of what stands beside encoder and predictor, guided and supervised


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], layer_decay: float = 1.0) -> list[dict[str, object]]:
    """Split parameters by (encoder or head), by (decayed or not) and, with layer decay, by the depth they stand at.

    Biases and one-dimensional parameters are not decayed; the mask token is three-dimensional and therefore is,
    as in the reference; an encoder's class token and registers are not, as where they come from. Parameters of the
    guide and of supervised heads follow the head's learning rate. `scale` multiplies the learning rate: `layer_decay`
    to the power of the blocks above, counted from the encoder's final norm (Clark et al. 2020, as MAE's fine-tuning
    uses it); predictor and head stand above the encoder.
    """
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    blocks = 1 + max((_block(name) or 0 for name, _ in named), default=0)
    groups: dict[tuple[Role, bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        role: Role = "head" if name.startswith(HEADS) else "encoder"
        decayed = parameter.ndim > 1 and not name.endswith(("bias", "encoder.prefix_tokens"))
        block = _block(name)
        scale = 1.0 if block is None else layer_decay ** (blocks - block)
        groups.setdefault((role, decayed, scale), []).append((name, parameter))
    return [
        {"params": parameters, "role": role, "decayed": decayed, "scale": scale}
        for (role, decayed, scale), parameters in sorted(groups.items(), key=lambda item: str(item[0]))
    ]


def _block(name: str) -> int | None:
    """Which block of the encoder a parameter belongs to; -1: what enters the first one; None: what stands above."""
    if "encoder.patch_embed." in name or "encoder.prefix_tokens" in name:
        return -1
    found = re.search(r"encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; rates are set each step by `set_rates`."""
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    groups = parameter_groups(model.named_parameters(), config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def names_by_number(state: Mapping[str, Any]) -> dict[int, str]:
    """Names of the parameters in an optimiser's state dictionary, by the numbers under which it keeps their moments."""
    return {
        number: name
        for group in state["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
    }


def set_rates(
    optimizer: torch.optim.Optimizer, *, lr: float, head_scale: float, decay: float, thaw_scale: float = 1.0
) -> None:
    """Set the rates of the coming update: of heads `head_scale` times `lr`, of all others `thaw_scale` times."""
    for group in optimizer.param_groups:
        group["lr"] = lr * (head_scale if group["role"] == "head" else thaw_scale * group["scale"])
        group["weight_decay"] = decay if group["decayed"] else 0.0
