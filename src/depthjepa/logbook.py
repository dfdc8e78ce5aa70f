"""The run folder: what a run writes while it trains and what everything after it reads.

config.yaml        the resolved configuration
environment.json   versions, processor, commit
data.json, .npz    what the data were, and names of their files; see `data/contents.py`
metrics.jsonl      one JSON object a logged step
summary.json       figures of the steps that were done
checkpoints/       see `checkpoints/`
figures/, probes/  arrays and tables for the report
loggers/           what loggers beside this folder keep, where `train.loggers` names some
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from depthjepa.faults import BadInput, RunStopped

DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NO_SUCH_PLACE = (errno.EEXIST, errno.ENOTDIR)
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # of file systems without a second name
REFUSED = (*NO_SUCH_PLACE, errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
FOLDERS = ("checkpoints", "figures", "probes")
PARTS = (
    *FOLDERS,
    "loggers",
    "config.yaml",
    "environment.json",
    "data.json",
    "data.npz",
    "metrics.jsonl",
    "summary.json",
)


REST = "rest.pt"  # of a checkpoint in parts, what is written last


class RunFolder:
    """A folder that belongs to one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def started(self) -> bool:
        """Whether a run has been here."""
        return (self.path / "config.yaml").exists()

    @property
    def kept(self) -> str:
        """What is left of a run that cannot go on, in words."""
        return "there is no checkpoint yet" if self.checkpoint() is None else "the last checkpoint is whole"

    def checkpoint(self, name: str = "last") -> Path | None:
        """The newest whole checkpoint of a name: a file, or a folder of parts (`checkpoints.parts`); None without one.

        There is more than one only where a kill came between a new one and the end of the one before it.
        """
        folder = self.path / "checkpoints"
        parts = {step: path / REST for path in folder.glob(f"{name}-*") if (step := step_of_parts(path)) is not None}
        whole = [step for step, rest in parts.items() if rest.is_file()]
        times = {}
        for file in (folder / f"{name}.pt", *(parts[step] for step in sorted(whole)[-1:])):
            with contextlib.suppress(FileNotFoundError):
                times[file] = file.stat().st_mtime
        newest = max(times, key=lambda file: times[file], default=None)
        return newest.parent if newest is not None and newest.name == REST else newest

    def refuse_other(self, own: Collection[str] = PARTS) -> None:
        """Refuse a place that cannot be written, or holds something else than the parts `own`; hidden files may be."""
        refuse_unwritable(self.path, folder=True)
        others = sorted(
            each.name for each in (self.path.iterdir() if self.path.is_dir() else ()) if not each.name.startswith(".")
        )
        if others := [name for name in others if name not in own and not name.endswith(".partial")]:
            raise BadInput(
                f"{self.path} holds something else ({', '.join(others[:3])}{', …' * (len(others) > 3)}): give a folder "
                f"that is new or empty"
            )

    def begin(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what is known before the first step; raises `BadInput` where no folder can be made."""
        with writing(self.path):
            for part in FOLDERS:
                (self.path / part).mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "environment.json", to_json(environment))
        write_whole(self.path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration; raises `BadInput` where no run has been."""
        if not self.started:
            raise BadInput(f"{self.path} is not a run folder: it has no config.yaml")
        file = self.path / "config.yaml"
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as fault:
            raise BadInput(f"{file} is damaged: {' '.join(str(fault).split())}") from fault
        if not isinstance(content, dict):
            raise BadInput(f"{file} is damaged: it holds no keys and values")
        return content

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one object to `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        with writing(path), path.open("a") as file:
            file.write(json.dumps(plain(record)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`; a last line that a kill cut short is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").split("\n")
        return [_object(line, f"{file}, line {number}") for number, line in enumerate(lines[:-1], 1)]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run will do again."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_whole(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_whole(self.path / "summary.json", to_json(summary))

    def summary(self) -> dict[str, Any]:
        """Read `summary.json`: of the steps up to the last checkpoint, or to one that is being written.

        `finished` tells whether these are all; it is empty before the first one.
        """
        return read_object(self.path / "summary.json")

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end. (Earlier versions wrote a summary there alone.)"""
        summary = self.summary()
        return bool(summary) and bool(summary.get("finished", True))

    def probe(self, task: str) -> dict[str, Any]:
        """Read the table of a probe."""
        file = self.path / "probes" / f"{task}.json"
        return _object(file.read_text(encoding="utf-8", errors="replace"), str(file))

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays for pictures to `NAME.npz` below the folder."""
        with whole_file(self.path / f"{name}.npz") as file:
            np.savez_compressed(file, allow_pickle=False, **dict(arrays))


def parts_at(folder: Path, name: str, step: int) -> Path:
    """Where a run folder has the checkpoint in parts of a step."""
    return folder / "checkpoints" / f"{name}-{step:08d}"


def step_of_parts(path: Path) -> int | None:
    """The step in the name of a checkpoint in parts; None for other names."""
    found = re.fullmatch(r".+-(\d{8,})", path.name)
    return int(found[1]) if found else None


def refuse_unwritable(path: Path, *, folder: bool) -> None:
    """Raise `BadInput` before any work where no file, or no file below a folder, can be written."""
    if not folder and path.is_dir():
        raise BadInput(f"{path} cannot be written: {os.strerror(errno.EISDIR)}")
    # os.path: what may not be looked at is taken for what is not there.
    place = next(each for each in ([path] if folder else []) + [*path.parents, Path()] if os.path.lexists(each))
    if not place.is_dir():
        raise BadInput(f"{path} cannot be written: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise BadInput(f"{path} cannot be written: {place} may not be written in")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object, empty where there is no file; raises `BadInput` for a damaged one."""
    return _object(file.read_text(encoding="utf-8", errors="replace"), str(file)) if file.is_file() else {}


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as fault:
        raise BadInput(f"{place} is damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise BadInput(f"{place} is damaged: it holds no JSON object")
    return content


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the faults of a write that the user can clear into one sentence with the file's name.

    Raises:
        RunStopped: the disk is full.
        BadInput: no file can be written at this path (a file where a folder is needed, no permission).
    """
    try:
        yield
    except Exception as fault:  # a library wraps the operating system's fault in one of its own
        if _disk_full(fault):
            run = next((RunFolder(each) for each in path.parents if RunFolder(each).started), None)
            again = f"{run.kept}. Make room and go on with --resume" if run else "make room and give the command again"
            raise RunStopped(f"the disk is full: {path} could not be written; {again}") from fault
        if isinstance(fault, OSError) and fault.errno in REFUSED:
            raise BadInput(f"{path} cannot be written: {_reason(path, fault)}") from fault
        raise


def _reason(path: Path, fault: OSError) -> str:
    """Say why a write was refused; the operating system's words do not tell which part of the path is at fault."""
    if fault.errno in NO_SUCH_PLACE:
        for place in (path, *path.parents):
            if place.is_file():
                return f"{place} is a file, not a folder"
    return fault.strerror or str(fault)


def _disk_full(fault: BaseException) -> bool:
    """Whether a write failed for lack of room; torch wraps the system's error, safetensors puts it into words."""
    chain: BaseException | None = fault
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in DISK_FULL:
            return True
        os_error = re.search(r"\(os error (\d+)\)", str(chain))
        if os_error and int(os_error[1]) in DISK_FULL:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


@contextlib.contextmanager
def whole_path(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a neighbour to write, flushed to the disk and renamed to `path` at the end: a file is whole or absent.

    Makes the folders above it. Raises what `writing` raises; a file that was there then stays as it was. `shared`:
    others may write the same file at the same time, and the last one counts. (Else what a kill left is written over.)
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = f".{os.urandom(4).hex()}" if shared else ""
        partial = path.with_name(f"{path.name}{own}.partial")
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that will be whole or absent; see `whole_path`."""
    with whole_path(path) as partial, partial.open("wb") as file:
        yield file


def refuse_existing(files: Sequence[Path]) -> None:
    """Refuse to write over what was made of somebody's photographs: the first of the files is named that is there."""
    there = [file for file in files if file.is_file()]
    if there:
        more = f", and {len(there) - 1} more of these files" if there[1:] else ""
        raise BadInput(f"{there[0]} is there already{more}: give another --out, or --force to write over what is there")


def write_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, also where others write it as well; see `whole_path`.

    What a file name has beside UTF-8 is spelt out.
    """
    with whole_path(path, shared=True) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))


def write_new(path: Path, content: bytes | memoryview) -> bool:
    """Write a file whole where there is none, also where others do the same now: whether it is this process's.

    One that is there stays as it is. Makes the folders above it; raises what `writing` raises.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # unlike a rename it does not replace what is there
        except FileExistsError:
            return False
        except OSError as fault:
            if fault.errno not in NO_LINKS:
                raise
            if path.exists():
                return False
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return True


def to_json(content: Mapping[str, Any]) -> str:
    """Format for people."""
    return json.dumps(plain(content), indent=2) + "\n"


def plain(value: Any) -> Any:
    """Turn tuples, NumPy numbers and paths into what JSON and YAML know; non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
