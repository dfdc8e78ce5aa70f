"""The files of a cache of latents, by themselves: what describes it, its parts, and the list of their checksums.

`cache` tells the layout. A part is written once, whole: whoever finds the file has all of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from depthjepa.faults import BadInput
from depthjepa.logbook import whole_path, write_new
from depthjepa.shared_work import SUFFIX

FORMAT = 2
FORMATS = (1, 2)
TOGETHER = 64  # images of a part are a multiple of these
MOST_TOGETHER = 16  # times TOGETHER
PART_BYTES = 8 << 20  # of a part, about: a million images are some thousands of files
FEWEST_PARTS = 64  # where the images are enough for them: what processes share, and what a kill costs
DONE = 1
LIST = "parts.bin"
_CHECKSUM = np.dtype("<u8")  # as in parts.bin: checksum x 2 + DONE


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands in `cache.json`. `made_of` decides whether a run may use the cache; the rest describes it."""

    made_of: Mapping[str, Any]  # teacher, fingerprints of its weights, its settings, size of the whole images [px]
    teacher: Mapping[str, Any]  # its `Description`
    data: str
    images: int
    shape: tuple[int, int, int]  # channels, rows, columns
    format: int = FORMAT
    together: int = TOGETHER  # images of a part
    crops: Mapping[str, float] | None = None  # how latents of crops differ from the teacher's own, once measured

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.images // self.together)

    def rows_of(self, part: int) -> range:
        """The images of a part, in the order of `names.bin`."""
        return range(part * self.together, min((part + 1) * self.together, self.images))


def together_of(images: int, shape: tuple[int, int, int]) -> int:
    """How many images a part has: a file of about 8 MiB, smaller ones where there would be under 64 parts."""
    by_size = round(PART_BYTES / (2 * math.prod(shape)) / TOGETHER)
    by_count = math.ceil(images / FEWEST_PARTS / TOGETHER)
    return TOGETHER * max(1, min(by_size, by_count, MOST_TOGETHER))


def size_of(facts: Facts) -> int:
    """Bytes of all latents."""
    return 2 * facts.images * math.prod(facts.shape)


