"""What a compact teacher is fitted by, and the names of its files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from depthjepa.guidance.teachers.depthfm.layout import CHANNELS
from depthjepa.guidance.teachers.depthfm.network import STRIDE
from depthjepa.settings import configuration

CHECKPOINT, AUTOENCODER = "teacher.ckpt", "vae"  # what a fitted teacher is, in its folder
TEXT_WIDTH = 16  # of the one word, all zeros, that stands for the empty text


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
