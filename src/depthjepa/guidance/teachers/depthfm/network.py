"""The `depthfm` teacher: DepthFM (Gui et al. 2024, "DepthFM: Fast Monocular Depth Estimation with Flow Matching").

An image's latent (the autoencoder of Stable Diffusion 1.5) is noised and carried by an ordinary differential
equation to the latent of its depth; the guidance target is that latent, before decoding. The networks are diffusers';
the released checkpoint names its weights as the latent diffusion code base does, and they are renamed here from its
own hyperparameters.

Differs from the released pipeline: where that rounds a side's halves to even, they go up (see `sides`), an ensemble
averages latents instead of decoded maps, everything is computed in float32 (bf16 weights err by 3e-2), and the noise
of an image depends on (seed, image) alone. On a GPU cuDNN rounds convolutions to TF32 unless
`torch.backends.cudnn.allow_tf32` is off: latents then err by 2e-3 instead of 3e-6, and take a third of the time.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.files import read_torch
from depthjepa.formats.weights import few, refuse_misfit
from depthjepa.guidance.target import Description, bilinear
from depthjepa.guidance.teachers.depthfm.layout import CHANNELS, released_keys, unet_config
from depthjepa.losses import Latents
from depthjepa.runtime import generator

Attention = Literal["plain", "rescaled"]
Output = Literal["depth", "features"]

STRIDE = 8  # pixels a latent cell
MULTIPLE = 64  # of an image's side, as the released pipeline resizes: three halvings below the latent
PARTS = ("noising_step", "empty_text_embedding", "ldm_hparams", "state_dict")

# What an array in a checkpoint needs, under its name today and under that of NumPy 1.
_rebuild_array = np.zeros(1).__reduce__()[0]
ARRAYS: list[Any] = [
    (_rebuild_array, "numpy._core.multiarray._reconstruct"),
    (_rebuild_array, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64")),
]


class DepthFM:
    """A frozen DepthFM; `load_depthfm` makes one. Images go in as RGB in [0, 1]; everything is float32."""

    def __init__(
        self,
        unet: Any,  # diffusers' UNet2DConditionModel
        vae: Any,  # diffusers' AutoencoderKL
        text: Float[Tensor, "1 words width"],
        *,
        noising_step: int,
        steps: int = 2,
        ensemble: int = 1,
        seed: int = 0,
        output: str = "depth",
        name: str = "depthfm",
    ) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.text = text
        self.multiple = STRIDE * 2 ** (len(self.unet.config.block_out_channels) - 1)  # of an image's side; px
        self.signal = signal_share(noising_step / 1000)
        self.steps = steps
        self.ensemble = ensemble
        self.seed = seed
        self.output = output
        self.name = name

    @property
    def device(self) -> torch.device:
        """Where the networks are; images and noise are moved there."""
        return self.text.device

    def to(self, device: torch.device | str) -> DepthFM:
        """Move the networks; returns the teacher itself."""
        self.unet.to(device)
        self.vae.to(device)
        self.text = self.text.to(device)
        return self

    def describe(self) -> Description:
        if self.output == "features":
            unit, channels, stride = (
                "features of the middle block",
                self.unet.config.block_out_channels[-1],
                self.multiple,
            )
        else:
            unit, channels, stride = "latent of log depth (affine-unknown)", CHANNELS, STRIDE
        return Description(self.name, channels, stride, unit, "undirected", stochastic=True, needs_depth=False)

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """Latents (or features) of a batch's crops, resized to the sides nearest to a latent cell a cell (`sides`)."""
        give = self.middle_block if self.output == "features" else self.latents
        values = give(self.resized(batch, cells), index=batch.index)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))

    @property
    def has_picture(self) -> bool:
        """Whether it can tell the image itself as it tells depth: features of the middle block cannot be had of it."""
        return self.output == "depth"

    def picture(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """The latent of the picture, where `batch_latents` has that of its depth."""
        values = self.image_latents(self.resized(batch, cells))
        return Latents(values, torch.ones_like(values, dtype=torch.bool))

    def resized(self, batch: Batch, cells: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
        """Crops of a batch at the sides nearest to a latent cell a cell."""
        return bilinear(batch.images.to(self.device, torch.float32), sides(cells, self.multiple))

    def latents(
        self,
        images: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b 4 h//8 w//8"] | None = None,
        index: Int64[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 4 rows cols"]:
        """Return the depth latents of images in [0, 1], before decoding, at an eighth of their sides.

        Without `noise` each image gets the noise of its `index`, averaged over the ensemble; without an index all
        get that of index 0. An image's latent never depends on its batch. Sides must be multiples of `multiple`:
        64 at the released size, whose network halves the latent three times.
        """
        with _frozen(self.device):
            clean = self.image_latents(images)
            found = [self._integrate(clean, each) for each in self._noises(clean, noise, index)]
            return torch.stack(found).mean(0)

    def middle_block(
        self,
        images: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b 4 h//8 w//8"] | None = None,
        index: Int64[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c rows cols"]:
        """Return what the UNet's middle block gives at time 0: another target, as wide as its deepest level.

        Its grid is that of the latents, halved at every level but the last (64 pixels a cell at the released size).
        Arguments are those of `latents`.
        """
        seen: list[Tensor] = []
        hook = self.unet.mid_block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            with _frozen(self.device):
                clean = self.image_latents(images)
                for each in self._noises(clean, noise, index):
                    self.velocity(self.source(clean, each), clean, 0.0)
        finally:
            hook.remove()
        return torch.stack(seen).mean(0)

    def decode(self, latents: Float[Tensor, "b 4 rows cols"]) -> Float[Tensor, "b 1 8*rows 8*cols"]:
        """Decode depth latents to depth of unknown scale and shift: exp of the mean of the three decoded channels.

        Larger = farther. The released pipeline then stretches each map to [0, 1].
        """
        with _frozen(self.device):
            decoded: Tensor = self.vae.decode(
                latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
            ).sample
            return decoded.mean(1, keepdim=True).exp()

    def noise(
        self, index: Int64[Tensor, " b"], cells: tuple[int, int], member: int = 0
    ) -> Float[Tensor, "b 4 {cells[0]} {cells[1]}"]:
        """Draw standard normal noise for images by their index: a function of (seed, index, member, cells) alone."""
        drawn = [
            torch.randn(CHANNELS, *cells, generator=generator(self.seed, f"depthfm noise {number}/{member}"))
            for number in index.tolist()
        ]
        return torch.stack(drawn).to(self.device)

    def image_latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h//8 w//8"]:
        """Encode images in [0, 1]: the mode (not a sample) of the autoencoder's posterior, scaled."""
        self._refuse_sides(images.shape[-2], images.shape[-1])
        with _frozen(self.device):
            posterior = self.vae.encode(images.to(self.device, torch.float32) * 2 - 1).latent_dist
            mode: Tensor = posterior.mode() * self.vae.config.scaling_factor
            return mode

    def source(
        self, clean: Float[Tensor, "b 4 rows cols"], noise: Float[Tensor, "b 4 rows cols"]
    ) -> Float[Tensor, "b 4 rows cols"]:
        """Return the flow's start: the image's latent, noised to the checkpoint's `noising_step` (variance kept)."""
        if noise.shape != clean.shape:
            raise ValueError(f"the noise must be {tuple(clean.shape)} as the latents, not {tuple(noise.shape)}")
        return math.sqrt(self.signal) * clean + math.sqrt(1 - self.signal) * noise.to(clean)

    def velocity(
        self, state: Float[Tensor, "b 4 rows cols"], clean: Float[Tensor, "b 4 rows cols"], time: float
    ) -> Float[Tensor, "b 4 rows cols"]:
        """Return d state / d time at a time in [0, 1], given the image's latent `clean` and the empty text."""
        with _frozen(self.device):
            text = self.text.expand(len(state), -1, -1)
            # The network was trained on the time itself: neither times 1000 nor rounded to a whole step.
            moment = torch.full((len(state),), time, device=state.device)
            found: Tensor = self.unet(torch.cat([state, clean], 1), moment, encoder_hidden_states=text).sample
            return found

    def _integrate(
        self, clean: Float[Tensor, "b 4 rows cols"], noise: Float[Tensor, "b 4 rows cols"]
    ) -> Float[Tensor, "b 4 rows cols"]:
        """Euler's method from time 0 (image) to 1 (depth)."""
        state = self.source(clean, noise)
        for step in range(self.steps):
            state = state + self.velocity(state, clean, step / self.steps) / self.steps
        return state

    def _noises(
        self, clean: Float[Tensor, "b 4 rows cols"], noise: Tensor | None, index: Int64[Tensor, " b"] | None
    ) -> list[Tensor]:
        if noise is not None:
            return [noise]
        if index is None:
            index = torch.zeros(len(clean), dtype=torch.int64)
        cells = clean.shape[-2], clean.shape[-1]
        return [self.noise(index, cells, member) for member in range(self.ensemble)]

    def _refuse_sides(self, height: int, width: int) -> None:
        near_height, near_width = (_nearest_multiple(side, self.multiple) for side in (height, width))
        if (height, width) != (near_height, near_width):
            raise BadInput(
                f"this DepthFM takes images whose sides are multiples of {self.multiple}, not {height}x{width}: "
                f"resize them to {near_height}x{near_width}"
            )


def sides(cells: tuple[int, int], multiple: int = MULTIPLE) -> tuple[int, int]:
    """Return the sides [px] of an image for about `cells` latent cells: the nearest multiples, halves go up."""
    return _nearest_multiple(cells[0] * STRIDE, multiple), _nearest_multiple(cells[1] * STRIDE, multiple)


def load_depthfm(
    checkpoint: str | Path,
    vae: str | Path,
    *,
    steps: int = 2,
    attention: Attention = "plain",
    ensemble: int = 1,
    seed: int = 0,
    output: str = "depth",
    name: str = "depthfm",
) -> DepthFM:
    """Load a checkpoint in the layout of the released `depthfm-v1.ckpt`, and the autoencoder, on the CPU.

    Args:
        checkpoint: a file with `noising_step`, `empty_text_embedding`, `ldm_hparams` and `state_dict`.
        vae: a folder as diffusers saves an AutoencoderKL (or a pipeline that holds it as `vae`), or a hub id of such
            a pipeline, such as stable-diffusion-v1-5/stable-diffusion-v1-5.
        steps: Euler steps (the released command line takes 2, its API 4).
        attention: `plain`, what the released code computes with xformers, which it requires; `rescaled`, what it
            computes without. They differ by about 1e-2.
        ensemble: how many noises are averaged.
        seed: of the noise.
        output: what guides: `depth`, the latent before decoding, or `features`, those of the UNet's middle block.
        name: what the teacher calls itself.

    Raises `BadInput` for a file that is missing, truncated, unsafe or of another kind, for weights that do not fit
    the hyperparameters (which are named), for an autoencoder that cannot be had, and without diffusers.
    """
    for key, count in (("steps", steps), ("ensemble", ensemble)):
        if count < 1:
            raise BadInput(f"{key}={count} is not possible for DepthFM: give 1 or more")
    if attention not in get_args(Attention):
        raise BadInput(f"attention={attention!r} is unknown for DepthFM: use {' or '.join(get_args(Attention))}")
    if output not in (known := get_args(Output)):
        raise BadInput(f"output={output!r} is unknown for DepthFM{nearest(output, known)}: use {' or '.join(known)}")
    path = Path(checkpoint)
    content = _read(path)
    unet = _build_unet(content["ldm_hparams"], content["state_dict"], path)
    if attention == "rescaled":
        unet.set_attn_processor(RescaledAttention())
    text = _text_embedding(content["empty_text_embedding"], unet.config.cross_attention_dim, path)
    noising_step = content["noising_step"]
    if not isinstance(noising_step, int) or not 0 <= noising_step <= 1000:
        raise BadInput(f"{path}: noising_step is {noising_step!r}, expected a whole number from 0 to 1000")
    return DepthFM(
        unet,
        load_autoencoder(vae),
        text,
        noising_step=noising_step,
        steps=steps,
        ensemble=ensemble,
        seed=seed,
        output=output,
        name=name,
    )


class RescaledAttention:
    """Attention whose logits are scaled by the number of tokens n where it is self-attention.

    √(log n / (log 4n · d)) in place of √(1 / d) with d channels a head; attention on the text stays plain.
    (diffusers' own processors ignore `attn.scale`.)
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b words width"] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "b n d"]:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        scale = 1 / query.shape[-1]
        if encoder_hidden_states is None:
            tokens = hidden_states.shape[1]
            scale *= math.log(tokens) / math.log(4 * tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=math.sqrt(scale))
        projected: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return projected


def _build_unet(hparams: object, weights: object, path: Path) -> Any:
    """Build diffusers' UNet around the released weights, which are held once."""
    if not isinstance(hparams, Mapping):
        raise BadInput(f"{path}: ldm_hparams is a {type(hparams).__name__}, expected a mapping")
    if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise BadInput(f"{path}: state_dict is not a mapping of names to tensors")
    config = unet_config(hparams, path)
    network = diffusers_library().UNet2DConditionModel
    try:
        with torch.device("meta"):
            unet = network(**config)
    except ValueError as fault:
        raise BadInput(f"{path}: ldm_hparams do not make a network: {fault}") from fault
    keys = released_keys(unet, config)
    expected = {keys[ours]: each for ours, each in unet.state_dict().items()}
    refuse_misfit(expected, weights, f"{path}: state_dict does not fit ldm_hparams")
    unet.load_state_dict({ours: weights[theirs].float() for ours, theirs in keys.items()}, strict=True, assign=True)
    return unet


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code of its own; large weights stay in the file until they are used."""
    if not path.is_file():
        raise BadInput(f"there is no file {path}: give DepthFM's checkpoint (released as depthfm-v1.ckpt)")
    content = read_torch(path, ARRAYS)
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a DepthFM checkpoint: it holds a {type(content).__name__}")
    if lacking := [part for part in PARTS if part not in content]:
        raise BadInput(f"{path} is not a DepthFM checkpoint: it lacks {', '.join(lacking)}")
    return content


def _text_embedding(found: object, width: int, path: Path) -> Float[Tensor, "1 words width"]:
    if not isinstance(found, Tensor | np.ndarray):
        raise BadInput(f"{path}: empty_text_embedding is a {type(found).__name__}, expected a tensor or an array")
    text = torch.as_tensor(found).float().clone()
    if text.ndim != 3 or text.shape[0] != 1 or text.shape[2] != width:
        raise BadInput(f"{path}: empty_text_embedding is {tuple(text.shape)}, expected (1, words, {width})")
    return text


def load_autoencoder(place: str | Path) -> Any:
    """Load the autoencoder of a folder or of the hub; what diffusers would fill with random numbers is refused."""
    network = diffusers_library().AutoencoderKL
    folder = Path(place)
    local = folder.exists()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)):
        raise BadInput(f"there is no folder {place}: give DepthFM's autoencoder (Stable Diffusion 1.5's)")
    options: dict[str, Any] = {}
    if not local or (folder / "vae" / "config.json").is_file():
        options["subfolder"] = "vae"
    elif not (folder / "config.json").is_file():
        raise BadInput(f"{place} holds no autoencoder: config.json is not there; give a folder as diffusers saves it")
    try:
        vae, info = network.from_pretrained(
            str(place), torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True, **options
        )
    except Exception as fault:
        # diffusers and the hub's client raise a dozen unrelated kinds; the reason is told, whatever it is.
        reason = str(fault).strip().partition("\n")[0].rstrip(".") or type(fault).__name__
        if local:
            raise BadInput(f"the autoencoder in {place} cannot be loaded: {reason}") from fault
        raise BadInput(
            f"there is no folder {place}, and the hub gave no autoencoder of that name: {reason}; "
            f"give a folder as diffusers saves it"
        ) from fault
    faults = [
        f"{kind.split('_')[0]} {few(sorted(info[kind]))}" for kind in ("missing_keys", "unexpected_keys") if info[kind]
    ]
    if faults:
        raise BadInput(f"the autoencoder of {place} does not fit its config.json: " + "; ".join(faults))
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.latent_channels != CHANNELS or stride != STRIDE:
        raise BadInput(
            f"the autoencoder of {place} has {vae.config.latent_channels} channels and stride {stride}, "
            f"but DepthFM's has {CHANNELS} and {STRIDE} (Stable Diffusion 1.5)"
        )
    return vae


def diffusers_library() -> Any:
    """Return the module `diffusers`; raises `BadInput` where it is not installed."""
    try:
        import diffusers
    except ImportError as fault:
        raise BadInput("the depthfm teacher needs diffusers: pip install 'depthjepa[teachers]'") from fault
    return diffusers


def _nearest_multiple(side: int, multiple: int) -> int:
    return max(multiple, (side + multiple // 2) // multiple * multiple)


def signal_share(time: float) -> float:
    """Share of the variance that is signal at a time in [0, 1]: sigmoid(-2 log(tan(πt/2) + 1e-5))."""
    return 1 / (1 + (math.tan(math.pi * time / 2) + 1e-5) ** 2)


@contextlib.contextmanager
def _frozen(device: torch.device) -> Iterator[None]:
    """No gradients, and float32 even within a training step's autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
