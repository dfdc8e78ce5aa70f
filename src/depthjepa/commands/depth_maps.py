"""From photographs of any proportions to depth maps of their size, and what is known of how good the maps are."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import upright_size
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.loading import view_batches
from depthjepa.data.samples import Batch
from depthjepa.evaluation.common_view import Size, view_size
from depthjepa.evaluation.depth_cells import resized
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes.decode import TASK as DECODE
from depthjepa.evaluation.probes.depth import TASK as DEPTH
from depthjepa.evaluation.readout import read_origin
from depthjepa.evaluation.table_rows import MEAN_MAP
from depthjepa.faults import BadInput
from depthjepa.guidance.config import PixelGuidance


def decodes_itself(saved: Checkpoint) -> bool:
    """Whether a checkpoint has a pixel head of its own that reads whole images."""
    guidance = saved.config.guidance
    return isinstance(guidance, PixelGuidance) and guidance.read != "predicted" and not saved.lost


def photograph_views(config: RunConfig, source: FlatFolder, skipped: list[str]) -> Iterator[tuple[Batch, list[Size]]]:
    """Views of every image below a folder (see `view_size`), with the photographs' sizes; equal views come together.

    Names of images that cannot be read are added to `skipped`. Raises `BadInput` where none can.
    """
    root = Path(config.data.root)
    sizes = {name: upright_size(root / name) or config.data.size for name in map(source.name_of, range(len(source)))}
    groups: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes.values()):
        groups.setdefault(view_size(size, config.data.size, config.model.patch_size), []).append(place)
    seen = False
    for size, places in groups.items():
        for batch in view_batches(
            source,
            size,
            places=places,
            batch_size=config.evaluation.batch_size,
            workers=config.data.workers,
            may_be_empty=len(groups) > 1,
        ):
            skipped += batch.skipped
            if len(batch.index):
                seen = True
                yield batch, [sizes[name] for name in batch.names]
    if not seen:
        raise BadInput(f"none of the {len(source)} images of {source.name} can be read")


def of_photograph(
    disparity: Float[Tensor, "1 rows cols"], measured: Bool[Tensor, "_ _"], size: Size
) -> Float[Tensor, "h w"]:
    """A map at the size of its photograph: bilinear between what was measured in training, nan where nothing was."""
    cells = _nearest(measured, (disparity.shape[1], disparity.shape[2]))
    smooth = resized(disparity[None], cells, size)[0, 0]
    return torch.where(_nearest(cells, size), smooth, torch.nan)


def _nearest(measured: Bool[Tensor, "_ _"], size: Size) -> Bool[Tensor, "h w"]:
    return F.interpolate(measured.float()[None, None], size, mode="nearest-exact")[0, 0] > 0


def decoded_where(saved: Checkpoint) -> Bool[Tensor, "rows cols"]:
    """Cells of half a patch in which `probe RUN decode` met depth in training images; everywhere without one."""
    half = saved.config.model.patch_size // 2 or 1
    cells = saved.config.data.size[0] // half, saved.config.data.size[1] // half
    file = None if saved.run is None else saved.run / "probes" / f"{DECODE.name}.npz"
    if file is None or not file.is_file():
        return torch.ones(cells, dtype=torch.bool)
    with np.load(file) as stored:
        measured = torch.from_numpy(stored["measured"]) if "measured" in stored else torch.ones(cells)
    return F.adaptive_max_pool2d(measured.float()[None], cells)[0] > 0


def doubt(saved: Checkpoint) -> str | None:
    """What is to be said against the maps of `predict`: no better than the mean map, or not known; None: nothing."""
    task = DECODE if decodes_itself(saved) else DEPTH
    rows, data = _decoded_rows(saved) if task is DECODE else _readout_rows(saved)
    again = shlex.join(["depthjepa", "probe", str(saved.run or saved.path), task.name])
    if rows is None:
        where = ", nor where depth was never measured" if task is DECODE else ""
        return f"nothing is known of how good these maps are{where}: `{again}` measures it on held-out images"
    worse = no_better(rows)
    if not worse:
        return None
    who = "the run's own head" if task is DECODE else "the depth readout"
    return (
        f"{who} is no better than the mean map on the held-out images of {data}, by {' and '.join(worse)}: these maps "
        f"tell where depth usually lies rather than what a photograph shows"
    )


def no_better(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures by which a model (the last row that is no guess) does not beat the mean map, as texts."""
    guess = next(row for row in rows if row["name"] == MEAN_MAP)
    own = next(row for row in reversed(rows) if row["name"] not in (*DEPTH.guesses, RANDOM))
    # None is what could not be told, and no better either.
    within, error, least = (
        math.nan if value is None else value for value in (own["r2_within"], own["absrel"], guess["absrel"])
    )
    found = []
    if not within > 0:
        found.append(f"R² within images {within:.3f} (0 is the mean map)")
    if not error < least:
        found.append(f"AbsRel {error:.3f} (the mean map: {least:.3f})")
    return found


Rows = list[dict[str, Any]]


def _readout_rows(saved: Checkpoint) -> tuple[Rows | None, str]:
    """The rows of the table that came with the readout, and its data."""
    assert saved.run is not None
    origin = read_origin(saved.run / "probes" / f"{DEPTH.name}.safetensors")
    return (json.loads(origin["rows"]) if "rows" in origin else None), origin.get("data", "")


def _decoded_rows(saved: Checkpoint) -> tuple[Rows | None, str]:
    """The rows of `probe RUN decode` and its data, where it was run on these weights."""
    file = None if saved.run is None else saved.run / "probes" / f"{DECODE.name}.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}
    known = content.get("step", saved.step) == saved.step
    return (content.get("rows") if known else None), str(content.get("data", ""))
