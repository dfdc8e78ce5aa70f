"""The layout of `transformers.IJepaModel`: a folder of `config.json`, `model.safetensors`, `preprocessor_config.json`.

Files keep the older names (`encoder.layer.N.attention.attention.query`), whatever the class calls its modules; query,
key and value are separate there. The models published as facebook/ijepa_* hold the *context* encoder, and their
preprocessor says 0.5 for mean and deviation, although the released weights were trained with ImageNet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from depthjepa.faults import BadInput
from depthjepa.formats.files import FACTS, as_written, read_safetensors, read_torch, write_json, write_safetensors
from depthjepa.formats.public import DINOV2, POSITIONS, VIT, Named, joined, taken_apart, to_transformers
from depthjepa.formats.weights import Contents, Weights, Which, describe, few, refuse_other_names
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig

HALF = (0.5, 0.5, 0.5)
RELEASED_WIDTHS = (1280, 1408)


def pairs(depth: int) -> Named:
    """Each of our names with theirs, which are ViT's: one, or the three that ours joins."""
    return {"pos_embed": (POSITIONS,), **VIT.named(depth)}


def to_huggingface(weights: Weights, depth: int) -> Weights:
    """Rename an encoder's tensors and take queries, keys and values apart (copies: files know no shared memory)."""
    renamed: Weights = {}
    for ours, theirs in pairs(depth).items():
        renamed |= taken_apart(weights[ours], theirs)
    return renamed


def from_huggingface(stored: Mapping[str, Tensor], depth: int, source: str | Path) -> Weights:
    """Undo `to_huggingface`; raises `BadInput` that names what is missing or left over."""
    names = pairs(depth)
    refuse_other_names(dict.fromkeys(name for group in names.values() for name in group), stored, f"{source}")
    weights: Weights = {}
    for ours, theirs in names.items():
        parts = [stored[name] for name in theirs]
        if len({part.shape[1:] for part in parts}) > 1:
            raise BadInput(
                f"{source}: {', '.join(theirs)} are {[tuple(part.shape) for part in parts]}: not of one width"
            )
        weights[ours] = joined(parts)
    return weights


