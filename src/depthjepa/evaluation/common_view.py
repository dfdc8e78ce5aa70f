"""Several encoders on one view of each photograph: their figures are of the same cells of the same images.

Networks differ in patch size and in the size of the images that they were trained on. Here all are given one view and
one grid: an encoder resizes the view to a size of its own and its tokens to the grid, bilinearly. So ground truth, mean
maps and raw patches are the same for all, and each network works at the size that suits it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.grid import to_map, to_tokens
from depthjepa.model.encoder import Encoder

Size = tuple[int, int]  # height, width [px], or rows, columns


class OnView(nn.Module):
    """An encoder that sees a common view at its own size `sees`, and answers on a common `grid`.

    Images are RGB in [0, 1] of any size; `normalise` leaves them as they are, since they are resized first. Tokens of
    images that were encoded before are remembered up to `room` bytes: tasks that go over the same images encode them
    once. `patch_size` is that of the common view.
    """

    def __init__(self, encoder: Encoder, sees: Size, grid: Size, patch_size: int, room: int = 0) -> None:
        super().__init__()
        self.encoder, self.sees, self.grid, self.patch_size, self.room = encoder, sees, grid, patch_size, room
        self.mean, self.deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self._known: dict[bytes, Tensor] = {}

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return self.encoder.widths

    @property
    def width(self) -> int:
        """Channels of the last layer."""
        return self.encoder.width

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return self.encoder.depth

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images as they are."""
        return images

    def features(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Float[Tensor, "b n _"]]:
        """Tokens of several layers on the common grid; see `Encoder`."""
        if list(layers) in ([self.depth - 1], [-1]):
            return [self(images)]
        return [self._on_grid(each) for each in self.encoder.features(self._own(images), layers)]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens of the last layer on the common grid."""
        if not self.room or torch.is_grad_enabled():
            return self._encoded(images)
        keys = [hashlib.blake2b(each.cpu().numpy().tobytes(), digest_size=16).digest() for each in images]
        missing = [row for row, key in enumerate(keys) if key not in self._known]
        fresh = dict(zip(missing, self._encoded(images[missing]), strict=True)) if missing else {}
        for row, tokens in fresh.items():
            if (len(self._known) + 1) * tokens.numel() * tokens.element_size() <= self.room:
                self._known[keys[row]] = tokens.to("cpu", copy=True)
        tokens = [fresh[row] if row in fresh else self._known[key].to(images.device) for row, key in enumerate(keys)]
        return torch.stack(tokens)

    def _own(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _ _"]:
        if tuple(images.shape[2:]) != self.sees:
            images = F.interpolate(images, self.sees, mode="bilinear", antialias=True).clamp(0, 1)
        return self.encoder.normalise(images)

    def _encoded(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return self._on_grid(self.encoder(self._own(images)))

    def _on_grid(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        own = self.sees[0] // self.encoder.patch_size, self.sees[1] // self.encoder.patch_size
        if own == self.grid:
            return tokens
        maps = F.interpolate(to_map(tokens, own), self.grid, mode="bilinear", align_corners=False)
        return to_tokens(maps)


def view_size(photograph: Size, size: Size, patch_size: int) -> Size:
    """The view of a whole photograph in its own proportions, up to whole patches, with about as many as `size` has."""
    patches = size[0] * size[1] / patch_size**2
    height, width = photograph
    rows, cols = math.sqrt(patches * height / width), math.sqrt(patches * width / height)
    return max(1, round(rows)) * patch_size, max(1, round(cols)) * patch_size


def nearest_size(asked: Size, patch_size: int) -> Size:
    """The size nearest to the asked one that patches divide."""
    height, width = (max(1, round(side / patch_size)) * patch_size for side in asked)
    return height, width


def common(sizes: Sequence[Size], patches: Sequence[int]) -> tuple[Size, int]:
    """The grid and the patch size of a view that is at least as fine as every encoder's size and grid."""
    grids = [(height // patch, width // patch) for (height, width), patch in zip(sizes, patches, strict=True)]
    rows, cols = (max(each[side] for each in grids) for side in (0, 1))
    high, wide = (max(each[side] for each in sizes) for side in (0, 1))
    return (rows, cols), max(-(-high // rows), -(-wide // cols), 2)
