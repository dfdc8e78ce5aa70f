"""Any network of timm that gives maps: `timm:NAME` with its published weights, or a folder of timm's layout.

Layers are those of timm's `forward_intermediates`: the blocks of a transformer, the stages of a convolutional network.
The final norm is applied where timm applies it: to every block of a transformer, to the last stage of others. The last
map of a convolutional network is the one before its classifier's own convolution, where it has one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

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
)
from depthjepa.backbones.opening import Family, Source
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.files import read_json
from depthjepa.formats.opening import snapshot
from depthjepa.formats.public import from_timm
from depthjepa.formats.timm import is_ijepa, is_timm
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN

PREFIX = "timm:"
INSTEAD = "give a timm folder (config.json with its architecture, model.safetensors) instead"
LONGEST = 400  # characters of what timm says of a folder that it cannot read; all misfitting tensors would be a page
STARTABLE = ("VisionTransformer", "VisionTransformerDistilled")
SCALE = 1e-5  # what timm's layer scales begin at, with DINOv2's names
SIZES = {"dynamic_img_size": True}  # what lets a transformer of timm stretch its positions


class TimmEncoder(NetworkEncoder):
    """A network of timm; see the module."""

    def __init__(self, facts: Facts, network: nn.Module) -> None:
        super().__init__(facts)
        self.network = network

    def maps(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Maps]:
        """What `forward_intermediates` gives of these layers."""
        found: list[Maps] = self.network.forward_intermediates(  # type: ignore[operator]
            images, indices=list(layers), norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return found


def _claims(source: Source) -> bool:
    if source.name.startswith(PREFIX):
        return True
    return source.folder is not None and is_timm(source.described) and not is_ijepa(source.folder, source.described)


def _open(source: Source, settings: Sequence[str]) -> OpenedNetwork:
    refuse_shape(source.name, settings)
    timm = _timm(source.name)
    named = source.name.startswith(PREFIX)
    name = source.name.removeprefix(PREFIX)
    _refuse_unknown(timm, name if named else str(source.described.get("architecture")), source.name)
    address = _published(timm, name) if named else f"local-dir:{source.folder}"
    network = _build(timm, address, source.name)
    facts, assumed = _facts(network, source.name if not named else name)
    encoder = TimmEncoder(facts, network)

    def initial(config: RunConfig) -> TimmEncoder:
        with runtime.seeded(config.seed, "encoder"):
            return TimmEncoder(facts, _create(timm, address, pretrained=False))

    found = f"{network.pretrained_cfg.get('architecture') or type(network).__name__} of timm"
    return OpenedNetwork(
        encoder, found, (*assumed, *size_assumed(facts)), initial, lambda: _plain(network, source.name, found)
    )


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as fault:
        raise BadInput(f"{name} is a network of timm: pip install 'depthjepa[teachers]'") from fault
    return timm


def _refuse_unknown(timm: Any, name: str, source: str) -> None:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise BadInput(f"{source}: timm {timm.__version__} has no architecture {architecture!r}{near}")


def _published(timm: Any, name: str) -> str:
    """What `create_model` calls the published weights of a name: the folder that they were fetched to, or the name."""
    architecture = name.partition(".")[0]
    tags = timm.list_pretrained(f"{architecture}.*")
    if not tags:
        raise BadInput(f"timm has no published weights of {architecture}: {INSTEAD}")
    if name not in (*tags, architecture):
        raise BadInput(f"timm has no published weights {name!r}: those of {architecture} are {', '.join(tags)}")
    hub_id = timm.get_pretrained_cfg(name).hf_hub_id
    if not hub_id:
        return name
    try:
        # timm itself would ask six times, for a minute, before it says that nobody answers.
        folder = snapshot(hub_id)
    except BadInput as fault:
        reason = _first_line(fault.__cause__ or fault)
        raise BadInput(f"the weights of {PREFIX}{name} cannot be fetched ({reason}): {INSTEAD}") from fault
    file = folder / "config.json"
    return f"local-dir:{folder}" if file.is_file() and is_timm(read_json(file)) else name


def _create(timm: Any, address: str, *, pretrained: bool) -> Any:
    """The network as its configuration says, with positions that stretch where it has any that can."""
    try:
        return timm.create_model(address, pretrained=pretrained, **SIZES)
    except TypeError as fault:  # raised while the network is built, before weights are read
        if not any(key in str(fault) for key in SIZES):
            raise
        return timm.create_model(address, pretrained=pretrained)


def _build(timm: Any, address: str, source: str) -> Any:
    try:
        return _create(timm, address, pretrained=True)
    except Exception as fault:  # what lies in a folder, or on the way to it, raises whatever it leads to
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [type(fault).__name__]
        reason = textwrap.shorten(" ".join(lines[:3]), LONGEST, placeholder=" …")
        raise BadInput(f"timm cannot build {source} with its weights: {reason}") from fault


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def _facts(network: Any, name: str) -> tuple[Facts, tuple[str, ...]]:
    stated, layers = network.pretrained_cfg, getattr(network, "feature_info", None)
    if not layers or not hasattr(network, "forward_intermediates"):
        raise BadInput(f"{name} gives no maps of its layers (timm's forward_intermediates): it cannot be measured")
    channels, *sides = stated.get("input_size") or (3, 224, 224)
    if channels != 3:
        raise BadInput(f"{name} takes images of {channels} channels; depthjepa reads RGB")
    built = getattr(getattr(network, "patch_embed", None), "img_size", None)  # beyond what a folder says of its weights
    height, width = built or sides
    size: Size = int(height), int(width)
    stretches = getattr(network, "dynamic_img_size", False)
    facts = Facts(
        name=name,
        widths=tuple(int(layer["num_chs"]) for layer in layers),
        patch_size=int(layers[-1]["reduction"]),
        image_size=size,
        mean=tuple(stated.get("mean") or IMAGENET_MEAN),
        deviation=tuple(stated.get("std") or IMAGENET_DEVIATION),
        fixed=not stretches and bool(stated.get("fixed_input_size")),
    )
    unsaid = not (stated.get("mean") and stated.get("std"))
    return facts, ("ImageNet's normalisation (the configuration of timm says none)",) * unsaid


def _plain(network: Any, name: str, found: str) -> Plain:
    """A vision transformer under our names; raises `BadInput` for other networks, and for parts that ours lack."""
    blocks: Any = getattr(network, "blocks", None)
    plain = type(network).__name__ in STARTABLE and type(blocks[0]).__name__ == "Block"
    if not plain or network.pos_embed is None:
        raise BadInput(
            f"init.checkpoint={name} holds {found}, whose class {type(network).__name__} is no plain vision "
            f"transformer: a run starts from timm's {' or '.join(STARTABLE)} with learned or fixed positions"
        )
    if not isinstance(blocks[0].mlp.act, nn.GELU) or blocks[0].mlp.act.approximate != "none":
        raise BadInput(f"init.checkpoint={name} holds {found}, whose blocks have no GELU")
    if not isinstance(network.norm, nn.LayerNorm):
        raise BadInput(f"init.checkpoint={name} holds {found}, whose tokens go through no final norm")
    scale = blocks[0].ls1
    return Plain(
        renamed=from_timm(network.state_dict(), network.patch_embed.num_patches, name),
        heads=int(blocks[0].attn.num_heads),
        eps=float(network.norm.eps),
        layer_scale=None if isinstance(scale, nn.Identity) else SCALE,
    )


FAMILY = Family(claims=_claims, open=_open)
