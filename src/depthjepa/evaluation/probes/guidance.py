"""Whether depth got into the features of a guided run: three tables; see `evaluation.guidance`.

They are told of any run `against` its twin, and of a guided run by itself, where its teacher can be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from depthjepa.columns import Column
from depthjepa.config.run_config import RunConfig
from depthjepa.drawing import charts
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.gathering import RANDOM, Views, views_text
from depthjepa.evaluation.guidance import (
    ask_all,
    asked_teacher,
    head_did_it_alone,
    layer_figures,
    map_figures,
    refuse_other_grid,
)
from depthjepa.evaluation.probes.task import OwnTask, Probe, Section, Subject, Task
from depthjepa.evaluation.shortcuts import verdict
from depthjepa.guidance.build import asks_network, tells_depth
from depthjepa.method import build_encoder
from depthjepa.model.vit import VisionTransformer
from depthjepa.runs import Run, tables_of

TRAIN_IMAGES, VAL_IMAGES = 1000, 500  # at most
LayerFigures = Mapping[str, Sequence[Mapping[str, float]]]  # by encoder: the figures of each block


def run(subject: Subject) -> Iterable[Probe]:
    """The tables of the head's maps (where there is one), of what each block knows of depth, and of its alignment.

    Nothing for an unguided run by itself, and where the teacher was ground truth and this data has no depth. Raises
    `BadInput` where no teacher can be asked.
    """
    config, saved, against, device = subject.config, subject.saved, subject.against, subject.device
    encoder = subject.encoder
    assert saved is not None and isinstance(encoder, VisionTransformer)
    guided = config.guidance.kind != "none" and config.train.objective == "jepa"
    network = asks_network(config.guidance)
    if against is None and not (guided and (network or _has_depth(subject.train, subject.val))):
        return
    limits = replace(
        config.evaluation,
        train_images=min(config.evaluation.train_images or TRAIN_IMAGES, TRAIN_IMAGES),
        val_images=min(config.evaluation.val_images or VAL_IMAGES, VAL_IMAGES),
    )
    config = replace(config, evaluation=limits)
    train, val = Views(config, "train"), Views(config, "val")
    teacher = asked_teacher(config, has_depth=_has_depth(train, val)).to(device)
    known, judged = ask_all(teacher, config, train, device), ask_all(teacher, config, val, device)
    twins = {RANDOM: build_encoder(config), config.name: encoder}
    if against is not None:
        refuse_other_grid(saved, against)
        name = against.config.name if against.config.name not in twins else f"{against.config.name} (against)"
        twins = {RANDOM: twins[RANDOM], name: against.encoder(config.evaluation.which), **twins}
    layers = {name: layer_figures(each, config, train, val, known, judged, device) for name, each in twins.items()}
    text = f"{teacher.describe().name}; {views_text(train, val, ', views')}"
    if config.guidance.kind != "none" and saved.whitening is not None and tells_depth(config.guidance):
        figures = map_figures(config, saved, train, val, device)
        yield head_probe(config, figures, layers, train, text)
    yield layer_probe(LAYERS, "r2_within", layers, train, text)
    yield layer_probe(ALIGNMENT, "cka_selectivity", layers, train, text)


def _has_depth(train: Views, val: Views) -> bool:
    return train.source.has_depth and val.source.has_depth


def head_probe(config: RunConfig, figures: Mapping[str, float], layers: LayerFigures, train: Views, text: str) -> Probe:
    """The table of the head's maps beside the mean map, and what it says in words."""
    beside = next(name for name in reversed(list(layers)) if name != config.name)
    words = [*verdict(figures), *head_did_it_alone(figures, layers[config.name], layers[beside], beside)]
    nothing = {"floor_ratio": 1.0, "r2_position": 0.0, "r2_between": 0.0, "r2_within": 0.0}
    nothing |= {"gradient_energy": 0.0, "specificity_auc": 0.5, "retrieval_top1": figures["retrieval_chance"]}
    rows = [{"name": "mean map", **nothing}, {"name": config.name, **figures}]
    protocol = (
        f"the run's own head under masks as in training, judged against its whitened targets ({text}); a found "
        f"image is the nearest of {round(1 / figures['retrieval_chance'])}; pull: size of the guidance loss's "
        f"gradient at the context encoder over that of the other losses"
    )
    return Probe(TASK.table(train.source, protocol, rows) | {"verdict": words})


