"""What a trained run is good for on one's own photographs: depth maps, pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from depthjepa import runtime
from depthjepa.backbones.opening import open_backbone
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.commands.depth_maps import decoded_where, decodes_itself, doubt, of_photograph, photograph_views
from depthjepa.config.reading import given, load_config
from depthjepa.config.run_config import RunConfig
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.layouts.layout import folder_of_images
from depthjepa.data.loading import TrainingBatches, open_source
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.drawing import figures, panels, token_figures
from depthjepa.evaluation.decoded import dense_metres, load_pixel_guided
from depthjepa.evaluation.features import tokens_of
from depthjepa.evaluation.gathering import RANDOM, encode_with, size_text
from depthjepa.evaluation.opened import open_with, tell_ignored, tell_unreadable, to_write, warn
from depthjepa.evaluation.pictures import mask_arrays, picture_batch, token_maps
from depthjepa.evaluation.probes import table as probes
from depthjepa.evaluation.probes.depth import TASK as DEPTH_PROBE
from depthjepa.evaluation.readout import DepthReadout, patch_grid, read_origin
from depthjepa.faults import BadInput
from depthjepa.logbook import refuse_existing, whole_file
from depthjepa.model.encoder import Encoder
from depthjepa.runs import folder_names, listed

MILLIMETRES = 1000.0
FARTHEST = 65.535  # metres that a 16-bit PNG in millimetres can say

Disparity = Callable[[Batch], Float[Tensor, "b 1 rows cols"]]  # [1/m]


def predict(
    run: str | Path,
    folder: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    settings: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> int:
    """Write the depth of every image below a folder to the folder `out`; return how many maps.

    A photograph `deep/er/wide.jpg` gets `out/deep/er/wide.depth.png`, 16 bits, depth along the optical axis [mm] (0:
    beyond 65.5 m, or never measured in training), and `wide.colour.png`, both of the size of the photograph. Depth is
    metric only as far as camera and views resemble those that the readout was fitted on; `predict_folder` says which
    readout that is. What is known against the maps (no better than the mean map) is said.

    Args:
        run: a run folder that `probe(run, "depth")` was called on, or that of a pixel-guided run.
        folder: all images below it, at any depth. Those that cannot be read are left out and named.
        out: a folder, made where it is not there; it must not lie in `folder`.
        force: write over maps that are there.
        settings: KEY=VALUE: `evaluation.which`, `evaluation.precision`, `train.device`, …
        say: gets a line for what is found, assumed, left out or to be doubted; without it, all but the first are
            warnings.

    Raises:
        BadInput: there is no such run or folder, the run holds no depth readout, or one of other weights, no image can
            be read, a setting has no effect, or something would be overwritten.
    """
    place, maps = folder_of_images(folder), to_write(out)
    opened = open_with(run, place, settings, "predictions", say=say, run_for="predict")
    saved = opened.saved
    assert saved is not None
    if decodes_itself(saved):
        _refuse_for_own_head(settings, opened.config)
    photographs = FlatFolder(place)
    count, unreadable = predict_folder(saved, *opened[1:], photographs, maps, force=force)
    tell_ignored(photographs, say)
    tell_unreadable(unreadable, say)
    if (against := doubt(saved)) is not None:
        (say or warn)(against)
    return count


def _refuse_for_own_head(settings: Sequence[str], config: RunConfig) -> None:
    """Raise `BadInput` for settings that a pixel-guided run's own head does not read."""
    unread = [key for key in given(settings, config) if key in ("evaluation.which", "evaluation.precision")]
    if unread:
        raise BadInput(
            f"{unread[0]} has no effect on predictions of {config.name}: its own head decodes depth, from the "
            f"context encoder and in float32"
        )


