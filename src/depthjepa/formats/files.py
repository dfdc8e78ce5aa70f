"""Reading and writing the files of checkpoints: without running code, without a second copy in memory.

A pickle is read with `weights_only=True`: tensors and plain values are all that the layouts of encoders need, so their
allow-list is empty; DepthFM's adds NumPy arrays.
Tensors are mapped from the file where it allows that, so what is not used is never read.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from depthjepa.faults import BadInput
from depthjepa.logbook import to_json, whole_path, write_whole

FACTS = "depthjepa"  # under this name our files of foreign layouts say what they hold
ZIP = b"PK\x03\x04"


def read_torch(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Read what `torch.save` wrote, on the CPU; `allowed` are classes and functions beside tensors and plain values.

    Raises:
        BadInput: the file is empty, truncated, no checkpoint at all, or would run code when read.
    """
    start = _start(path)
    zipped = start.startswith(ZIP)
    if zipped and not zipfile.is_zipfile(path):
        raise BadInput(f"{path} is truncated, its end is missing: download or copy it again")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            # Files from before the zip layout cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as fault:
        raise BadInput(f"{path} cannot be read: {fault.strerror or fault}") from fault
    except Exception as fault:  # a damaged file raises whatever its bytes lead to
        raise BadInput(f"{path} {_complaint(start, fault)}") from fault


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does (the length of a header, then the header), or is called so.

    What begins as an archive of torch is none, whatever its name.
    """
    start = _start(path)
    return start[8:10] == b'{"' or (path.suffix == ".safetensors" and not start.startswith(ZIP))


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as fault:
        raise BadInput(f"{path} cannot be read: {fault.strerror or fault}") from fault
    if not start:
        raise BadInput(f"{path} is empty: download or copy it again")
    return start


def _text(start: bytes) -> str:
    """What is wrong with a text file, empty for any other."""
    if not all(byte in b"\t\n\r" or byte >= 32 for byte in start):
        return ""
    return f"is a text file, not a checkpoint: it begins with {start.splitlines()[0][:40].decode(errors='replace')!r}"


def _complaint(start: bytes, fault: Exception) -> str:
    words = str(fault)
    if code := re.search(r"GLOBAL (\S+)", words):
        return f"would run code when it is read ({code[1]}), which is refused: keep tensors and plain values only"
    if isinstance(fault, (EOFError, struct.error)) or "EOF" in words or "truncated" in words:
        return "is truncated, its end is missing: download or copy it again"
    if text := _text(start):
        return text
    # torch's own words advise to read the file unsafely; what was wrong comes last.
    reason = words.rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [type(fault).__name__]
    return f"is not a checkpoint: {reason[0]}"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors, mapped from the file, and what our own note in its header says (empty in others' files).

    Raises:
        BadInput: the file is not there, truncated or of another kind.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not there")
    start = _start(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as fault:
        reason = _text(start) or f"is truncated or not a safetensors file: {fault}"
        raise BadInput(f"{path} {reason}") from fault
    note = header.get(FACTS)
    return tensors, json.loads(note) if note else {}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors with a note of what they are, whole or not at all."""
    # The format knows neither views nor tensors that share memory.
    alone = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with whole_path(path) as partial:
        save_file(alone, partial, {"format": "pt", FACTS: json.dumps(facts)})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises `BadInput` for what is none."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise BadInput(f"{path} is not JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise BadInput(f"{path} does not hold keys and values")
    return content


@contextlib.contextmanager
def as_written(path: Path) -> Iterator[dict[str, Any]]:
    """Read a JSON object; what does not look as its library writes it becomes one `BadInput` that names the file."""
    content = read_json(path)
    try:
        yield content
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as fault:
        raise BadInput(f"{path} is not as its library writes it: {type(fault).__name__} ({fault})") from fault


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    write_whole(path, to_json(content))
