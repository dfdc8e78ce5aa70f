"""A network that learns: its optimiser, the average of its weights, saved and resumed as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from depthjepa.fitting import update
from depthjepa.guidance.teachers.fit.config import FitConfig
from depthjepa.logbook import whole_file
from depthjepa.optim import learning_rate

MEMORY = 200  # steps over which the flow's weights are averaged


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