def predict_folder(
    saved: Checkpoint,
    config: RunConfig,
    encoder: Encoder,
    device: torch.device,
    photographs: FlatFolder,
    out: Path,
    *,
    force: bool = False,
) -> tuple[int, list[str]]:
    """Write `NAME.depth.png` (16 bits, millimetres, 0 = unknown) and `NAME.colour.png` for every photograph.

    NAME is the photograph's path below the folder without its suffix. A pixel-guided run whose head reads whole images
    decodes with that head, any other with the depth probe's readout (`depthjepa probe RUN depth`). Depth is bilinear
    between pixels or cells and metric only as far as camera and views resemble those that it was fitted on. Each
    photograph is seen whole and in its own proportions, up to whole patches; maps have its size. Unknown is what lies
    beyond 65.5 m, and where depth was never measured in training, which is grey in the picture: of an own head this is
    told by `depthjepa probe RUN decode`.

    Raises `BadInput` before the first write where a photograph would be overwritten, or any other file without
    `force`, and where the readout was fitted on other weights than these.
    """
    colours: tuple[float, float] | None = None
    if decodes_itself(saved):
        predict, measured = _own_head(saved, device), decoded_where(saved)
    else:
        predict, measured, colours = _readout(saved, config, encoder, device)
    names = [photographs.name_of(index) for index in range(len(photographs))]
    _refuse_overwriting(Path(config.data.root), names, out, force=force)
    count, skipped = 0, list[str]()
    for batch, sizes in photograph_views(config, photographs, skipped):
        with torch.no_grad():
            disparity = predict(batch.to(device)).cpu()
        maps = [of_photograph(cells, measured, size) for cells, size in zip(disparity, sizes, strict=True)]
        if colours is None:  # one scale for all maps: what the first one spans
            low, high = np.nanquantile(maps[0].numpy(), [0.02, 0.98]).tolist()
            colours = low, high
        for name, each in zip(batch.names, maps, strict=True):
            _write_depth(*_targets(out, name), each, *colours)
        count += len(maps)
    return count, skipped


def _own_head(saved: Checkpoint, device: torch.device) -> Disparity:
    """Disparity [1/m] by the run's own pixel head."""
    method, whitening = load_pixel_guided(saved, device), saved.whitening
    assert whitening is not None
    return lambda batch: 1 / dense_metres(method, whitening, batch)


