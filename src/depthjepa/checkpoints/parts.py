"""A checkpoint in parts: each process writes the shares that it holds.

`checkpoints/NAME-STEP/` holds a file of safetensors for each process, as PyTorch's distributed checkpoints write them
in Hugging Face's layout (no pickle, which would run what it is told to), and `rest.pt`, all that is no share. That one
is written last: a folder without it is what a kill has left, and counts for nothing. Any number of processes reads it,
each what it holds of the tensors; one process reads them whole.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from depthjepa import distributed, optim
from depthjepa.faults import BadInput
from depthjepa.formats.files import read_torch
from depthjepa.logbook import REST, step_of_parts, whole_file, writing

MODEL, MOMENT = "model", "optimizer"  # what the names of tensors begin with
LATE = 60  # seconds that a network file system may take to show a file


def write(
    path: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], ranks: distributed.Ranks, group: Any
) -> None:
    """Write the shares of all processes, which all ask in this `group`, and then the rest.

    Raises `RunStopped` when a disk is full, on all processes, and `BadInput` where they do not write to the same disk;
    then there is no checkpoint at `path`.
    """
    with writing(path):
        try:
            writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
            save(dict(tensors), storage_writer=writer, process_group=group, no_dist=ranks.world == 1)
        except CheckpointException as fault:  # of any process, on all of them
            raise next(iter(fault.failures.values()))[0] from fault
    distributed.first_writes(ranks, lambda: _finish(path, rest), group)


def _finish(path: Path, rest: Mapping[str, Any]) -> None:
    wait_until_whole(path, rest["shapes"])
    write_rest(path, rest)


def write_rest(path: Path, rest: Mapping[str, Any]) -> None:
    """Write what is no share, which makes a checkpoint whole."""
    with whole_file(path / REST) as file:
        torch.save(dict(rest), file)


def wait_until_whole(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """Return when the files of all processes are seen here; network file systems may be late."""
    until = time.monotonic() + LATE
    while True:
        try:
            _types(HuggingFaceStorageReader(str(path)).read_metadata(), shapes)
            return
        except (BadInput, SafetensorError, OSError) as fault:  # it is not there, or not to its end
            if time.monotonic() > until:
                raise BadInput(
                    f"{path}: {fault} {LATE} s after all processes have written: put the run (--out) on a disk that "
                    f"all of them see"
                ) from fault
            time.sleep(1)


def split(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Networks and moments of a checkpoint's content by one name each, and the rest of it with their shapes."""
    model, optimizer = content["model"], content["optimizer"]
    tensors = {f"{MODEL}.{name}": value for name, value in model.items()}
    for number, name in optim.names_by_number(optimizer).items():
        moments = optimizer["state"].get(number, {})
        tensors |= {f"{MOMENT}.{name}.{moment}": value for moment, value in moments.items()}
    rest = {key: value for key, value in content.items() if key not in ("model", "optimizer")}
    rest |= {
        "param_groups": optimizer["param_groups"],
        "shapes": {key: [*value.shape] for key, value in tensors.items()},
    }
    return tensors, rest


def joined(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The content that `split` has split."""
    numbers = {name: number for number, name in optim.names_by_number(rest).items()}
    model: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == MODEL:
            model[name] = value
        else:
            name, _, moment = name.rpartition(".")
            state.setdefault(numbers[name], {})[moment] = value
    content = {key: value for key, value in rest.items() if key not in ("param_groups", "shapes")}
    return content | {"model": model, "optimizer": {"state": state, "param_groups": rest["param_groups"]}}


def read(path: Path, *, moments: bool, held: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """The content of a checkpoint in parts, as a checkpoint in one file has it; whole, on the CPU.

    Without `moments` those of the optimiser are not read: they are twice as large as what was trained. `held` are the
    parameters and buffers of a training's networks by their names: what is theirs is read as they are held, of shares
    no more than this process's.

    Raises:
        BadInput: a part is missing or damaged.
    """
    rest = read_torch(path / REST)
    try:
        reader = HuggingFaceStorageReader(str(path))
        types = _types(reader.read_metadata(), rest["shapes"])
        types = {name: kind for name, kind in types.items() if moments or not name.startswith(f"{MOMENT}.")}
        tensors = {name: _empty(name, rest["shapes"][name], kind, held or {}) for name, kind in types.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
            load(tensors, storage_reader=reader, no_dist=True)
    except BadInput as fault:
        raise BadInput(f"{path} is no whole checkpoint: {fault}; copy it again") from fault
    except Exception as fault:  # a damaged file raises whatever its bytes lead to
        raise BadInput(f"{path} is no whole checkpoint: {' '.join(str(fault).split())}; copy it again") from fault
    return joined(tensors, rest)


def _types(found: Metadata, shapes: Mapping[str, list[int]]) -> dict[str, torch.dtype]:
    """Types of the tensors of these shapes; raises `BadInput` where the files do not hold all of one."""
    types = {}
    for name, shape in shapes.items():
        stored = found.state_dict_metadata.get(name)
        chunks = stored.chunks if isinstance(stored, TensorStorageMetadata) else []
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
            raise BadInput(f"{name} is not all there")
        assert isinstance(stored, TensorStorageMetadata)
        types[name] = stored.properties.dtype
    return types


def _empty(name: str, shape: list[int], kind: torch.dtype, held: Mapping[str, Tensor]) -> Tensor:
    """Where a tensor is read to: of a parameter's shape as that one is held, else whole."""
    _, _, of = name.partition(".")
    other = held.get(of, held.get(of.rpartition(".")[0]))
    if other is None or [*other.shape] != shape:
        return torch.empty(shape, dtype=kind)
    return torch.empty_like(other, dtype=kind, requires_grad=False)


def remove_others(path: Path) -> None:
    """Remove the checkpoints of the name that a whole one, a file or in parts, takes the place of."""
    name = path.stem if path.suffix == ".pt" else path.name.rpartition("-")[0]
    if (one := path.with_name(f"{name}.pt")) != path:
        one.unlink(missing_ok=True)
    for parts in path.parent.glob(f"{name}-*"):
        if parts != path and step_of_parts(parts) is not None:
            (parts / REST).unlink(missing_ok=True)  # first: what is half removed does not count, and the next start
            shutil.rmtree(parts, ignore_errors=True)  # removes it; a fault of one process would let the others wait


def remove_torn(folder: Path) -> None:
    """Remove what kills have left of checkpoints in parts."""
    for path in folder.glob("*-*"):
        if step_of_parts(path) is not None and not (path / REST).is_file():
            shutil.rmtree(path)
