"""Vision transformers of transformers: a folder as it saves them, or a hub id.

Each class computes as it does by itself: positions of other sizes are stretched by the library
(`interpolate_pos_encoding` where a class takes it; DINOv3's are rotary), and the last layer is `last_hidden_state`
after the final norm. CLIP's class norms its pooled class token alone; here the same norm goes over the patches, as
timm does. The masked autoencoder keeps all patches in their order. What a folder holds beside the encoder (a text
tower, a decoder, a classifier) is left out.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa import runtime
from depthjepa.backbones.network import (
    Facts,
    Maps,
    NetworkEncoder,
    OpenedNetwork,
    Plain,
    Size,
    refuse_shape,
    size_assumed,
    without_prefix,
)
from depthjepa.backbones.opening import Family, Source
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.files import as_written
from depthjepa.formats.public import DINOV2, VIT, Names, from_transformers
from depthjepa.formats.transformers import is_huggingface, is_ijepa, read_stored
from depthjepa.formats.weights import beginnings, few
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN

BYTE = 255.0
# Weights that the tokens of patches do not depend on.
UNREAD = re.compile(r"(^|\.)(pooler|head|mask_token)(\.|$)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of transformers, and what its configuration does not say."""

    model: str
    norm: str  # name of its final norm
    prefix: Callable[[Any], int]  # tokens before those of the patches, by its configuration
    normed: bool = True  # whether `last_hidden_state` went through the final norm
    names: Names | None = None  # of its tensors, where a run can start from it


def _none(config: Any) -> int:
    return 0


def _class_token(config: Any) -> int:
    return 1


def _two_tokens(config: Any) -> int:
    return 2


def _registers(config: Any) -> int:
    return 1 + int(config.num_register_tokens)


CLIP = Kind("CLIPVisionModel", "post_layernorm", _class_token, normed=False)
SIGLIP = Kind("SiglipVisionModel", "post_layernorm", _none)
KINDS = {  # by the `model_type` of config.json
    "dinov2": Kind("Dinov2Model", "layernorm", _class_token, names=DINOV2),
    "dinov2_with_registers": Kind("Dinov2WithRegistersModel", "layernorm", _registers, names=DINOV2),
    "dinov3_vit": Kind("DINOv3ViTModel", "norm", _registers),
    "deit": Kind("DeiTModel", "layernorm", _two_tokens, names=VIT),
    "vit": Kind("ViTModel", "layernorm", _class_token, names=VIT),
    "vit_mae": Kind("ViTMAEModel", "layernorm", _class_token, names=VIT),
    "ijepa": Kind("IJepaModel", "layernorm", _none),
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
}


class TransformersEncoder(NetworkEncoder):
    """A vision transformer of transformers; see the module."""

    def __init__(self, facts: Facts, kind: Kind, network: Any) -> None:
        super().__init__(facts)
        self.network, self.kind = network, kind
        self.prefix = kind.prefix(network.config)
        self.norm = _submodule(network, kind.norm, facts.name)
        self.taken = inspect.signature(network.forward).parameters.keys()

    def maps(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Maps]:
        """Hidden states after these blocks, through the final norm, without class token and registers."""
        count, _, height, width = images.shape
        grid = height // self.patch_size, width // self.patch_size
        asked: dict[str, Any] = {}
        if "interpolate_pos_encoding" in self.taken and (height, width) != self.facts.image_size:
            asked["interpolate_pos_encoding"] = True
        if "noise" in self.taken:  # by which a masked autoencoder sorts the patches: as they are
            asked["noise"] = torch.arange(grid[0] * grid[1], device=images.device).float().expand(count, -1)
        last = self.depth - 1
        found = self.network(pixel_values=images, output_hidden_states=any(n < last for n in layers), **asked)
        end = found.last_hidden_state if self.kind.normed else self.norm(found.last_hidden_state)
        # `hidden_states` begins with the embeddings; whether its end is normed depends on the class and the version.
        tokens = [end if layer == last else self.norm(found.hidden_states[layer + 1]) for layer in layers]
        return [without_prefix(each, self.prefix, grid, self.facts.name) for each in tokens]


def _submodule(network: Any, name: str, source: str) -> torch.nn.Module:
    """The module of that name, wherever a version of the library keeps it."""
    for path, module in network.named_modules():
        if path.rpartition(".")[2] == name:
            found: torch.nn.Module = module
            return found
    raise BadInput(f"{source}: {type(network).__name__} of this version of transformers has no {name}")


def _claims(source: Source) -> bool:
    described = source.described
    return is_huggingface(described) and not is_ijepa(described, source.name)


