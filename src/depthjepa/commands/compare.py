"""Several backbones on the same images, cells and baselines: one table for each task, who leads, and a report."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthjepa import runtime
from depthjepa.backbones.opening import Backbone, open_backbone
from depthjepa.config.reading import build_config, given, refuse_other_than_settings, refuse_repeated
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.memory import first_readable
from depthjepa.data.order import evenly, told_apart
from depthjepa.data.samples import Source
from depthjepa.evaluation.common_view import OnView, Size, common, nearest_size, view_size
from depthjepa.evaluation.gathering import RANDOM, is_random, views
from depthjepa.evaluation.leads import Lead, lead, shown_of
from depthjepa.evaluation.opened import to_write
from depthjepa.evaluation.pictures import feature_arrays
from depthjepa.evaluation.probes import Probe, Subject, run_tasks, table
from depthjepa.evaluation.probes.task import Data
from depthjepa.evaluation.tokens import KEPT_BYTES
from depthjepa.faults import BadInput
from depthjepa.formats.weights import Which
from depthjepa.logbook import RunFolder, plain, to_json, write_whole
from depthjepa.model.encoder import Encoder
from depthjepa.report.comparison import FILE, row_name, write_comparison
from depthjepa.runs import folder_names

LOOKED_AT = 16  # images whose proportions are looked at

Say = Callable[[str], None]


BACKBONE = "backbone.json"  # marks the folder of a backbone as of a comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """A backbone in a comparison: its name there, and the size at which it sees images."""

    name: str
    source: str
    opened: Backbone
    encoder: Encoder
    sees: Size

    @property
    def grid(self) -> Size:
        """Rows and columns of its own patches."""
        return self.sees[0] // self.encoder.patch_size, self.sees[1] // self.encoder.patch_size


def compare(
    backbones: Sequence[str | Path],
    data: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    random: bool = True,
    settings: Sequence[str] = (),
    say: Say | None = None,
) -> dict[str, Any]:
    """Measure several backbones on the same data by the same readouts; return one table and those of each task.

    All are judged on the same cells of the same images. Each sees the whole photograph at a size of its own: in the
    data's proportions with about as many pixels as it was trained on, or, with `data.image_size=`, the nearest size
    that its patches divide; its tokens are brought to a common grid, as fine as the finest. Each image is encoded once
    for all tasks, as far as `evaluation.tokens.KEPT_BYTES` (2 GiB) of tokens go.

    `table["rows"]` has a row for each baseline and backbone, with figures by TASK.KEY; `table["leads"]` says for each
    task which backbone leads, over which, and by how much, with the 95 % interval of a bootstrap over groups (scenes,
    drives, places); `table["tables"]` holds the whole tables.

    Args:
        backbones: what `load_encoder` takes, at least one.
        data: as for `probe`.
        tasks: what `probe` takes, but those that read more of a run than its encoder; None: the usual ones, as far as
            the data have what they need.
        out: a folder: `compare.json`, `report.html`, and a folder for each backbone, which `report` and `show` read.
        random: whether each backbone's architecture at its initial weights is a row, too.
        settings: KEY=VALUE: `data.*`, `evaluation.*`, `train.device`, `train.threads`, `seed`.
        say: gets a line for what is found, assumed or left out; without it, these are not told.

    Raises:
        BadInput: there is no such backbone, data or task, the data lack what a task needs, or a key has no effect.
    """
    folder = None if out is None else to_write(out)
    refuse_other_than_settings(settings)
    refuse_repeated(settings)
    base = _measured_with(str(data), [text for text in settings if not text.startswith("data.image_size=")])
    asked_size = _asked_size(settings)
    notes: list[str] = []  # told once nothing can be refused any more: a refusal is one line
    listed = Data(base)
    chosen = _tasks(tasks, listed, notes)
    table.refuse_unread("comparisons", chosen, base, given(settings, base))
    _refuse_variants(chosen, base)
    device = runtime.device(base.train.device)
    runtime.settle_cpu(base.train.threads)
    compared = _opened(backbones, base, _proportions(listed.val.source) or base.data.size, asked_size, notes)
    grid, patch = common([each.sees for each in compared], [each.encoder.patch_size for each in compared])
    config = _on_view(base, compared[0].name, (grid[0] * patch, grid[1] * patch), patch)
    if folder is not None:
        RunFolder(folder).refuse_other((FILE, "report.html", *(each.name for each in compared)))
        for place in [folder / each.name for each in compared]:  # what is written there takes the place of all
            if place.exists() and not (place / BACKBONE).is_file():
                raise BadInput(f"{place} is there and is not of an earlier comparison: choose another --out")
    if say is not None:
        for note in notes:
            say(note)
    rows = _rows(compared, config, grid, patch, random=random)
    others = {name: encoder for name, encoder in rows.items() if name != config.name}
    subject = Subject(config, rows[config.name], device, others=others)
    results = list(run_tasks(chosen, subject))
    content = _content(results, compared, config, grid)
    if folder is not None:
        batch = next(iter(views(config, listed.val.source, config.evaluation.pictures))).to(device)
        for each in compared:
            for part in ("probes", "figures"):  # of an earlier comparison, of other tasks or other data
                shutil.rmtree(folder / each.name / part, ignore_errors=True)
            _keep(folder / each.name, each, results, config)
            with torch.no_grad():
                features = feature_arrays(rows[each.name].to(device), batch)
            RunFolder(folder / each.name).save_arrays("figures/features", features)
        write_whole(folder / FILE, to_json(content))
        write_comparison(folder, folder / "report.html")
    return content


def _measured_with(data: str, settings: Sequence[str]) -> RunConfig:
    content = to_mapping(RunConfig())
    content["data"] |= {"root": data}
    config, usual = build_config(content, list(settings)), RunConfig()
    own = replace(config.train, device=usual.train.device, threads=usual.train.threads)
    taken = ("data", "evaluation", "train", "seed")
    for part in (each.name for each in dataclasses.fields(config) if each.name not in taken):
        if getattr(config, part) != getattr(usual, part):
            raise BadInput(f"{part}.* has no effect on a comparison: each backbone is what it is")
    if own != usual.train:
        raise BadInput("of train.* a comparison takes train.device and train.threads alone")
    return config


def _asked_size(settings: Sequence[str]) -> Size | None:
    asked = [text for text in settings if text.startswith("data.image_size=")]
    return build_config(to_mapping(RunConfig()), asked).data.size if asked else None


def _tasks(names: Sequence[str] | None, data: Data, notes: list[str]) -> list[table.Runnable]:
    known = table.of_command("probe")
    if names is not None:
        asked = [table.chosen(name, known) for name in dict.fromkeys(names)]
        if own := [row.name for row in asked if row.reads_run]:
            raise BadInput(f"{own[0]} reads more of a run than its encoder: backbones cannot be compared by it")
        data.refuse_lacking(asked)
        return asked
    found, lacking = [], []
    for row in (each for each in known.values() if each.usual):
        why = data.lacking(row)
        found += [row] if why is None else []
        lacking += [] if why is None else [why]
    if not found:
        raise BadInput("; ".join(lacking))
    notes += [f"left out: {text.partition(': give')[0]}" for text in lacking]
    return found


def _refuse_variants(tasks: Sequence[table.Runnable], base: RunConfig) -> None:
    """Raise `BadInput` for settings that ask for another protocol of a task than that of its tables' rows."""
    asked = [row.variant.setting for row in tasks if row.variant is not None and row.variant.asked(base)]
    if asked:
        raise BadInput(f"{asked[0]} is a protocol of `depthjepa probe`: comparisons have each task's usual one")