def _readout(
    saved: Checkpoint, config: RunConfig, encoder: Encoder, device: torch.device
) -> tuple[Disparity, Tensor, tuple[float, float]]:
    """Disparity [1/m] by the depth probe's readout, the cells and the range that its training set measured."""
    if saved.run is None:
        raise BadInput(
            f"{saved.path} lies in no run folder, where its depth readout would be: make one with `depthjepa convert "
            f"{saved.path} RUN --to depthjepa`, then `depthjepa probe RUN depth --data DATA`"
        )
    file = saved.run / "probes" / "depth.safetensors"
    if not file.is_file():
        raise BadInput(f"{file} is not there: fit a depth readout first with `depthjepa probe RUN depth --data DATA`")
    readout = DepthReadout.load(file)
    _refuse_other_weights(file, saved, config)
    encode = encode_with(encoder, device, config.evaluation.precision)
    met = readout.mean_map
    farthest, nearest = 1 / met.farthest, 1 / met.nearest  # as disparity [1/m]

    def predict(batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        logs = readout.predict(tokens_of(encode, batch), *patch_grid(batch.images, encoder.patch_size))
        return (-logs).exp().clamp(farthest, nearest)

    return predict, met.measured, (farthest, nearest)


def _refuse_other_weights(file: Path, saved: Checkpoint, config: RunConfig) -> None:
    """Refuse a readout fitted on another step or on the other encoder; one that does not say is taken as it is."""
    origin = read_origin(file)
    here = {"step": str(saved.step), "which": config.evaluation.which}
    if any(origin.get(key, value) != value for key, value in here.items()):
        again = ["depthjepa", "probe", str(saved.path), DEPTH_PROBE.name, "--data", origin.get("data", "DATA")]
        again += [f"evaluation.which={here['which']}"]
        there = here | origin
        raise BadInput(
            f"{file} was fitted on the {there['which']} encoder of step {there['step']}, and this is the "
            f"{here['which']} encoder of step {here['step']}: fit it anew with `{shlex.join(again)}`"
        )


def _refuse_overwriting(root: Path, names: Sequence[str], out: Path, *, force: bool) -> None:
    """Refuse an `out` in which maps would overwrite photographs, one another, or be taken for photographs later.

    Without `force`, refuse one that holds any of the maps already.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise BadInput(f"--out {out} lies in the folder of the photographs, {root}: give a folder outside it")
    photographs = {(root / name).resolve() for name in names}
    taken: dict[Path, str] = {}
    for name in names:
        depth, colour = _targets(out, name)
        if depth in taken:
            raise BadInput(f"{root}: the depth of {taken[depth]} and of {name} would both be {depth}: rename one")
        taken[depth] = name
        for target in (depth, colour):
            if target.resolve() in photographs:
                raise BadInput(f"--out {out}: {target} is one of the photographs; give a folder outside {root}")
    if not force:
        refuse_existing([target for name in names for target in _targets(out, name)])


def _targets(out: Path, name: str) -> tuple[Path, Path]:
    """Where the depth map of a photograph and its coloured picture go."""
    stem = name.rpartition(".")[0]
    return out / f"{stem}.depth.png", out / f"{stem}.colour.png"


def _write_depth(depth: Path, colour: Path, disparity: Tensor, low: float, high: float) -> None:
    metres = 1 / disparity.numpy()
    known = metres <= FARTHEST  # which nan is not
    steps = np.rint(np.where(known, metres, 0) * MILLIMETRES).astype(np.uint16)
    with whole_file(depth) as file:
        Image.fromarray(steps).save(file, format="PNG")
    colours = (figures.colour_disparity(disparity.numpy(), low, high)[..., :3] * 255).round().astype(np.uint8)
    with whole_file(colour) as file:
        Image.fromarray(colours).save(file, format="PNG")


def draw(what: str, source: str, more: list[str], out: Path, *, photographs: bool = True) -> None:
    """Draw `masks` or `batch` of a recipe (`more`: settings), or what runs hold, to a picture file.

    Of runs: `features`, and what the tasks of `evaluation.probes.table` draw; some without `photographs` if need be.
    """
    tasks = {name: row.picture for name, row in probes.pictured().items() if row.picture is not None}
    spared = [name for name, picture in tasks.items() if picture.photographs]
    if not photographs and what not in spared:
        raise BadInput(f"--no-photographs is for {listed(spared)}: {what} is drawn from nothing else, or has none")
    if what in tasks:
        runs = [source, *more]
        places = dict(zip(run_names(runs), map(Path, runs), strict=True))
        figure = tasks[what].draw(places, photographs)
    elif what == "features":
        figure = _draw_features([source, *more])
    else:
        figure = _draw_batch(what, load_config(source, more))
    panels.save_figure(figure, out)


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
    return figures.batch_grid(as_bytes(batch.images), None if batch.depth is None else batch.depth[:, 0].numpy())


def _draw_features(runs: list[str]) -> Figure:
    opened = dict(zip(run_names(runs), map(open_backbone, runs), strict=True))
    with_data = [(run, each.config) for run, each in zip(runs, opened.values(), strict=True) if each.config.data.root]
    if not with_data:
        raise BadInput(f"the pictures of features are of a run's images: name a run of depthjepa beside {listed(runs)}")
    shown, config = with_data[0]
    for run, each in zip(runs, opened.values(), strict=True):
        # Networks of other libraries see the images of the runs, at their size.
        if each.saved is not None and each.config.data.size != config.data.size:
            sizes = f"{size_text(each.config)}, and those of {shown} {size_text(config)}"
            raise BadInput(f"the images of {run} are {sizes}: draw runs with the same data.image_size")
    device = runtime.device(config.train.device)
    batch = picture_batch(config).to(device)
    named = {name: each.encoder(each.which("target")) for name, each in opened.items()}
    first = next(iter(opened.values()))
    if (random := first.random(replace(first.config, data=config.data))) is not None:
        named[RANDOM] = random
    with torch.no_grad():
        maps = {name: token_maps(encoder.to(device), batch) for name, encoder in named.items()}
    return token_figures.feature_pca(as_bytes(batch.images), maps)


def run_names(runs: Sequence[str]) -> list[str]:
    """Name runs by their folders, and those whose folders are called alike by as much of their paths as differs."""
    places = [Path(run).resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise BadInput(f"{run}: this run is given twice")
    return folder_names(places)
