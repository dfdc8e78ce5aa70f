"""A flat file of one encoder under our names: `safetensors`, or a pickle as timm and torch users write it.

A file of ours says in its header which encoder it holds, its heads, its image size and its normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthjepa.formats.files import read_safetensors, write_safetensors
from depthjepa.formats.weights import Contents, Weights, Which, describe, encoder_names, refuse_other_names, unwrapped
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelConfig


def read_flat(path: Path, tensors: Weights | None = None, heads: int | None = None) -> Contents:
    """Read a file of one encoder (`tensors`: what it held, where that is known already); raises `BadInput`."""
    note: dict[str, Any] = {}
    if tensors is None:
        tensors, note = read_safetensors(path)
        tensors = unwrapped(tensors, path)
    model, image_size, assumed = describe(
        tensors,
        path,
        heads=note.get("heads"),
        otherwise=heads,
        eps=note.get("norm_eps", PLAIN.eps),
        mean=tuple(note.get("mean", IMAGENET_MEAN)),
        deviation=tuple(note.get("deviation", IMAGENET_DEVIATION)),
    )
    refuse_other_names(dict.fromkeys(encoder_names(model)), tensors, str(path))
    if "image_size" in note:
        image_size = (note["image_size"][0], note["image_size"][1])
    which: Which = note.get("encoder", "single")
    holds = "one encoder (the file does not say which)" if which == "single" else f"{which} encoder"
    return Contents(str(path), "safetensors", holds, {which: tensors}, model, image_size, assumed=assumed)


def write_flat(path: Path, weights: Weights, facts: Mapping[str, Any]) -> None:
    """Write one encoder with a header that says what it is (see `facts_of`)."""
    write_safetensors(path, weights, facts)


def facts_of(which: Which, model: ModelConfig, image_size: tuple[int, int], name: str, step: int) -> dict[str, Any]:
    """What our files of foreign layouts say about themselves; a source's single encoder stays what is not said."""
    return {
        **({} if which == "single" else {"encoder": which}),
        "heads": model.shape.heads,
        "patch_size": model.patch_size,
        "image_size": list(image_size),
        "mean": list(model.mean),
        "deviation": list(model.deviation),
        **({} if model.norm_eps == PLAIN.eps else {"norm_eps": model.norm_eps}),
        "run": name,
        "step": step,
    }
