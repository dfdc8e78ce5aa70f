"""The same point in two views by nearest features; see `evaluation.correspondence`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from depthjepa.columns import Column
from depthjepa.data.groups import group_in
from depthjepa.data.order import Mixture
from depthjepa.data.samples import Source
from depthjepa.data.two_views import SeesTwice
from depthjepa.drawing import token_figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.correspondence import (
    POSITION,
    RADII,
    TURNS,
    Correspondence,
    correspondence,
    position_alone,
)
from depthjepa.evaluation.gathering import RANDOM, RAW, raw_patches, size_text, unreadable_text
from depthjepa.evaluation.probes.task import Need, OwnTask, Picture, Probe, Resampled, Section, Subject
from depthjepa.faults import BadInput
from depthjepa.runs import Arrays, Run, probe_files, same_images, stored_alike

PICTURES = 4  # pairs of a figure
KEYS = {POSITION: "position", RAW: "raw", RANDOM: "random"}  # of the baselines, among the arrays
SHARE = (
    "share of the patches of the first view, of those whose middle is seen in the second one, whose nearest patch there"
)


def _plural(radius: int) -> str:
    return f"{radius} patch{'es' * (radius > 1)}"


COLUMNS = (
    *(
        Column(
            f"recall_{radius}",
            f"within {_plural(radius)}",
            f"{SHARE} lies at most {_plural(radius)} from where the point is; averaged over pairs",
            "%",
            "higher",
        )
        for radius in RADII
    ),
    *(
        Column(
            f"recall_{radius}_turn_{high}",
            f"{_plural(radius)}, turned {low} to {high}°",
            f"the same within {_plural(radius)}, over the pairs whose cameras are turned by {low} to {high} degrees",
            "%",
            "higher",
        )
        for low, high in zip((0, *TURNS), TURNS, strict=False)
        for radius in RADII
    ),
)


def _tells_pairs(source: Source) -> bool:
    parts = source.sources if isinstance(source, Mixture) else (source,)
    return all(isinstance(part, SeesTwice) and part.tells_pairs() for part in parts)


TWO_VIEWS = Need(
    lambda config, train, val: _tells_pairs(val),
    lambda data: (
        f"needs two views of one place, and {data} has none: give rendered streets or rooms, or an RGB-D folder whose "
        f'dataset.json has "poses", "groups" and a focal length'
    ),
)


def run(subject: Subject) -> Iterable[Probe]:
    """Nearest features of the frozen encoder's last layer, beside the baselines."""
    config, val = subject.config, subject.val
    encoders = {
        POSITION: position_alone(config.grid),
        RAW: raw_patches(config.model.patch_size, subject.device),
        **subject.encoders(),
    }
    together = max(1, config.evaluation.batch_size // 2)
    found = correspondence(encoders, val, config.data.size, config.grid, together, PICTURES)
    if not found.pairs:
        raise BadInput(f"the {TASK.name} probe found no two views of one place in {config.data.root}")
    apart = [pair.apart for pair in found.pairs]
    exact = "exact" if val.source.keeps_samples else "by depth and poses"
    left_out = f"; {found.left_out} images without a second view that shows enough of the first" * bool(found.left_out)
    protocol = (
        f"tokens of the frozen {config.evaluation.which} encoder's last layer, nearest by cosine, nothing fitted; "
        f"{len(apart)} pairs of validation images at {size_text(config)}, {min(apart):.2g} to {max(apart):.2g} m apart "
        f"and turned by up to {found.turns.max():.0f}°, {sum(pair.queries for pair in found.pairs)} patches seen in "
        f"both ({exact}){left_out}{unreadable_text(val)}"
    )
    groups = [group_in(val.source, pair.number) or "" for pair in found.pairs]
    own, *beside = (kept(found, name, subject.random_row(name), groups) for name in (config.name, *subject.compared))
    content = TASK.table(val.source, protocol, [{"name": name, **found.figures(name)} for name in encoders])
    yield Probe(content, own, dict(zip(subject.compared, beside, strict=True)))


def kept(found: Correspondence, name: str, random: str, groups: Sequence[str]) -> Arrays:
    """Recalls [pairs, radii] and turns as run folders keep them, and the matches of the pairs that are drawn.

    Matches are [queries of all drawn pairs, 2] (down, right, in patches); `pair` says which pair each query is of.
    """
    drawn, rows = found.drawn, {"": name, **{f"{key}_": row for row, key in KEYS.items()}, f"{KEYS[RANDOM]}_": random}
    arrays: Arrays = {
        "images": np.stack([each.first for each in drawn]),
        "second": np.stack([each.second for each in drawn]),
        "group": np.array(groups),
        "turn": found.turns,
        "pair": np.concatenate([np.full(len(each.queries.patches), place) for place, each in enumerate(drawn)]),
        "query": np.concatenate([each.queries.patches.numpy() for each in drawn]),
        "truth": np.concatenate([each.queries.truth.numpy() for each in drawn]),
        "grid": np.array(found.grid),
    }
    for key, row in rows.items():
        if row in drawn[0].matches:
            arrays[f"{key}recalls"] = found.recalls(row)
            arrays[f"{key}match"] = np.concatenate([each.matches[row] for each in drawn])
    return arrays


def resampled_recall(arrays: Mapping[str, np.ndarray], counts: Float64[np.ndarray, " pairs"]) -> float:
    """Recall within one patch [%] where each pair counts so often."""
    return 100 * float(counts @ arrays["recalls"][:, 0] / counts.sum())


def correspond_figures(runs: Sequence[Run]) -> list[Captioned]:
    """Both views with queries and matches; one figure for each set of equal pairs."""
    seen = (
        "Each row is a pair of views. Points of the first view have a colour each; in the second one they are drawn "
        "where they really are, and then where each model's features find them. A dot is a match at most two patches "
        "off, a cross is one that is farther off."
    )
    failed = (
        "a model's points would be scattered like the raw patches', or lie as in the first view like position alone's."
    )
    return [
        Captioned(_rows({run.name: arrays for run, arrays in group}), seen, failed)
        for file in probe_files(runs, f"{TASK.name}*.npz")
        for group in same_images(runs, file, "second", "match", same=("images", "second", "query"))
    ]


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The matches of `probe RUN correspond` side by side."""
    return _rows(stored_alike(runs, TASK.name, "images", "second", "query"))


def _rows(group: Mapping[str, Arrays]) -> Figure:
    first = next(iter(group.values()))
    matches = {name: arrays["match"] for name, arrays in group.items()}
    baselines = ((name, f"{key}_match") for name, key in reversed(KEYS.items()))
    matches |= {name: first[key] for name, key in baselines if key in first}
    rows, cols = first["grid"].tolist()
    return token_figures.match_rows(
        first["images"], first["second"], first["pair"], first["query"], first["truth"], matches, (rows, cols)
    )


TASK = OwnTask(
    name="correspond",
    title="The same point in two views",
    about="the same point in two views by the nearest features",
    columns=COLUMNS,
    guesses=(POSITION, RAW),
    needs=(TWO_VIEWS,),
    resampled=Resampled("recall_1", resampled_recall),
    section=Section("The same point in two views", correspond_figures),
    picture=Picture("matches of `probe RUN correspond`", show),
    run=run,
)
