"""What a trained run is good for on one's own photographs: embeddings, depth maps, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from depthjepa import checkpoint as checkpoints
from depthjepa import figures, runtime
from depthjepa.checkpoint import Checkpoint
from depthjepa.config import RunConfig, load_config
from depthjepa.data.images import FlatFolder
from depthjepa.data.loading import TrainingBatches, open_source, view_batches
from depthjepa.data.samples import Batch
from depthjepa.evaluation.features import pooled_features
from depthjepa.evaluation.pictures import mask_arrays, picture_batch, pixels, token_maps
from depthjepa.evaluation.probes import RANDOM, encode_with
from depthjepa.evaluation.readout import DepthReadout, patch_grid
from depthjepa.faults import BadInput
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer

MILLIMETRES = 1000.0
FARTHEST = 65.535  # metres that a 16-bit PNG in millimetres can say


def embed_folder(
    config: RunConfig, encoder: VisionTransformer, where: torch.device, out: Path
) -> tuple[int, list[str]]:
    """Write `embeddings` (float32 [images, d], mean over tokens) and `paths`; return their number and what failed."""
    writers = {".npz": _write_npz, ".parquet": _write_parquet, ".safetensors": _write_safetensors}
    if out.suffix not in writers:
        raise BadInput(f"--out {out}: embeddings are written as {', '.join(writers)}")
    skipped: list[str] = []
    features = pooled_features(encode_with(encoder, where), _folder_views(config, skipped))
    out.parent.mkdir(parents=True, exist_ok=True)
    writers[out.suffix](out, features.values.numpy(), list(features.names))
    return len(features.names), skipped


def _folder_views(config: RunConfig, skipped: list[str]) -> Iterator[Batch]:
    """Whole views of every image below a folder, whatever its layout; unreadable ones are added to `skipped`."""
    source = FlatFolder(Path(config.data.root))
    batches = view_batches(
        source, config.data.size, batch_size=config.evaluation.batch_size, workers=config.data.workers
    )
    for batch in batches:
        skipped += batch.skipped
        yield batch


def _write_npz(out: Path, embeddings: np.ndarray, paths: list[str]) -> None:
    np.savez(out, embeddings=embeddings, paths=np.array(paths))


def _write_parquet(out: Path, embeddings: np.ndarray, paths: list[str]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as fault:
        raise BadInput(f"--out {out}: parquet needs pyarrow: pip install 'depthjepa[tables]'") from fault
    flat = pyarrow.array(embeddings.reshape(-1))
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    pyarrow.parquet.write_table(pyarrow.table({"paths": paths, "embeddings": vectors}), out)


def _write_safetensors(out: Path, embeddings: np.ndarray, paths: list[str]) -> None:
    # The format holds tensors and short texts only: the paths are UTF-8 bytes, one path a line.
    from safetensors.numpy import save_file

    lines = np.frombuffer("\n".join(paths).encode(), dtype=np.uint8)
    save_file({"embeddings": embeddings, "paths": lines}, out, {"paths": "UTF-8, one path a line"})


def predict_folder(
    saved: Checkpoint, config: RunConfig, encoder: VisionTransformer, where: torch.device, out: Path
) -> tuple[int, list[str]]:
    """Write `NAME.png` (16 bits, millimetres, 0 = beyond 65.5 m) and `NAME.colour.png` for every image.

    The readout is the depth probe's (`depthjepa probe RUN depth`); depth is bilinear between its cells and metric
    only as far as camera and views resemble those it was fitted on. Maps have the size of the photograph.
    """
    file = saved.path.parent.parent / "probes" / "depth.safetensors"
    if not file.is_file():
        raise BadInput(f"{file} is not there: fit a depth readout first with `depthjepa probe RUN depth --data DATA`")
    readout = DepthReadout.load(file)
    encode = encode_with(encoder, where)
    root, count, skipped = Path(config.data.root), 0, list[str]()
    low, high = readout.mean_map.minimum, readout.mean_map.maximum
    for batch in _folder_views(config, skipped):
        with torch.no_grad():
            grid = patch_grid(batch.images, encoder.patch_size)
            disparity = readout.predict(encode(batch.images), *grid).cpu()
        for name, cells in zip(batch.names, disparity, strict=True):
            with Image.open(root / name) as photograph:
                width, height = photograph.size
                if photograph.getexif().get(0x0112, 1) >= 5:  # lies on its side: views are upright
                    width, height = height, width
            smooth = F.interpolate(cells[None], (height, width), mode="bilinear", align_corners=False)[0, 0]
            _write_depth(out / name, smooth, low, high)
            count += 1
    return count, skipped


def _write_depth(target: Path, disparity: Tensor, low: float, high: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    metres = 1 / disparity.numpy()
    steps = np.where(metres <= FARTHEST, np.rint(metres * MILLIMETRES), 0).astype(np.uint16)
    Image.fromarray(steps).save(target.with_suffix(".png"))
    colours = (figures.colour_disparity(disparity.numpy(), low, high)[..., :3] * 255).round().astype(np.uint8)
    Image.fromarray(colours).save(target.with_suffix(".colour.png"))


def draw(what: str, source: str, more: list[str], out: Path) -> None:
    """Draw `masks` or `batch` of a recipe (`more`: settings), or `features` or `depth` of runs, to a picture file."""
    if what in ("masks", "batch"):
        figure = _draw_batch(what, load_config(source, more))
    elif what == "features":
        figure = _draw_features([source, *more])
    else:
        figure = _draw_depth([source, *more])
    figures.save_figure(figure, out)


def _draw_batch(what: str, config: RunConfig) -> Figure:
    count = config.evaluation.pictures
    batches = TrainingBatches(
        source=open_source(config.data, "train"),
        data=config.data,
        masks=config.masks,
        grid=config.grid,
        seed=config.seed,
        batch_size=count,
        steps=1,
    )
    batch = next(iter(batches))
    assert batch.masks is not None
    if what == "masks":
        return figures.masks_figure(**mask_arrays(batch, batch.masks, config.grid))
    return figures.batch_grid(pixels(batch), None if batch.depth is None else batch.depth[:, 0].numpy())


def _draw_features(runs: list[str]) -> Figure:
    loaded = [checkpoints.load(run) for run in runs]
    config = loaded[0].config
    where = runtime.device(config.train.device)
    batch = picture_batch(config).to(where)
    named = {saved.config.name: saved.encoder() for saved in loaded} | {RANDOM: build_encoder(config)}
    with torch.no_grad():
        maps = {name: token_maps(encoder.to(where), batch, config.grid) for name, encoder in named.items()}
    return figures.feature_pca(pixels(batch), maps)


def _draw_depth(runs: list[str]) -> Figure:
    stored = {run: _stored_maps(run) for run in runs}
    first = stored[runs[0]]
    for run, arrays in stored.items():
        if not np.array_equal(arrays["images"], first["images"]):
            raise BadInput(f"{run} and {runs[0]} were probed on other images: probe them on the same data")
    maps = {Path(run).name: arrays["prediction"] for run, arrays in stored.items()}
    maps |= {RANDOM: first["random"], "mean map": np.broadcast_to(first["mean_map"], first["truth"].shape)}
    return figures.depth_rows(first["images"], first["truth"], maps)


def _stored_maps(run: str) -> dict[str, np.ndarray]:
    file = Path(run) / "probes" / "depth.npz"
    if not file.is_file():
        raise BadInput(f"{file} is not there: run `depthjepa probe {run} depth` first")
    with np.load(file) as stored:
        return dict(stored)
