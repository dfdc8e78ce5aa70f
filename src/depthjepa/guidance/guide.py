"""What guides of both kinds have in common: a configuration, what they read, how their losses are put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.guidance.config import FeatureGuidance, PixelGuidance, share_of_weight
from depthjepa.losses import Latents
from depthjepa.masks import Masks
from depthjepa.model.jepa import Judged, Read
from depthjepa.model.predictor import Predicted
from depthjepa.model.vit import VisionTransformer


class ReadingGuide(nn.Module, ABC):
    """Reads maps from the method's tokens and compares each with the target; see `model.jepa.Guide`."""

    def __init__(self, config: FeatureGuidance | PixelGuidance) -> None:
        super().__init__()
        self.config = config

    @property
    def targets(self) -> int:
        """Equal parts of a map's channels: what the teacher says, and a second target beside it."""
        return 1 if isinstance(self.config, PixelGuidance) or self.config.beside == "none" else 2

    @property
    def weight(self) -> float:
        """Weight of its loss beside the latent loss, where all of it holds."""
        return self.config.weight

    def weight_at(self, progress: float) -> float:
        """That weight when a share of the run is done."""
        return self.config.weight * share_of_weight(self.config.schedule, self.config.turn, progress)

    @property
    def reads(self) -> tuple[Read, ...]:
        """What its maps are read from."""
        return ("predicted", "dense") if self.config.read == "both" else (self.config.read,)

    @abstractmethod
    def read(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
    ) -> dict[Read, Judged]:
        """Maps by what was read, and the cells of each that count (None: all)."""

    @abstractmethod
    def compare(self, prediction: Tensor, target: Latents, judged: Tensor | None = None) -> Float[Tensor, ""]:
        """Loss of one map, on the cells that the target knows and, if given, that are judged."""

    def loss(
        self,
        encoder: VisionTransformer,
        images: Float[Tensor, "b 3 h w"],
        levels: Sequence[Float[Tensor, "b c d"]],
        predicted: Predicted,
        masks: Masks,
        target: Latents,
    ) -> Float[Tensor, ""]:
        """The guidance loss of a step: the mean over what is read.

        Where the weight is 0 for a time it is computed all the same, so that a run says what its tokens give then.
        """
        maps = self.read(encoder, images, levels, predicted, masks)
        return torch.stack([self.compare(each, target, judged) for each, judged in maps.values()]).mean()