def _opened(
    backbones: Sequence[str | Path], base: RunConfig, photograph: Size, asked: Size | None, notes: list[str]
) -> list[Compared]:
    if not backbones:
        raise BadInput("give at least one backbone to compare")
    places = [Path(str(each)) for each in backbones]
    for place in places:
        if places.count(place) > 1:
            raise BadInput(f"{place}: this backbone is given twice")
    opened = [open_backbone(each) for each in backbones]
    found = []
    for source, each, name in zip(
        backbones, opened, _names([each.config.name for each in opened], places), strict=True
    ):
        which: Which = each.which(base.evaluation.which)
        encoder = each.encoder(which)
        notes += [f"{source}: assumed {what}" for what in each.assumed]
        sees = _size(each, encoder, photograph, asked, notes)
        found.append(Compared(name, str(source), each, encoder, sees))
        (height, width), (rows, cols) = sees, found[-1].grid
        said = each.found or f"{which} encoder"
        notes.append(f"{source}: {said}; sees {height} x {width} px, {rows} x {cols} patches")
    return found


def _names(own: Sequence[str], places: Sequence[Path]) -> list[str]:
    """What backbones are called: as their configurations say where that is theirs alone, else by their folders."""
    folders = [_folder_name(name) for name in folder_names(places)]
    alone = [own.count(name) == 1 and name not in table.baselines() for name in own]
    names = [_folder_name(name) if kept else folder for name, folder, kept in zip(own, folders, alone, strict=True)]
    return names if len({*names}) == len(names) else told_apart(folders)


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+=-]", "_", name).lstrip(".") or "backbone"


def _proportions(source: Source) -> Size | None:
    """Height and width of the image in the middle, by its proportions, of some that are spread over the data.

    None where images have no size of their own: rendered ones have the one that is asked for.
    """
    if source.keeps_samples:
        return None
    samples = (first_readable(source, int(index))[1] for index in evenly(LOOKED_AT, len(source)))
    sizes = [tuple(sample.image.shape[1:]) for sample in samples]
    height, width = sorted(sizes, key=lambda size: size[0] / size[1])[len(sizes) // 2]
    return height, width


def _size(backbone: Backbone, encoder: Encoder, photograph: Size, asked: Size | None, notes: list[str]) -> Size:
    """The size at which an encoder sees images; that of its training where it takes no other."""
    trained, patch = backbone.config.data.size, encoder.patch_size
    size = view_size(photograph, trained, patch) if asked is None else nearest_size(asked, patch)
    if size != trained:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, 3, *size))
        except BadInput as fault:
            notes.append(f"{fault}: it sees {trained[0]} x {trained[1]} px")
            return trained
    return size