def _open(source: Source, settings: Sequence[str]) -> OpenedNetwork:
    refuse_shape(source.name, settings)
    folder, model_type = source.folder, str(source.described["model_type"])
    assert folder is not None
    if model_type not in KINDS:
        raise BadInput(
            f"{source.name} holds a model of type {model_type!r}{nearest(model_type, KINDS)}, which nothing here "
            f"reads: those that are read are {', '.join(KINDS)}"
        )
    kind, library = KINDS[model_type], _transformers(source.name)
    network, left_out = _load(getattr(library, kind.model), folder, source.name)
    config = network.config
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0
    mean, deviation, assumed = _normalisation(folder)
    facts = Facts(
        name=source.name,
        widths=(int(config.hidden_size),) * int(config.num_hidden_layers),
        patch_size=_patch_size(config, source.name),
        image_size=_size(config.image_size),
        mean=mean,
        deviation=deviation,
    )

    def initial(measured: RunConfig) -> TransformersEncoder:
        with runtime.seeded(measured.seed, "encoder"):
            return TransformersEncoder(facts, kind, type(network)(config))

    found = f"{kind.model} of transformers" + (f", left out {beginnings(left_out)}" if left_out else "")
    encoder = TransformersEncoder(facts, kind, network)
    return OpenedNetwork(
        encoder, found, (*assumed, *size_assumed(facts)), initial, lambda: _plain(encoder, folder, found)
    )


def _plain(encoder: TransformersEncoder, folder: Path, found: str) -> Plain:
    """A vision transformer under our names; raises `BadInput` for classes that compute otherwise.

    Names are those of the files, which stay from version to version of the library.
    """
    config, kind, facts = encoder.network.config, encoder.kind, encoder.facts
    name = f"init.checkpoint={facts.name}"
    if kind.names is None:
        startable = ", ".join(sorted({each.model for each in KINDS.values() if each.names}))
        raise BadInput(
            f"{name} holds {found}, which computes otherwise than our encoder: a run starts from {startable}"
        )
    if config.hidden_act != "gelu":
        raise BadInput(f"{name} holds {found} with hidden_act={config.hidden_act!r}: our encoder has 'gelu'")
    patches = (facts.image_size[0] // facts.patch_size) * (facts.image_size[1] // facts.patch_size)
    stored, _ = read_stored(folder)
    return Plain(
        renamed=from_transformers(stored, kind.names, patches, facts.name),
        heads=int(config.num_attention_heads),
        eps=float(config.layer_norm_eps),
        layer_scale=float(config.layerscale_value) if kind.names.scales else None,
    )


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as fault:
        raise BadInput(f"{name} is a network of transformers: pip install 'depthjepa[teachers]'") from fault
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and its own report of the tensors, which we make in a sentence."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _load(model: Any, folder: Path, name: str) -> tuple[Any, list[str]]:
    """The network in float32, and the names of tensors that it has no use for."""
    try:
        with torch.random.fork_rng(devices=[]), _quiet():  # what the files do not hold is drawn
            network, info = model.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told with the missing ones
                output_loading_info=True,
            )
    except Exception as fault:  # a damaged folder raises whatever its bytes lead to
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise BadInput(f"{name} cannot be read by transformers: {reason}") from fault
    lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lacking := [key for key in lacking if not UNREAD.search(key)]:
        raise BadInput(f"{name} does not hold the {model.__name__} that its config.json says: missing {few(lacking)}")
    return network, sorted(info["unexpected_keys"])


def _size(stated: Any) -> Size:
    height, width = stated if isinstance(stated, list | tuple) else (stated, stated)
    return int(height), int(width)


def _patch_size(config: Any, name: str) -> int:
    height, width = _size(config.patch_size)
    if height != width:
        raise BadInput(f"{name} has patches of {height} x {width} px; depthjepa reads square ones")
    return height


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and deviation by the preprocessor's file, for images in [0, 1]; ImageNet's where there is none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        assumed = f"ImageNet's normalisation (no {file.name} lies beside the weights)"
        return IMAGENET_MEAN, IMAGENET_DEVIATION, (assumed,)
    with as_written(file) as stated:
        # What it does with bytes, for images that are bytes / 255.
        scale = float(stated.get("rescale_factor", 1 / BYTE)) * BYTE if stated.get("do_rescale", True) else BYTE
        if not stated.get("do_normalize", True):
            return (0.0,) * 3, (1 / scale,) * 3, ()
        if not {"image_mean", "image_std"} <= stated.keys():
            assumed = f"ImageNet's normalisation ({file.name} says none)"
            return IMAGENET_MEAN, IMAGENET_DEVIATION, (assumed,)
        mean, deviation = (
            tuple(float(each) / scale for each in (value if isinstance(value, list) else [value] * 3))
            for value in (stated["image_mean"], stated["image_std"])
        )
    return mean, deviation, ()


FAMILY = Family(claims=_claims, open=_open)
