"""Embeddings of one's own images: a vector for every image or for every patch, in memory and in a file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from depthjepa import runtime
from depthjepa.cost import size_of
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.layouts.layout import folder_of_images
from depthjepa.data.loading import view_batches
from depthjepa.evaluation.features import iterate_tokens
from depthjepa.evaluation.gathering import encode_with
from depthjepa.evaluation.opened import open_with, tell_ignored, tell_unreadable, to_write
from depthjepa.faults import BadInput
from depthjepa.logbook import refuse_existing, whole_file

ROW_GROUP = 64 * 2**20  # bytes of a parquet file that are written, and read, at a time


def embed(
    backbone: str | Path,
    folder: str | Path,
    out: str | Path | None = None,
    *,
    patches: bool = False,
    force: bool = False,
    settings: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> tuple[list[str], Float32[np.ndarray, "images ..."]]:
    """Embed every image below a folder: paths, and float32 [images, d], or with `patches` [images, n, d].

    Paths are relative to the folder, sorted, with `/` between their parts. An image is stretched to the size that the
    backbone was trained on (`data.image_size`) and becomes the tokens of its n patches in raster order, of width d:
    all of them with `patches`, else their mean. Images that cannot be read are left out and named.

    Args:
        backbone: what `load_encoder` takes.
        folder: all images below it, at any depth.
        out: a file to write as well. `.npz` and `.safetensors` hold `embeddings` and `paths` (safetensors: UTF-8 bytes,
            one path a line), with `patches` also `grid`, the rows and columns of patches. `.parquet` has a row for each
            image with `paths` and `embeddings`, a list of d numbers; with `patches` a list of n * d, whose `shape`
            [n, d] and `grid` are JSON in the metadata of the file.
        patches: every patch's token instead of their mean.
        force: write over a file that is there.
        settings: KEY=VALUE: `evaluation.which`, `evaluation.precision`, `evaluation.batch_size`, `data.image_size`,
            `train.device`, …; `model.*` where a foreign layout does not say.
        say: gets a line for what is found, assumed or left out; without it, the last two are warnings.

    Raises:
        BadInput: there is no such backbone or folder, no image can be read, a setting has no effect, `out` is of no
            known kind, is there already or cannot be written, or the embeddings do not fit into the memory.
    """
    place = folder_of_images(folder)
    file = None if out is None else to_write(out)
    write = None if file is None else _writer(file)
    if file is not None and not force:
        refuse_existing([file])
    _, config, encoder, device = open_with(backbone, place, settings, "embeddings", say=say)
    source = FlatFolder(place)
    if file is not None:
        _refuse_unwritable_names(file, [source.name_of(index) for index in range(len(source))])
    tell_ignored(source, say)
    shape = (len(source), *((math.prod(config.grid),) if patches else ()), encoder.width)
    _refuse_beyond_memory(place, shape)
    embeddings, paths, unreadable = np.empty(shape, np.float32), list[str](), list[str]()
    batches = view_batches(
        source, config.data.size, batch_size=config.evaluation.batch_size, workers=config.data.workers
    )
    for batch, tokens in iterate_tokens(encode_with(encoder, device, config.evaluation.precision), batches):
        values = tokens if patches else tokens.mean(1)
        embeddings[len(paths) : len(paths) + len(values)] = values.cpu().numpy()
        paths += batch.names
        unreadable += batch.skipped
    embeddings = embeddings[: len(paths)]
    tell_unreadable(unreadable, say)
    if file is not None and write is not None:
        with whole_file(file) as opened:
            write(opened, embeddings, paths, config.grid if patches else None)
    return paths, embeddings


def _refuse_beyond_memory(folder: Path, shape: tuple[int, ...]) -> None:
    needed, there = math.prod(shape) * np.dtype(np.float32).itemsize, runtime.machine_bytes()
    if needed > there:
        numbers = " x ".join(f"{side:,}" for side in shape)
        less = ", or do without --patches (patches=True)" if len(shape) == 3 else ""
        raise BadInput(
            f"{folder}: {numbers} numbers (images{' x patches' if len(shape) == 3 else ''} x width) take "
            f"{size_of(needed)}, and the memory here is {size_of(there)}: embed parts of the folder{less}"
        )


def _refuse_unwritable_names(file: Path, names: Sequence[str]) -> None:
    """Refuse names that the kind of file cannot hold, before anything is computed."""
    if file.suffix == ".npz":  # which holds any
        return
    for name in names:
        spelt = name.encode("utf-8", "backslashreplace").decode()
        why = "is not UTF-8" * (spelt != name)
        if "\n" in name and file.suffix == ".safetensors":
            why = "has a line break in it"
        if why:
            what = f"the name {spelt!r} {why}, which {file.suffix} cannot hold"
            raise BadInput(f"{file}: {what}: rename it, or write .npz")


Write = Callable[[BinaryIO, Float32[np.ndarray, "images ..."], list[str], tuple[int, int] | None], None]


def _writer(out: Path) -> Write:
    """What writes a file of this kind; refuses before anything is computed."""
    if out.suffix not in WRITERS:
        raise BadInput(f"--out {out}: embeddings are written as {', '.join(WRITERS)}")
    if out.suffix == ".parquet":
        _pyarrow()
    return WRITERS[out.suffix]


def _write_npz(file: BinaryIO, embeddings: np.ndarray, paths: list[str], grid: tuple[int, int] | None) -> None:
    sides: dict[str, Any] = {} if grid is None else {"grid": np.array(grid)}
    np.savez(file, embeddings=embeddings, paths=np.array(paths), **sides)


def _write_parquet(file: BinaryIO, embeddings: np.ndarray, paths: list[str], grid: tuple[int, int] | None) -> None:
    pyarrow = _pyarrow()
    row = embeddings[0]
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embeddings.reshape(-1)), row.size)
    table = pyarrow.table({"paths": paths, "embeddings": lists})
    if grid is not None:
        table = table.replace_schema_metadata({"shape": json.dumps(row.shape), "grid": json.dumps(grid)})
    together = max(1, ROW_GROUP // row.nbytes)
    pyarrow.parquet.write_table(table, file, row_group_size=together, use_dictionary=["paths"])


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as fault:
        raise BadInput("embeddings as .parquet need pyarrow: pip install 'depthjepa[tables]'") from fault
    return pyarrow


def _write_safetensors(file: BinaryIO, embeddings: np.ndarray, paths: list[str], grid: tuple[int, int] | None) -> None:
    # The format holds tensors and short texts only: the paths are UTF-8 bytes, one path a line. The library would turn
    # everything into bytes first; a file is the length of a JSON header, the header, and the tensors one by one.
    arrays = {} if grid is None else {"grid": ("I64", np.array(grid, "<i8"))}
    arrays["embeddings"] = ("F32", embeddings.astype("<f4", copy=False))
    arrays["paths"] = ("U8", np.frombuffer("\n".join(paths).encode(), np.uint8))
    header: dict[str, Any] = {"__metadata__": {"paths": "UTF-8, one path a line"}}
    end = 0
    for name, (kind, array) in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, array in arrays.values():
        file.write(array.data)


WRITERS: dict[str, Write] = {".npz": _write_npz, ".parquet": _write_parquet, ".safetensors": _write_safetensors}