def _on_view(base: RunConfig, name: str, size: Size, patch: int) -> RunConfig:
    return replace(
        base,
        name=name,
        data=replace(base.data, image_size=size[0] if size[0] == size[1] else size),
        model=replace(base.model, patch_size=patch),
    )


def _rows(
    compared: Sequence[Compared], config: RunConfig, grid: Size, patch: int, *, random: bool
) -> dict[str, Encoder]:
    """Every encoder on the common view, by its row: each backbone after its initial weights."""
    room = KEPT_BYTES // (2 * len(compared))
    rows: dict[str, Encoder] = {}
    for each in compared:
        own = replace(each.opened.config, seed=config.seed) if each.opened.saved is None else each.opened.config
        drawn = each.opened.random(own) if random else None
        if drawn is not None:
            row = RANDOM if each.name == config.name else f"{RANDOM}, {each.name}"
            rows[row] = OnView(drawn, each.sees, grid, patch, room)
        rows[each.name] = OnView(each.encoder, each.sees, grid, patch, room)
    return rows


def _content(results: Sequence[Probe], compared: Sequence[Compared], config: RunConfig, grid: Size) -> dict[str, Any]:
    """What `compare.json` holds."""
    names = [each.name for each in compared]
    rows: dict[str, dict[str, Any]] = {}
    columns, leads = [], list[Lead]()
    for result in results:
        row = table.tasks()[result.table["task"]]
        for entry in result.table["rows"]:
            named = row_name(entry["name"], names[0])
            rows.setdefault(named, {"name": named}).update(
                {f"{row.name}.{key}": value for key, value in entry.items() if key != "name"}
            )
        for column in shown_of(row, result.table):
            key, label = f"{row.name}.{column.key}", f"{row.name}: {column.label}"
            columns.append({**column.to_json(), "key": key, "label": label})
        arrays = {names[0]: result.arrays, **result.beside}
        if (found := lead(row, result.table, arrays)) is not None:
            leads.append(found)
    ordered = [name for name in rows if name not in names and not is_random(name)]
    ordered += [name for name in rows if is_random(name)] + names
    content: dict[str, Any] = plain(
        {
            "data": ",".join(dict.fromkeys(result.table["data"] for result in results)),
            "view": {"image_size": list(config.data.size), "grid": list(grid)},
            "backbones": [
                {"name": each.name, "source": each.source, "found": each.opened.found, "sees": list(each.sees),
                 "grid": list(each.grid), "width": each.encoder.width, "parameters": _parameters(each.encoder)}
                for each in compared
            ],
            "columns": columns,
            "rows": [rows[name] for name in ordered],
            "leads": [each.to_json() for each in leads],
            "tables": [result.table for result in results],
        }
    )  # fmt: skip
    return content


def _parameters(encoder: Encoder) -> int | None:
    counted = sum(each.numel() for each in encoder.parameters()) if isinstance(encoder, torch.nn.Module) else 0
    return counted or None  # of an ONNX file nobody knows


def _keep(folder: Path, own: Compared, results: Sequence[Probe], config: RunConfig) -> None:
    """Write what the report and `show` read of one backbone: its rows beside the baselines, and its arrays."""
    kept = RunFolder(folder)
    write_whole(folder / BACKBONE, to_json({"source": own.source, "sees": list(own.sees), "found": own.opened.found}))
    mapping = to_mapping(replace(config, name=own.name))
    write_whole(folder / "config.yaml", json.dumps(mapping, indent=1))  # JSON is YAML
    for result in results:
        name = f"probes/{result.table['task']}{result.variant}"
        write_whole(folder / f"{name}.json", to_json(plain(_of_backbone(result.table, own.name, config.name))))
        arrays: Mapping[str, np.ndarray] = result.arrays if own.name == config.name else result.beside.get(own.name, {})
        if arrays:
            kept.save_arrays(name, arrays)


def _of_backbone(content: Mapping[str, Any], name: str, first: str) -> dict[str, Any]:
    """The table of one backbone: the guesses, its initial weights and itself."""
    random = RANDOM if name == first else f"{RANDOM}, {name}"
    wanted = {**{guess: guess for guess in table.baselines() if guess != RANDOM}, random: RANDOM, name: name}
    rows = [{**row, "name": wanted[row["name"]]} for row in content["rows"] if row["name"] in wanted]
    sets = {"sets": [_of_backbone(each, name, first) for each in content["sets"]]} if "sets" in content else {}
    return {**content, "rows": rows, **sets}