def is_huggingface(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers."""
    return "model_type" in config


def is_ijepa(config: Mapping[str, Any], source: str) -> bool:
    """Whether a `config.json` is of an I-JEPA encoder that computes as ours does."""
    try:
        _refuse_other_arithmetic(config, source)
    except BadInput:
        return False
    return config.get("model_type") == "ijepa"


def read_huggingface(folder: Path, source: str | None = None) -> Contents:
    """Read a folder; `source` is what the user called it (a hub id), else the folder.

    Raises:
        BadInput: another kind of model, or tensors that are missing or left over.
    """
    name = source or str(folder)
    with as_written(folder / "config.json") as config:
        if config.get("model_type") != "ijepa":
            raise BadInput(f"{name} holds a model of type {config.get('model_type')!r}; only 'ijepa' has our encoder")
        _refuse_other_arithmetic(config, name)
        if absent := [key for key in ("num_hidden_layers", "num_attention_heads", "hidden_size") if key not in config]:
            raise BadInput(f"{name}: {few(absent)} is missing in its config.json")
        depth, heads, width = (int(config[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
        given = config.get("image_size")
        image = (int(given[0]), int(given[1])) if isinstance(given, list) else None
    stored, note = read_stored(folder)
    weights = from_huggingface(stored, depth, name)
    mean, deviation, assumed = _normalisation(folder, width, note)
    model, image_size, _ = describe(weights, name, heads=heads, mean=mean, deviation=deviation)
    which: Which = note.get("encoder", "single")
    unsaid = "one encoder (the layout does not say which; the published ones are context encoders)"
    holds = unsaid if which == "single" else f"{which} encoder"
    return Contents(name, "hf", holds, {which: weights}, model, image or image_size, assumed=assumed)


def _refuse_other_arithmetic(config: Mapping[str, Any], name: str) -> None:
    wanted = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise BadInput(f"{name}: {key}={config[key]!r} in its config.json; our encoder has {value!r}")
    if (eps := config.get("layer_norm_eps", 1e-12)) != 1e-6:
        raise BadInput(f"{name}: layer_norm_eps={eps} in its config.json; our encoder and the released ones have 1e-6")


def read_stored(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Read a folder's tensors under the names of the file, whole or in shards, and our note in the header."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        tensors: Weights = {}
        with as_written(index) as content:
            shards = sorted(set(content["weight_map"].values()))
        for shard in shards:
            tensors |= read_safetensors(folder / shard)[0]
        return tensors, {}
    if (pickled := folder / "pytorch_model.bin").is_file() and not (folder / "model.safetensors").is_file():
        found = read_torch(pickled)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise BadInput(f"{pickled} holds a {type(found).__name__} that is not tensors by their names")
        return found, {}
    return read_safetensors(folder / "model.safetensors")


def _normalisation(
    folder: Path, width: int, note: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and deviation by the preprocessor, else by our note; and what had to be assumed."""
    file = folder / "preprocessor_config.json"
    if not file.is_file() and "mean" in note:
        return tuple(note["mean"]), tuple(note["deviation"]), ()
    if not file.is_file():
        return IMAGENET_MEAN, IMAGENET_DEVIATION, ("ImageNet's mean and deviation (no preprocessor_config.json)",)
    with as_written(file) as processor:
        if not processor.get("do_normalize", True):
            raise BadInput(f"{file} does not normalise: our encoder always does")
        mean, deviation = (tuple(map(float, processor.get(key, HALF))) for key in ("image_mean", "image_std"))
    if (mean, deviation) == (HALF, HALF) and width in RELEASED_WIDTHS and not note:
        assumed = (
            "ImageNet's mean and deviation, with which the released weights were trained (its preprocessor says 0.5)"
        )
        return IMAGENET_MEAN, IMAGENET_DEVIATION, (assumed,)
    return mean, deviation, ()


def write_huggingface(
    folder: Path, weights: Weights, model: ModelConfig, image_size: tuple[int, int], facts: Mapping[str, Any]
) -> None:
    """Write a folder that `transformers.AutoModel` and `AutoImageProcessor` load.

    The class is I-JEPA's where the encoder has patches alone, else ViT's or DINOv2's, as its tokens and scales ask.
    """
    shape, traits = model.shape, model.traits
    square = image_size[0] == image_size[1]
    kind, renamed, own = _as_class_of(weights, model, square=square)
    write_safetensors(folder / "model.safetensors", renamed, facts)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.mean),
        "image_std": list(model.deviation),
    }
    write_json(folder / "preprocessor_config.json", processor)
    config = {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "dtype": str(weights["pos_embed"].dtype).removeprefix("torch."),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.hidden,
        "image_size": image_size[0] if square else list(image_size),
        "patch_size": model.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": traits.eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        **own,
        FACTS: dict(facts),
    }
    write_json(folder / "config.json", config)


def _as_class_of(
    weights: Weights, model: ModelConfig, *, square: bool
) -> tuple[tuple[str, str], Weights, dict[str, Any]]:
    """The class and the type of a model with these tokens and scales, its tensors, and what its configuration adds."""
    shape, traits = model.shape, model.traits
    if not traits.prefix and traits.layer_scale is None and traits.eps == PLAIN.eps:
        return ("IJepaModel", "ijepa"), to_huggingface(weights, shape.depth), {}
    if not traits.prefix:
        raise BadInput(
            "transformers has no class for an encoder with a layer scale or another norm_eps and no class token: "
            "convert it --to safetensors, or timm"
        )
    if traits.prefix == 1 and traits.layer_scale is None:
        return ("ViTModel", "vit"), to_transformers(weights, model, VIT), {}
    if not square:  # whose positions are then stretched from a square, whatever their grid is
        raise BadInput("transformers' DINOv2 has positions of square images alone: convert it --to timm or safetensors")
    ratio, left = divmod(shape.hidden, shape.width)
    if left:
        raise BadInput(
            f"model.hidden={shape.hidden} is no multiple of model.width={shape.width}, as transformers' DINOv2 has it: "
            f"convert it --to timm or safetensors"
        )
    own: dict[str, Any] = {"mlp_ratio": ratio, "layerscale_value": traits.layer_scale or 1.0, "use_swiglu_ffn": False}
    renamed = to_transformers(weights, model, DINOV2)
    if traits.prefix == 1:
        return ("Dinov2Model", "dinov2"), renamed, own
    own["num_register_tokens"] = traits.prefix - 1
    return ("Dinov2WithRegistersModel", "dinov2_with_registers"), renamed, own
