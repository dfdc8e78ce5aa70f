"""What encoders of other libraries have in common: the grid, normalisation, layers, and what is refused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.config.run_config import RunConfig
from depthjepa.data.config import DataConfig
from depthjepa.faults import BadInput
from depthjepa.formats.public import Renamed
from depthjepa.formats.weights import Which
from depthjepa.grid import to_map, to_tokens
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig, normalise, refuse_other_than_images

Size = tuple[int, int]  # height, width [px]
Maps = Float[Tensor, "b _ _ _"]  # width, rows and columns, which differ from layer to layer


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a network, by its own library."""

    name: str
    widths: tuple[int, ...]  # channels of each layer
    patch_size: int  # [px]; of a convolutional network the stride of its last map
    image_size: Size  # that it was trained at
    mean: tuple[float, ...] = IMAGENET_MEAN
    deviation: tuple[float, ...] = IMAGENET_DEVIATION
    fixed: bool = False  # whether it takes that size alone

    @property
    def taken(self) -> Size:
        """The size nearest to that of training which `patch_size` divides."""
        height, width = (max(1, round(side / self.patch_size)) * self.patch_size for side in self.image_size)
        return height, width


class NetworkEncoder(nn.Module):
    """A network of another library as an encoder; see `model.encoder.Encoder`, which it follows.

    A family gives `maps`: those of some layers, after the final norm where that fits, class token and registers taken
    off. Raises `BadInput` for images that are no multiple of `patch_size`, for sizes that the network refuses, and
    where the maps are not on the grid that they should be on.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.patch_size, self.widths = facts.patch_size, facts.widths
        self.mean, self.deviation = facts.mean, facts.deviation

    @property
    def width(self) -> int:
        """Channels of the last layer."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.widths)

    @abstractmethod
    def maps(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Maps]:
        """Maps [b, d, rows, cols] of the layers (0-based, ascending)."""

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens of the last layer."""
        (tokens,) = self.features(images, [self.depth - 1])
        return tokens

    def features(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Float[Tensor, "b n _"]]:
        """Tokens of several layers, all on the grid of the last layer; see `Encoder`."""
        wanted = [layer + self.depth if layer < 0 else layer for layer in layers]
        if not all(0 <= layer < self.depth for layer in wanted):
            raise BadInput(f"layers {list(layers)} are not all in -{self.depth}..{self.depth - 1}")
        refuse_other_than_images(images, self.patch_size)
        height, width = images.shape[-2:]
        if self.facts.fixed and (height, width) != self.facts.image_size:
            raise BadInput(
                f"{self.facts.name} takes images of {_by(self.facts.image_size)} px alone, not {height} x {width}"
            )
        ordered = sorted(set(wanted))
        try:
            maps = dict(zip(ordered, self.maps(images, ordered), strict=True))
        except (AssertionError, ValueError) as fault:  # how the libraries refuse
            raise BadInput(f"{self.facts.name} refuses images of {height} x {width} px: {fault}") from fault
        grid = height // self.patch_size, width // self.patch_size
        last = maps.get(self.depth - 1)
        if last is not None and (last.ndim != 4 or last.shape[-2:] != grid):
            raise BadInput(
                f"{self.facts.name} gives {list(last.shape)} for images of {height} x {width} px, and not a map of the "
                f"{_by(grid)} patches of {self.patch_size} px"
            )
        return [to_tokens(_on(maps[layer], grid)) for layer in wanted]

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Bring RGB in [0, 1] to what the network was trained on."""
        return normalise(images, self.mean, self.deviation)


def without_prefix(tokens: Float[Tensor, "b _ d"], prefix: int, grid: Size, name: str) -> Maps:
    """The map of what follows the class token and the registers; raises `BadInput` where that is no whole grid."""
    count = grid[0] * grid[1]
    if tokens.ndim != 3 or tokens.shape[1] != prefix + count:
        raise BadInput(
            f"{name} gives {list(tokens.shape)}, and not {prefix} + {_by(grid)} tokens: its grid cannot be told"
        )
    return to_map(tokens[:, prefix:], grid)


def _on(maps: Maps, grid: Size) -> Maps:
    return maps if maps.shape[-2:] == grid else F.adaptive_avg_pool2d(maps, grid)


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True, slots=True)
class Plain:
    """A vision transformer of another library that computes as ours does, under our names."""

    renamed: Renamed
    heads: int
    eps: float  # of its norms
    layer_scale: float | None  # what it began at


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """A network of another library as a backbone."""

    network: NetworkEncoder
    found: str
    assumed: tuple[str, ...]
    initial: Callable[[RunConfig], NetworkEncoder | None]  # the same architecture at its initial weights
    plain: Callable[[], Plain] | None = None  # what it is under our names; raises `BadInput` for what is none of ours
    saved: None = None

    @property
    def config(self) -> RunConfig:
        """What the network says of itself; what else a configuration has means nothing here."""
        facts = self.network.facts
        height, width = facts.taken
        return RunConfig(
            name=facts.name.rpartition("/")[2].lstrip(".") or "network",
            data=DataConfig(root="", image_size=height if height == width else (height, width)),
            model=ModelConfig(patch_size=facts.patch_size, mean=_three(facts.mean), deviation=_three(facts.deviation)),
        )

    def which(self, wanted: Which) -> Which:
        """There is one encoder."""
        return "single"

    def encoder(self, which: Which) -> NetworkEncoder:
        """The network itself, in eval mode."""
        return self.network.eval().requires_grad_(False)

    def random(self, config: RunConfig) -> NetworkEncoder | None:
        """The same architecture at initial weights that are drawn by the configuration's seed."""
        drawn = self.initial(config)
        return None if drawn is None else drawn.eval().requires_grad_(False)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def size_assumed(facts: Facts) -> tuple[str, ...]:
    """The sentence about a size of training that the stride does not divide; empty where it does."""
    if facts.taken == facts.image_size:
        return ()
    return (f"images of {_by(facts.taken)} px (trained at {_by(facts.image_size)}; its stride is {facts.patch_size})",)


def refuse_shape(name: str, settings: Sequence[str]) -> None:
    """Raise `BadInput` for settings `model.*`: a network of another library says its shape itself."""
    given = [text for text in settings if text.startswith("model.")]
    if given:
        raise BadInput(f"{given[0]} has no effect on {name}: a network of another library says its shape itself")
