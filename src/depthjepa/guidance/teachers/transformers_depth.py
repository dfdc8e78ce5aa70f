"""Teachers of `transformers`: any of its depth networks that need one image alone, in either of two ways.

`depth` gives what the network predicts as one channel in which larger = nearer; `features` gives a hidden state of its
encoder on the patch grid, as many channels as the encoder is wide, without class token and registers. What each class
predicts, in which direction, and which images it takes stands in `transformers_families`.

A predicted distance becomes -log(distance / m): the networks that predict distances were trained with losses on log
depth, so their errors are even there, and near zero nothing explodes as 1/distance would. A predicted inverse depth
stays as it is. Hidden states are taken before the encoder's final norm; `Whitening` standardises their channels.

Differs from the image processors of transformers: images are resized by antialiased bilinear interpolation to a
resolution that suits the I-JEPA grid (or `side`), and ZoeDepth gets neither its mirrored margin nor the average with
the flipped image. Rescaling and normalisation are those of the processor that lies beside the model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from depthjepa import runtime
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.weights import few
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import CELL, Description, bilinear
from depthjepa.guidance.teachers.loading import TeacherKind
from depthjepa.guidance.teachers.transformers_families import MODEL_TYPES, Family, Values, family
from depthjepa.losses import Latents

Output = Literal["depth", "features"]

NEAREST = 1e-3  # m; smaller predictions (a ReLU's zeros) count as this before the logarithm
SAVED = "give a folder as transformers saves it (config.json, model.safetensors)"

# Weights that no forward pass of these classes reads; Intel/dpt-large and others are published without the first.
UNREAD = re.compile(r"fusion_stage\.(layers|intermediate)\.0\.residual_layer1\.|\.mask_token$")


@dataclass(frozen=True, slots=True)
class Layer:
    """The hidden state that `features` gives."""

    number: int  # of the block (of the stage, for GLPN), from 0
    state: int  # its place among the encoder's hidden states
    channels: int
    stride: int  # pixels a token


class HuggingFaceDepth:
    """A frozen depth network of transformers; `load_huggingface` makes one. Images are RGB in [0, 1], float32."""

    def __init__(
        self,
        network: Any,  # the whole model, or with `layer` its encoder alone
        row: Family,
        config: Any,  # of the whole model
        *,
        mean: Values,
        deviation: Values,
        layer: Layer | None = None,
        side: int | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.quantity = row.quantity
        self.name = str(config.model_type)
        self.layer = layer
        self.side = side
        self.multiple = row.multiple(config)
        self.fixed = _fixed_side(row, config, self.network, layer)
        self.square = row.square and layer is None
        self.alone = row.alone and layer is None
        self.mean = torch.tensor(mean)[:, None, None]
        self.deviation = torch.tensor(deviation)[:, None, None]

    @property
    def device(self) -> torch.device:
        """Where the network is; images are moved there."""
        return self.mean.device

    def to(self, device: torch.device | str) -> HuggingFaceDepth:
        """Move the network; returns the teacher itself."""
        self.network.to(device)
        self.mean, self.deviation = self.mean.to(device), self.deviation.to(device)
        return self

    def describe(self) -> Description:
        if self.layer is not None:
            name, unit = f"{self.name} layer {self.layer.number}", "hidden state"
            channels, stride = self.layer.channels, self.layer.stride
            return Description(name, channels, stride, unit, "undirected", stochastic=False, needs_depth=False)
        assert self.quantity is not None
        unit = self.quantity.unit
        told = Description(self.name, 1, 1, unit, "larger = nearer", stochastic=False, needs_depth=False)
        return replace(told, zoomed=self.quantity.zoomed)

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """Latents of a batch's crops, resized to 8 px a cell, or so that the shorter side has `side` px.

        The sides go up to what the network takes (see `sides`).
        """
        wanted = cells[0] * CELL, cells[1] * CELL
        if self.side is not None:
            scale = self.side / min(wanted)
            wanted = round(wanted[0] * scale), round(wanted[1] * scale)
        values = self._compute(self._resize(batch.images, self.sides(*wanted)))
        return Latents(values, torch.ones_like(values, dtype=torch.bool))

    def latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows cols"]:
        """Return the latents of images in [0, 1]: c is 1 (`depth`, larger = nearer) or the encoder's width.

        Images are resized to `sides` of their own where these differ; rows and cols are those sides [px] over the
        stride that `describe` states. An image's latents never depend on its batch.
        """
        return self._compute(self._resize(images, self.sides(images.shape[-2], images.shape[-1])))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the sides [px] that the network takes for an image: rounded up to its multiple, square if it must."""
        if self.fixed is not None:
            return self.fixed, self.fixed
        if self.square:
            height = width = max(height, width)
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def _resize(self, images: Float[Tensor, "b 3 _h _w"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
        return bilinear(images.to(self.device, torch.float32), size)

    def _compute(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows cols"]:
        compute = self._depth if self.layer is None else self._features
        with torch.no_grad(), runtime.precision("fp32", self.device):
            pixels = (images - self.mean) / self.deviation
            parts = [pixels[index : index + 1] for index in range(len(pixels))] if self.alone else [pixels]
            return torch.cat([compute(part) for part in parts])

    def _depth(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        predicted: Tensor = self.network(pixel_values=pixels).predicted_depth[:, None]
        assert self.quantity is not None
        if self.quantity.predicted == "larger = farther":
            predicted = -predicted.clamp(min=NEAREST).log()
        if predicted.shape[-2:] != pixels.shape[-2:]:  # DPT makes 16 pixels of a patch of 14
            size = pixels.shape[-2:]
            predicted = F.interpolate(predicted, size, mode="bilinear", antialias=True, align_corners=False)
        return predicted

    def _features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows cols"]:
        assert self.layer is not None
        rows, columns = (side // self.layer.stride for side in pixels.shape[-2:])
        states = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states
        state: Tensor = states[self.layer.state]
        if state.ndim == 4:
            return state
        # Class token and registers come first.
        return state[:, -rows * columns :].transpose(1, 2).reshape(len(pixels), -1, rows, columns)


def build(guidance: FeatureGuidance) -> HuggingFaceDepth:
    """Load the network that `guidance.teacher_checkpoint` names; raises `BadInput`."""
    if guidance.teacher_checkpoint is None:
        raise BadInput(
            "guidance.teacher=huggingface needs guidance.teacher_checkpoint: a folder or hub id of a depth "
            "network, such as depth-anything/Depth-Anything-V2-Small-hf"
        )
    return load_huggingface(guidance.teacher_checkpoint, output=guidance.teacher_output, layer=guidance.teacher_layer)


def weights(guidance: FeatureGuidance) -> dict[str, str | Path | None]:
    """The files that decide what it says."""
    return {"teacher_checkpoint": guidance.teacher_checkpoint, "teacher_vae": guidance.teacher_vae}


def load_huggingface(
    checkpoint: str | Path, *, output: str = "depth", layer: int | None = None, side: int | None = None
) -> HuggingFaceDepth:
    """Load a depth network of transformers on the CPU, in float32, from safetensors only.

    Args:
        checkpoint: a folder as `save_pretrained` writes it, or a hub id such as
            depth-anything/Depth-Anything-V2-Small-hf. A `preprocessor_config.json` beside it says how images are
            rescaled and normalised.
        output: `depth`, one channel, larger = nearer; `features`, a hidden state of the encoder.
        layer: for `features`, the block (for GLPN the stage), from 0, negative from the end; two thirds deep by
            default.
        side: pixels of a crop's shorter side as the network sees it; by default 8 a cell (half a patch of I-JEPA's
            grid). Depth Anything, for one, was trained with 518.

    Raises `BadInput` for a source that is no such folder or that the hub does not give, for another task's model, for
    weights that lack something the target needs, for options that make no sense, and without transformers.
    """
    if output not in get_args(Output):
        raise BadInput(
            f"output={output!r} is unknown for a depth network{nearest(output, get_args(Output))}: "
            f"use {' or '.join(get_args(Output))}"
        )
    if layer is not None and output == "depth":
        raise BadInput(f"layer={layer} is for output=features; output=depth takes the whole network")
    if side is not None and side < 1:
        raise BadInput(f"side={side} is not possible for a depth network: give 1 pixel or more")
    source = checkpoint
    transformers = _transformers()
    config = _load_config(transformers, source)
    row = family(config)
    if row.quantity is None and output == "depth":
        raise BadInput(
            f"{source} is a {config.model_type}, which corrects measured depth and tells none from an image alone: "
            f"take output=features, or a depth_anything"
        )
    if side is not None and row.fixed is not None:
        raise BadInput(f"side={side} is not possible for {source}: it takes one size of images; leave side out")
    mean, deviation = _normalisation(transformers, source, row)
    network, missing = _load_network(transformers, source, config)
    chosen = None
    if output == "features":
        network = network.get_submodule(row.encoder)
        missing = [key for key in missing if key.startswith(f"{row.encoder}.")]
        chosen = _choose_layer(network.config, layer, source)
    if missing:
        raise BadInput(
            f"{source} does not hold all of a {config.model_type} for depth: missing or misshapen {few(missing)}"
        )
    return HuggingFaceDepth(network, row, config, mean=mean, deviation=deviation, layer=chosen, side=side)


def _choose_layer(config: Any, layer: int | None, source: str | Path) -> Layer:
    """Find a hidden state's place, width and stride from the encoder's configuration."""
    pyramid = config.model_type == "glpn"
    known = all(
        isinstance(getattr(config, key, None), int) for key in ("num_hidden_layers", "hidden_size", "patch_size")
    )
    if not pyramid and (not known or hasattr(config, "depths")):
        raise BadInput(
            f"the encoder of {source} is a {config.model_type}, whose hidden states are on no single patch grid: "
            f"take output=depth"
        )
    depth = config.num_encoder_blocks if pyramid else config.num_hidden_layers
    number = max(1, round(depth * 2 / 3)) - 1 if layer is None else layer
    if not -depth <= number < depth:
        raise BadInput(f"layer={layer} is not in {source}: it has {depth}, give {-depth}..{depth - 1}")
    number %= depth
    if pyramid:
        return Layer(number, number, config.hidden_sizes[number], math.prod(config.strides[: number + 1]))
    return Layer(number, number + 1, config.hidden_size, config.patch_size)  # state 0 is the embedding


def _fixed_side(row: Family, config: Any, network: Any, layer: Layer | None) -> int | None:
    if row.fixed is None:
        return None
    if layer is not None and config.model_type == "depth_pro":
        return int(network.config.image_size)  # its image encoder sees the image shrunk to this
    return row.fixed(config)


def _load_config(transformers: Any, source: str | Path) -> Any:
    folder = Path(source)
    if folder.is_file():
        raise BadInput(f"{source} is a file: {SAVED}")
    local = folder.exists()
    if local and not (folder / "config.json").is_file():
        raise BadInput(f"{source} holds no network of transformers, config.json is not there: {SAVED}")
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise BadInput(f"there is no folder {source}: {SAVED}, or a hub id")
    try:
        # Without `trust_remote_code` transformers would stop and ask on the terminal.
        config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except Exception as fault:
        raise _unloadable(source, fault) from fault
    if config.model_type not in MODEL_TYPES:
        raise BadInput(
            f"{source} holds a {config.model_type}, which is no depth network that serves as a teacher: "
            f"take one of {', '.join(MODEL_TYPES)}"
        )
    return config


def _load_network(transformers: Any, source: str | Path, config: Any) -> tuple[Any, list[str]]:
    """Return the network, and the names of weights that it reads and the files do not hold in their shape."""
    if config.model_type == "depth_pro":
        config.use_fov_model = False  # it only tells the focal length, which a crop does not have
    try:
        with torch.random.fork_rng(devices=[]):  # what the files do not hold is drawn
            network, info = transformers.AutoModelForDepthEstimation.from_pretrained(
                str(source),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told with the missing ones
                output_loading_info=True,
            )
    except Exception as fault:
        raise _unloadable(source, fault) from fault
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return network, sorted(key for key in lacking if not UNREAD.search(key))


def _normalisation(transformers: Any, source: str | Path, row: Family) -> tuple[Values, Values]:
    """Mean and deviation for images in [0, 1], by the image processor, else by the table."""
    try:
        found = transformers.utils.cached_file(
            str(source), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
        if found is None:
            return row.mean, row.deviation
        processor = transformers.AutoImageProcessor.from_pretrained(str(source), trust_remote_code=False)
    except Exception as fault:
        raise _unloadable(source, fault) from fault
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if not processor.do_normalize:
        return (0.0, 0.0, 0.0), (1 / factor,) * 3
    mean, deviation = (
        tuple(float(value) / factor for value in (values if isinstance(values, list | tuple) else [values] * 3))
        for values in (processor.image_mean, processor.image_std)
    )
    return mean, deviation


def _unloadable(source: str | Path, fault: Exception) -> BadInput:
    """Tell why: transformers and the hub's client raise a dozen unrelated kinds."""
    reason = str(fault).strip().partition("\n")[0].rstrip(".") or type(fault).__name__
    if Path(source).exists():
        return BadInput(f"the network in {source} cannot be loaded: {reason}")
    return BadInput(f"there is no folder {source}, and the hub gave no network of that name: {reason}; {SAVED}")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as fault:
        raise BadInput("this teacher needs transformers: pip install 'depthjepa[teachers]'") from fault
    return transformers


TEACHER = TeacherKind(build, load_huggingface, ("teacher_output", "teacher_layer"), weights, ("teacher_checkpoint",))
