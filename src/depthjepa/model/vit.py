"""The vision transformer of I-JEPA: pre-norm blocks on patches, fixed sine-cosine positions, no class token.

Layout and names follow the released I-JEPA encoder (Dosovitskiy et al. 2021; Assran et al. 2023, appendix A.1):
qkv with bias, GELU, LayerNorm with eps 1e-6 and a final norm, no dropout. Linear layers start from a truncated
normal of deviation 0.02 and are *not* rescaled with depth, which is what the released models were trained with.

What public weights have beyond that are `Traits`: a class token and registers before the patches, a scale on what each
half of a block adds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from depthjepa.faults import BadInput
from depthjepa.grid import gather, patchify, to_map, to_tokens
from depthjepa.model.blocks import PLAIN, Block, LayerScale, Traits, through
from depthjepa.settings import configuration

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Shape(NamedTuple):
    """Width, depth, attention heads and width of the hidden layer of a block."""

    width: int
    depth: int
    heads: int
    hidden: int


SHAPES = {
    "tiny": Shape(192, 12, 3, 768),
    "small": Shape(384, 12, 6, 1536),
    "base": Shape(768, 12, 12, 3072),
    "large": Shape(1024, 24, 16, 4096),
    "huge": Shape(1280, 32, 16, 5120),
    "giant": Shape(1408, 40, 16, 6144),
}


@configuration
class ModelConfig:
    """Size of the encoders, and how images are normalised for them."""

    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "small"
    """Named size of the encoders."""
    patch_size: PositiveInt = 16
    """Side of a patch [px]; it divides the image's sides."""
    width: PositiveInt | None = None
    """Width of tokens; null: the size's."""
    depth: PositiveInt | None = None
    """Blocks; null: the size's."""
    heads: PositiveInt | None = None
    """Attention heads; null: the size's, or with a width of its own one for each 64."""
    hidden: PositiveInt | None = None
    """Width of the hidden layer of a block's MLP; null: the size's, or with a width of its own 4 times that."""
    prefix_tokens: NonNegativeInt = 0
    """Tokens before those of the patches, without a place (class token, registers of public weights)."""
    layer_scale: PositiveFloat | None = None
    """What the learned scales of each block's two halves begin at (LayerScale, as DINOv2 has them); null: none."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the encoders' norms."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of RGB in [0, 1] that images are normalised with, at training and ever after."""
    deviation: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_DEVIATION
    """Deviation of RGB that images are normalised with."""

    @property
    def shape(self) -> Shape:
        """Resolve the size and what replaces it; raises `BadInput` for widths that heads do not divide."""
        named = SHAPES[self.size]
        width = self.width or named.width
        heads = self.heads or (max(1, width // 64) if self.width else named.heads)
        hidden = self.hidden or (4 * width if self.width else named.hidden)
        if width % heads or width % 4:
            raise BadInput(f"model.width={width} must be a multiple of 4 and of model.heads={heads}")
        return Shape(width, self.depth or named.depth, heads, hidden)

    @property
    def traits(self) -> Traits:
        """What the encoders have beyond those of I-JEPA."""
        return Traits(self.prefix_tokens, self.layer_scale, self.norm_eps)


class VisionTransformer(nn.Module):
    """Encoder: normalised images [b, 3, h, w] to tokens [b, n, d], one for each patch, in raster order.

        >>> import depthjepa, torch
        >>> encoder = depthjepa.load_encoder("runs/mine")
        >>> images = torch.rand(2, 3, 96, 144)  # RGB in [0, 1]
        >>> with torch.no_grad():
        ...     tokens = encoder(encoder.normalise(images))
        ...     early, late = encoder.features(encoder.normalise(images), layers=[0, -1])
        >>> rows, columns = 96 // encoder.patch_size, 144 // encoder.patch_size
        >>> tokens.shape == early.shape == late.shape == (2, rows * columns, encoder.width)
        True
        >>> maps = tokens.transpose(1, 2).reshape(2, encoder.width, rows, columns)

    In: RGB in [0, 1], from which `normalise` takes the mean (`encoder.mean`) and which it divides by the deviation
    (`encoder.deviation`) of each channel: ImageNet's, unless the checkpoint says otherwise. Floating point, on the
    encoder's device. Height and width are multiples of `encoder.patch_size`; beside those that it was trained on
    (`encoder.grid` patches: rows, columns) others are taken, and positions are stretched bicubically.

    Out: the tokens after the last block and its norm; token `row * columns + column` is of the patch at that row and
    column. Where there are tokens before those (`Traits.prefix`), all attend to them and they are left out at the end:
    the mean over n stands for the image. `features(images, layers)` gives the same of several blocks. `keep` [b, c]
    (patch numbers) chooses the patches that are computed at all: tokens [b, c, d].

    Raises `BadInput` for what are no images that patches divide, with the nearest size that they do.
    """

    pos_embed: Tensor

    def __init__(
        self,
        shape: Shape,
        patch_size: int,
        grid: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        deviation: Sequence[float] = IMAGENET_DEVIATION,
        traits: Traits = PLAIN,
    ) -> None:
        super().__init__()
        self.width, self.patch_size, self.grid = shape.width, patch_size, grid
        self.mean, self.deviation, self.prefix = tuple(mean), tuple(deviation), traits.prefix
        if traits.prefix:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, traits.prefix, shape.width))
        self.patch_embed = PatchEmbedding(shape.width, patch_size)
        # A copy: loading a checkpoint writes into the buffer, and the table is shared.
        self.register_buffer("pos_embed", sine_cosine(shape.width, grid)[None].clone())
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.hidden, traits) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=traits.eps)

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the tokens after each block."""
        return (self.width,) * self.depth

    def forward(
        self, images: Float[Tensor, "b 3 h w"], keep: Int64[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b _ d"]:
        """Tokens [b, n, d] of normalised images, or [b, c, d] of the patches `keep`; see the class."""
        tokens = self.embed(images, keep)
        for block in self.blocks:
            tokens = through(block, tokens)
        return self.of_patches(tokens)

    def embed(
        self, images: Float[Tensor, "b 3 h w"], keep: Int64[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b _ d"]:
        """Embed patches and add their positions, after the tokens that have none.

        Raises `BadInput` for what are no images that patches divide.
        """
        refuse_other_than_images(images, self.patch_size)
        patches = patchify(images, self.patch_size)
        grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        positions = self.positions(grid)
        if keep is not None:
            patches = gather(patches, keep)
            positions = positions[0][keep]
        embedded: Tensor = self.patch_embed(patches) + positions
        if not self.prefix:
            return embedded
        return torch.cat([self.prefix_tokens.to(embedded.dtype).expand(embedded.shape[0], -1, -1), embedded], 1)

    def of_patches(self, tokens: Float[Tensor, "b _ d"]) -> Float[Tensor, "b _ d"]:
        """The tokens of the patches alone, through the final norm."""
        normed: Tensor = self.norm(tokens[:, self.prefix :] if self.prefix else tokens)
        return normed

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n d"]:
        """Position embeddings of a grid of (rows, columns): stretched bicubically when it is not the built one."""
        if grid == self.grid:
            return self.pos_embed
        return stretch(self.pos_embed, self.grid, grid)

    def features(
        self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int], keep: Int64[Tensor, "b c"] | None = None
    ) -> list[Float[Tensor, "b _ d"]]:
        """Tokens after the given blocks (0-based; negative counts from the end), each through the final norm.

        A list of [b, n, d], in the order of `layers`; those of block -1 are what the encoder itself gives. Raises
        `BadInput` for blocks that are not there.
        """
        depth = len(self.blocks)
        wanted = [layer + depth if layer < 0 else layer for layer in layers]
        if not all(0 <= layer < depth for layer in wanted):
            raise BadInput(f"layers {list(layers)} are not all in -{depth}..{depth - 1}")
        tokens, kept = self.embed(images, keep), {}
        for number, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            tokens = through(block, tokens)
            if number in wanted:
                kept[number] = self.of_patches(tokens)
        return [kept[layer] for layer in wanted]

    def normalise(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Bring RGB in [0, 1] to what this encoder was trained on."""
        return normalise(images, self.mean, self.deviation)