def read_facts(folder: Path) -> Facts:
    """Read `cache.json`; raises `BadInput`."""
    file = folder / "cache.json"
    if not file.is_file():
        raise BadInput(f"{folder} is no cache of latents: cache.json is not there (`depthjepa teach` makes one)")
    try:
        content = json.loads(file.read_text())
        content["shape"] = tuple(content["shape"])
        if content.get("crops") is not None:  # JSON has no not-a-number
            content["crops"] = {key: math.nan if value is None else value for key, value in content["crops"].items()}
        facts = Facts(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise BadInput(f"{file} does not describe a cache of latents: {fault}") from fault
    if facts.format not in FORMATS:
        raise BadInput(
            f"{folder} is a cache of format {facts.format}, this version reads {' and '.join(map(str, FORMATS))}: "
            f"compute it again"
        )
    return facts


def mapped(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map a whole file into memory; raises `BadInput` where it has not as many bytes as it should."""
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    found = file.stat().st_size if file.is_file() else 0
    if found != expected:
        raise BadInput(f"{file} has {found} of {expected} bytes: the cache is truncated, compute it again")
    return np.memmap(file, dtype=dtype, mode="r", shape=shape)


def checksum(values: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def part_file(folder: Path, part: int) -> Path:
    """Where the latents of a part are."""
    return folder / "parts" / f"{part:06}.bin"


def claim_file(folder: Path, part: int) -> Path:
    """What a process makes while it computes a part; see `shared_work`."""
    return part_file(folder, part).with_suffix(SUFFIX)


def parts_there(folder: Path) -> tuple[set[int], set[int]]:
    """Which parts are done, and which ones somebody has claimed: one look at the folder."""
    done, claimed = set[int](), set[int]()
    if not (folder / "parts").is_dir():
        return done, claimed
    for name in os.listdir(folder / "parts"):  # noqa: PTH208  # a hundred thousand names
        if found := re.fullmatch(r"(\d{6,})(\.\w+)", name):
            {".bin": done, SUFFIX: claimed}.get(found[2], set()).add(int(found[1]))
    return done, claimed


def write_part(folder: Path, part: int, values: Float[np.ndarray, "n c rows cols"]) -> None:
    """Write the latents (float16) of a part and their checksum, whole, where they are not there yet.

    Others may do so at the same time, with other rounding on another processor: the list is of those that came first.
    """
    end = np.array(checksum(values) << 1 | DONE, dtype=_CHECKSUM)
    write_new(part_file(folder, part), values.tobytes() + end.tobytes())


def mapped_part(folder: Path, facts: Facts, part: int) -> Float[np.ndarray, "n c rows cols"]:
    """Map the latents of a part into memory, float16; raises `BadInput` for one that is gone or truncated."""
    file, shape = part_file(folder, part), (len(facts.rows_of(part)), *facts.shape)
    _refuse_truncated(file, facts, part)
    # Not numpy's: of each file that Python has mapped it keeps a descriptor, and a process may have a thousand of them.
    values = torch.from_file(
        os.fsencode(file),  # type: ignore[arg-type]  # torch takes no text that is not UTF-8
        shared=False,
        size=math.prod(shape),
        dtype=torch.float16,
    ).numpy()
    values.flags.writeable = False
    return values.reshape(shape)


def _refuse_truncated(file: Path, facts: Facts, part: int) -> None:
    rows = facts.rows_of(part)
    expected = 2 * len(rows) * math.prod(facts.shape) + _CHECKSUM.itemsize
    found = file.stat().st_size if file.is_file() else 0
    if found != expected:
        raise BadInput(f"{file} has {found} of {expected} bytes: {_damaged(rows)}")


def refuse_damaged(folder: Path, facts: Facts, part: int, values: np.ndarray, known: int) -> None:
    """Raise `BadInput` where a part is not what its checksum, as `parts.bin` has it, was written of."""
    if checksum(values) << 1 | DONE == known:
        return
    rows = facts.rows_of(part)
    if facts.format == 1:
        raise BadInput(
            f"the cache {folder} is damaged: images {rows[0]} to {rows[-1]} do not have the checksum that was written; "
            f"compute it again"
        )
    raise BadInput(f"{part_file(folder, part)} does not have the checksum that was written: {_damaged(rows)}")


def _damaged(rows: range) -> str:
    return (
        f"images {rows[0]} to {rows[-1]} of the cache are damaged; remove this file and run the same `depthjepa teach` "
        f"again, which computes them anew"
    )


def lacking(folder: Path, facts: Facts) -> str:
    """What a cache lacks to be complete, in words; empty where it is."""
    if facts.format == 1:
        left = int((mapped(folder / LIST, np.uint64, (facts.parts,)) & DONE == 0).sum())
    elif (folder / LIST).exists():
        return ""
    else:
        left = facts.parts - len(parts_there(folder)[0])
    if left:
        return f"{left} of {facts.parts} parts are to be computed yet"
    return "" if facts.format == 1 else f"its parts are all there, but not their list, {LIST}"


def write_list(folder: Path, facts: Facts) -> None:
    """Write the checksums that stand in the parts to one file, when all are there: it makes the cache complete."""
    known = np.zeros(facts.parts, dtype=_CHECKSUM)
    for part in range(facts.parts):
        file = part_file(folder, part)
        _refuse_truncated(file, facts, part)
        with file.open("rb") as opened:
            opened.seek(-_CHECKSUM.itemsize, os.SEEK_END)
            known[part] = np.frombuffer(opened.read(), dtype=_CHECKSUM)[0]
    with whole_path(folder / LIST, shared=True) as partial:
        known.tofile(partial)
