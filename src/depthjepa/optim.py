"""AdamW, its parameter groups, and all rates as pure functions of the step.

Facts are the released I-JEPA code's: linear warm-up then cosine for the learning rate, cosine for the weight decay
(its paper: linear), linear for the momentum of the target encoder; no decay for biases and one-dimensional
parameters; no gradient clipping. Because rates are functions there is nothing to save and nothing to replay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass as configuration
from torch import nn

Share = Annotated[float, Field(ge=0, le=1)]


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class OptimConfig:
    """Rates of a run. The learning rate is the one used: nothing is scaled behind your back."""

    lr: PositiveFloat = 1e-3
    start_lr: NonNegativeFloat = 2e-4
    final_lr: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt | None = None  # None: by warmup_epochs
    warmup_epochs: NonNegativeFloat | None = None  # None: a tenth of the steps
    weight_decay: NonNegativeFloat = 0.04
    final_weight_decay: NonNegativeFloat = 0.4
    momentum: Share = 0.996  # of the target encoder's moving average
    final_momentum: Share = 1.0
    # The schedules are laid out over `stretch` times the steps (the reference's ipe_scale), which ends them early.
    # Below 1 they would run past their end, where the cosine turns and the momentum exceeds 1.
    stretch: Annotated[float, Field(ge=1)] = 1.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat | None = None  # largest norm of the gradient; None: no clipping
    head_lr: NonNegativeFloat | None = None  # peak for the head, on the same schedule; None: as `lr`

    def warmup(self, steps: int, steps_per_epoch: int) -> int:
        """Return the number of warm-up steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_epochs is not None:
            return int(self.warmup_epochs * steps_per_epoch)
        return max(1, steps // 10)


def learning_rate(step: int, *, start: float, peak: float, final: float, warmup: int, steps: int) -> float:
    """Rate of the update number `step` (the first is 1): linear from `start` to `peak`, then cosine to `final`."""
    if step < warmup:
        return start + step / max(1, warmup) * (peak - start)
    progress = (step - warmup) / max(1, steps - warmup)
    return max(final, final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def weight_decay(step: int, *, start: float, final: float, steps: int) -> float:
    """Decay of the update number `step` (the first is 1): a half cosine from `start` to `final`."""
    value = final + (start - final) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(final, value) if final >= start else max(final, value)


def momentum(step: int, *, start: float, final: float, steps: int) -> float:
    """Momentum of the moving average after the update number `step + 1`: linear from `start` to `final`."""
    return start + step * (final - start) / steps


Role = Literal["encoder", "head"]


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, object]]:
    """Split parameters by (encoder or head) and (decayed or not).

    Biases and one-dimensional parameters are not decayed; the mask token is three-dimensional and therefore is,
    as in the reference. Parameters whose name starts with `head.` follow the head's learning rate.
    """
    groups: dict[tuple[Role, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        role: Role = "head" if name.startswith("head.") else "encoder"
        decayed = parameter.ndim > 1 and not name.endswith("bias")
        groups.setdefault((role, decayed), []).append(parameter)
    return [
        {"params": parameters, "role": role, "decayed": decayed}
        for (role, decayed), parameters in sorted(groups.items(), key=lambda item: str(item[0]))
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; rates are set each step by `set_rates`."""
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(
        parameter_groups(model.named_parameters()), lr=config.lr, betas=config.betas, eps=config.eps, fused=fused
    )


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, head_scale: float, decay: float) -> None:
    """Set the rates of the coming update; the head's learning rate is `head_scale` times the encoder's."""
    for group in optimizer.param_groups:
        group["lr"] = lr * head_scale if group["role"] == "head" else lr
        group["weight_decay"] = decay if group["decayed"] else 0.0