def normalise(
    images: Float[Tensor, "b 3 h w"], mean: Sequence[float], deviation: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Subtract the channel means of RGB in [0, 1] and divide by the deviations."""
    centre = images.new_tensor(mean)[:, None, None]
    return (images - centre) / images.new_tensor(deviation)[:, None, None]


class PatchEmbedding(nn.Module):
    """Linear map of flattened patches; its weight is kept as the convolution that checkpoints hold."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, patches: Float[Tensor, "b n pixels"]) -> Float[Tensor, "b n d"]:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def refuse_other_than_images(images: Tensor, patch: int) -> None:
    """Raise `BadInput` for tensors that are no normalised images [b, 3, h, w] whose sides are multiples of `patch`."""
    what = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
    if images.ndim != 4 or images.shape[1] != 3:
        raise BadInput(f"an encoder takes images [b, 3, height, width], not a tensor {what}")
    if not images.is_floating_point():
        raise BadInput(
            f"an encoder takes images as floating point: RGB in [0, 1], normalised (`encoder.normalise`), not {what}"
        )
    height, width = images.shape[-2:]
    if height % patch or width % patch or not height * width:
        near = " x ".join(str(max(patch, round(side / patch) * patch)) for side in (height, width))
        raise BadInput(
            f"patches of {patch} px do not divide images of {height} x {width} px: the nearest size is {near}"
        )


def stretch(positions: Float[Tensor, "1 n d"], there: tuple[int, int], here: tuple[int, int]) -> Float[Tensor, "1 m d"]:
    """Resize a table of positions from the grid `there` to the grid `here` (rows, columns), bicubically."""
    return to_tokens(F.interpolate(to_map(positions, there), here, mode="bicubic", align_corners=False))


@functools.lru_cache(maxsize=32)
def sine_cosine(width: int, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
    """Fixed position embeddings of a grid: the first half of the width encodes the column, the second the row.

    Each half is sine then cosine of the position times 10000**(-i / (width / 4)), computed in float64.
    """
    with torch.device("cpu"):  # kept for the next caller, who may build on another device
        quarter = width // 4
        frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
        angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
        return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1).float()


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of a model anew: the only initialisation of the project.

    Weights of linear layers and convolutions and free tokens: normal with deviation 0.02, truncated at +-2 (which
    is 100 deviations: inactive, as in the reference); biases 0; norms 1 and 0; layer scales as they are asked for.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            continue
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.initial)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
