"""Find out what a checkpoint is, by what is in it, and read it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch

from depthjepa.faults import BadInput
from depthjepa.formats.files import is_safetensors, read_json, read_torch
from depthjepa.formats.flat import read_flat
from depthjepa.formats.reference import is_reference, read_reference
from depthjepa.formats.timm import is_timm, read_timm, released_url
from depthjepa.formats.transformers import is_huggingface, read_huggingface
from depthjepa.formats.weights import FIRST, Contents, unwrapped

NESTED = ("state_dict", "model", "model_state_dict")  # where Lightning, timm and others keep the tensors

KINDS = (
    "a run folder, a checkpoint file, a Hugging Face folder or hub id (facebook/ijepa_vith14_1k), or a timm name "
    "(vit_huge_patch14_gap_224.in1k_ijepa)"
)


def open_folder(folder: Path, source: str | None = None, heads: int | None = None) -> Contents:
    """Read a folder of Hugging Face's or timm's layout; raises `BadInput` for any other."""
    config = folder / "config.json"
    if config.is_file():
        content = read_json(config)
        if is_huggingface(content):
            return read_huggingface(folder, source)
        if is_timm(content):
            return read_timm(folder, source, heads)
        raise BadInput(f"{config} names neither a model_type (Hugging Face) nor an architecture (timm)")
    raise BadInput(f"{source or folder} holds no checkpoint: neither checkpoints/last.pt nor config.json is there")


def open_file(path: Path, heads: int | None = None) -> Contents | dict[str, Any]:
    """Read a file: what it holds, or, of a file that is in no foreign layout, the dictionary that it is.

    `heads`: of the encoder, where the layout does not say.
    """
    if is_safetensors(path):
        beside = path.parent / "config.json"
        if beside.is_file() and path.name == "model.safetensors":
            return open_folder(path.parent, heads=heads)
        return read_flat(path, heads=heads)
    return open_content(read_torch(path), path, heads)


def open_content(content: Any, source: str | Path, heads: int | None = None) -> Contents | dict[str, Any]:
    """Sort what was read from a pickle."""
    if is_reference(content):
        return read_reference(content, source, heads)
    if isinstance(content, dict) and "format" not in content:  # a checkpoint of ours says its format
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
        if any(isinstance(key, str) and key.endswith(FIRST) for key in inner):
            return read_flat(Path(source), unwrapped(inner, source), heads)
    if not isinstance(content, dict):
        raise BadInput(f"{source} holds a {type(content).__name__}, no checkpoint of a known layout")
    return content


def open_name(name: str, heads: int | None = None) -> Contents:
    """Fetch and read a timm name or a hub id; raises `BadInput` where neither knows it or nobody answers."""
    if "/" not in name and (url := released_url(name)) is not None:
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not file.is_file():
            _download(url, file, name)
        found = open_file(file, heads)
        assert isinstance(found, Contents)
        return found
    if is_hub_id(name):
        return open_folder(snapshot(name), name, heads)
    raise BadInput(f"there is no checkpoint {name}: give {KINDS}")


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path here looks like one of a model on a hub: `organisation/model`."""
    path = Path(name)
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not path.exists() and not path.parent.is_dir()


def _download(url: str, file: Path, name: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file))
    except OSError as fault:
        raise BadInput(f"{name} cannot be fetched from {url}: {fault}") from fault


@functools.lru_cache
def snapshot(name: str) -> Path:
    """Fetch the model of a hub id once; raises `BadInput` where no hub has it, or nobody answers."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as fault:
        raise BadInput(
            f"there is no checkpoint {name} here, and hub ids need pip install 'depthjepa[teachers]'"
        ) from fault
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise BadInput(
            f"there is no checkpoint {name} here, and no hub gave a model of that name ({reason}): give {KINDS}"
        ) from fault
