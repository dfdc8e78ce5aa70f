"""What measures know of an encoder, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """A module from normalised images [b, 3, h, w] to tokens [b, n, d] of a grid of patches, in raster order.

    The grid has h / `patch_size` rows and w / `patch_size` columns; sizes that `patch_size` does not divide are
    refused. Of a convolutional network a patch is a place of the last map, and `patch_size` the stride of that map.
    """

    @property
    def patch_size(self) -> int:
        """Side of a patch, or stride of the last map [px]."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer that `features` gives; of a transformer its blocks, all alike."""
        ...

    @property
    def width(self) -> int:
        """Channels of the tokens, which are those of the last layer."""
        ...

    @property
    def depth(self) -> int:
        """How many layers `features` gives."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of RGB in [0, 1] that `normalise` takes off."""
        ...

    @property
    def deviation(self) -> tuple[float, ...]:
        """What it divides each channel by."""
        ...

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Bring RGB in [0, 1] to what this encoder was trained on."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 h w"], /) -> Any:
        """Tokens [b, n, d] of the last layer after the final norm, without class token and registers."""
        ...

    def features(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Float[Tensor, "b n _"]]:
        """Tokens [b, n, d] of several layers (0-based; negative counts from the end), in the order of `layers`.

        Where a network has a final norm for tokens of their width, they went through it. All lie on the grid of the
        last layer: a map with another grid is brought there by averaging (adaptive average pooling).
        """
        ...

    def to(self, device: Any, /) -> Encoder:
        """Move to a device, as `nn.Module` does."""
        ...

    def eval(self) -> Encoder:
        """Let dropout and batch norm rest, as `nn.Module` does."""
        ...

    def train(self, mode: bool = True) -> Encoder:
        """The opposite, as `nn.Module` does."""
        ...
