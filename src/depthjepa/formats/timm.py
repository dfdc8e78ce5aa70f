"""The layout of timm: our names, in a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

timm's I-JEPA models (`vit_huge_patch14_gap_224.in1k_ijepa` and its kin) are ViTs without class token whose `norm`
stands before the pooling (`fc_norm=False`); positions are parameters there. Their published names point at the
released `.pth.tar` files, from which timm itself takes the *context* encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthjepa.faults import BadInput
from depthjepa.formats.files import FACTS, as_written, write_json, write_safetensors
from depthjepa.formats.public import to_timm
from depthjepa.formats.transformers import read_stored
from depthjepa.formats.weights import Contents, Weights, Which, describe, encoder_names, refuse_other_names
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig

ARCHITECTURES = {
    (1280, 14, 224): "vit_huge_patch14_gap_224",
    (1280, 16, 448): "vit_huge_patch16_gap_448",
    (1408, 16, 224): "vit_giant_patch16_gap_224",
    (768, 16, 224): "vit_base_patch16_gap_224",
}
NORMALISATION = {"mean": IMAGENET_MEAN, "std": IMAGENET_DEVIATION}
ANY = "vit_huge_patch14_gap_224"  # with every dimension given beside it


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of timm."""
    return "architecture" in config


def is_ijepa(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder of timm holds an encoder that is ours under timm's names, as `write_timm` writes it.

    Other networks have tensors of their own (a class token, a pooling norm, a classifier). Files that cannot be read
    are left to `read_timm`, which says why.
    """
    if config.get("architecture") not in (ANY, *ARCHITECTURES.values()):
        return False
    try:
        names, _ = read_stored(folder)
    except BadInput:
        return True
    return {name.partition(".")[0] for name in names} <= {"pos_embed", "patch_embed", "blocks", "norm"}


def read_timm(folder: Path, source: str | None = None, heads: int | None = None) -> Contents:
    """Read a folder; raises `BadInput` for tensors that are missing or left over."""
    name = source or str(folder)
    stored, note = read_stored(folder)
    with as_written(folder / "config.json") as config:
        arguments, pretrained = config.get("model_args", {}), config.get("pretrained_cfg", {})
        mean, deviation = (tuple(map(float, pretrained.get(key, usual))) for key, usual in NORMALISATION.items())
        stated, given = arguments.get("num_heads"), arguments.get("img_size")
        image = (int(given[0]), int(given[1])) if isinstance(given, list) else None
    model, image_size, assumed = describe(stored, name, heads=stated, otherwise=heads, mean=mean, deviation=deviation)
    refuse_other_names(dict.fromkeys(encoder_names(model)), stored, name)
    which: Which = note.get("encoder", "single")
    unsaid = "one encoder (the layout does not say which; timm itself takes the context encoder)"
    holds = unsaid if which == "single" else f"{which} encoder"
    image_size = image or image_size
    return Contents(name, "timm", holds, {which: stored}, model, image_size, assumed=assumed)


def write_timm(
    folder: Path, weights: Weights, model: ModelConfig, image_size: tuple[int, int], facts: Mapping[str, Any]
) -> None:
    """Write a folder that timm loads strictly; norms have its epsilon."""
    shape, traits = model.shape, model.traits
    assert traits.eps == PLAIN.eps  # the only one that its configuration can say
    square = image_size[0] == image_size[1]
    pool = "token" if traits.prefix else "avg"
    released = ARCHITECTURES.get((shape.width, model.patch_size, image_size[0] if square else 0))
    ratio = shape.hidden / shape.width
    if int(shape.width * ratio) != shape.hidden:  # timm cuts, so the ratio must not fall short
        ratio = (shape.hidden + 0.5) / shape.width
    arguments = {
        "img_size": image_size[0] if square else list(image_size),
        "patch_size": model.patch_size,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": ratio,
        "class_token": bool(traits.prefix),
        "global_pool": pool,
        "fc_norm": False,
    }
    if traits.prefix:
        arguments |= {"reg_tokens": traits.prefix - 1, "no_embed_class": True}
    if traits.layer_scale is not None:
        arguments["init_values"] = traits.layer_scale
    config = {
        "architecture": released or ANY,
        "num_classes": 0,
        "num_features": shape.width,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "depthjepa",
            "custom_load": False,
            "input_size": [3, *image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(model.mean),
            "std": list(model.deviation),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        FACTS: dict(facts),
    }
    write_safetensors(folder / "model.safetensors", to_timm(weights), facts)
    write_json(folder / "config.json", config)


def released_url(name: str) -> str | None:
    """Where the weights of a timm I-JEPA model lie, None for a name that timm does not know.

    Raises:
        BadInput: timm knows the architecture, and the name is none of its I-JEPA models; or timm is not installed.
    """
    try:
        import timm
    except ImportError as fault:
        if name.endswith("_ijepa"):
            raise BadInput(f"{name} is a name of timm's: pip install 'depthjepa[teachers]'") from fault
        return None
    kin = timm.list_pretrained("*ijepa*")
    if name in kin:
        return str(timm.get_pretrained_cfg(name).url)
    if timm.is_model(name.partition(".")[0]):
        raise BadInput(
            f"{name} of timm is none of its I-JEPA models; those are {', '.join(kin)}. To measure it, "
            f"call it timm:{name}"
        )
    return None
