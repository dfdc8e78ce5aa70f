"""The index of tar shards, written beside them: whoever reads them does not have to look through them first."""

from __future__ import annotations

from pathlib import Path

from depthjepa.data.config import DataConfig
from depthjepa.data.layouts.layout import layout_of
from depthjepa.data.layouts.shards import LAYOUT, place_of
from depthjepa.data.shards.index import NAME, indexed, to_bytes
from depthjepa.faults import BadInput
from depthjepa.logbook import whole_path


def prepare_index(root: str, out: Path | None = None) -> str:
    """Index the shards of a folder or address and write `shards.index.npz` beside them, or to `out`; says what it has.

    Raises `BadInput` where there are no shards, for shards that are at fault, and where nothing can be written.
    """
    config = DataConfig(root=root)
    if (layout := layout_of(config, root)) is not LAYOUT:
        raise BadInput(f"{root} {layout.states}: only tar shards have an index")
    place = place_of(config, root)
    shards = place.shards()
    known = indexed(place, shards)
    content = to_bytes({shard: known[shard] for shard in shards})
    if out is None:
        written = place.put(NAME, content)
    else:
        with whole_path(out) as partial:
            partial.write_bytes(content)
        written = str(out)
    images = sum(len(known[shard].samples.labels) for shard in shards)
    return (
        f"{len(shards)} shards, {images} images, {sum(shard.size for shard in shards) / 1e9:.3g} GB: index in {written}"
    )