def layer_probe(task: Task, key: str, layers: LayerFigures, train: Views, text: str) -> Probe:
    """The table of one figure of each block: a row for each encoder."""
    rows = [
        {"name": name, **{f"block_{number}": figures[key] for number, figures in enumerate(each, 1)}}
        for name, each in layers.items()
    ]
    return Probe(task.table(train.source, f"{task.about} ({text})", rows))


def layer_charts(runs: Sequence[Run]) -> list[Captioned]:
    """How well a fresh readout of each block tells the teacher's latents, and how like them its tokens are."""
    words = {
        LAYERS.name: (
            "R² within images of a fresh ridge",
            "the run's line would lie on its twin's or the random encoder's: depth went into the head alone",
        ),
        ALIGNMENT.name: (
            "linear CKA with the teacher's latents, less chance",
            "all lines would lie near 0: no block has come nearer to the teacher than chance would bring it",
        ),
    }
    drawn = []
    for run in runs:
        for task, (label, failed) in words.items():
            for content in tables_of(run, task):
                values = {
                    row["name"]: [value for key, value in row.items() if key.startswith("block_")]
                    for row in content["rows"]
                }
                seen = f"Diagnosis of {run.name} on {content['data']}: {label}, block by block, on validation images."
                drawn.append(Captioned(charts.layer_curves(values, label), seen, f"{failed}."))
    return drawn


TASK = OwnTask(
    name="guidance",
    reads_run=True,
    title="What the guidance head says of held-out images",
    about="whether depth got into the features of a guided run, or into its head alone",
    columns=(
        Column(
            "floor_ratio",
            "loss / mean map's",
            "guidance loss over that of the mean map: 1 is nothing learned",
            better="lower",
        ),
        Column(
            "r2_position",
            "R² over the mean map",
            "share of the variation of the teacher's latents about their mean map that the head's maps explain",
            better="higher",
        ),
        Column(
            "channels_above_mean",
            "channels above it",
            "share of the teacher's channels that are told better than by their mean map",
            better="higher",
        ),
        Column(
            "r2_between",
            "R² between images",
            "share of the variation of the images' mean latents that is explained",
            better="higher",
        ),
        Column(
            "r2_within",
            "R² within images",
            "share of the variation of the teacher's latents within an image that the head's maps explain, once the "
            "mean map and each image's own mean are taken away; 0 is the mean map, 1 is perfect",
            better="higher",
        ),
        Column(
            "gradient_correlation",
            "gradients: correlation",
            "do neighbouring cells differ as the teacher's do; 0 is no structure, 1 the same edges",
            better="higher",
        ),
        Column(
            "gradient_energy",
            "gradients: size",
            "size of the differences of neighbouring cells over the teacher's: below 0.3 a blur, above 1.5 noise",
        ),
        Column(
            "specificity_auc",
            "right image: AUC",
            "how often the map is nearer to its own image's than to another's; 0.5 is chance",
            better="higher",
        ),
        Column(
            "retrieval_top1",
            "right image: found",
            "how often the own image's map is the nearest of all candidates",
            better="higher",
        ),
        Column(
            "pull",
            "pull on the encoder",
            "size of the guidance loss's gradient at the context encoder over that of all other losses",
        ),
        Column("pull_cosine", "its cosine", "cosine of the two gradients; below 0 they work against each other"),
    ),
    guesses=("mean map",),
    section=Section("What each block tells of the teacher's depth", layer_charts),
    command="diagnose",
    studied=False,
    run=run,
)
LAYERS = Task(
    name="guidance-layers",
    title="What each block knows of the teacher's latents (R² within images)",
    about="R² within images of the teacher's latents, told by a fresh ridge from the frozen tokens of each block, its "
    "strength chosen on a fifth of the training images",
    columns=(
        Column(
            "block_#",
            "block #",
            "share of the variation of the teacher's latents within an image that a fresh ridge reads out of the "
            "block's tokens, once each image's own mean is taken away; 1 is perfect",
            better="higher",
        ),
    ),
    studied=False,
)
ALIGNMENT = Task(
    name="guidance-alignment",
    title="How the features of each block align with the teacher's (CKA less chance)",
    about="linear CKA of each block's tokens with the teacher's latents, each less its mean at every position, less "
    "the same with another image's latents",
    columns=(
        Column(
            "block_#",
            "block #",
            "how like the teacher's latents the block's tokens are, less what another image's latents give; 0 is "
            "chance",
            better="higher",
        ),
    ),
    studied=False,
)
