"""Depth as a pixel-guided run's own head decodes it; see `evaluation.decoded`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from depthjepa.columns import Column
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.decoded import decode_tables
from depthjepa.evaluation.gathering import whole_views_text
from depthjepa.evaluation.probes.depth import COLUMNS, PICTURES, map_arrays, map_figures, show_maps, tables
from depthjepa.evaluation.probes.task import DEPTH, Need, OwnTask, Picture, Probe, Section, Subject
from depthjepa.evaluation.table_rows import MEAN_MAP, SCENE_MAP
from depthjepa.guidance.config import PixelGuidance
from depthjepa.runs import Run

PIXEL_HEAD = Need(
    lambda config, train, val: config.guidance.kind == "pixel",
    lambda data: "reads a pixel head: it needs guidance.kind=pixel",
    of_data=False,
)
PREDICTED = Column(
    "predicted_r2_within",
    "R² within images, predicted tokens",
    "the first figure where the head reads predicted tokens instead of the whole image's",
    better="higher",
)


def run(subject: Subject) -> Iterable[Probe]:
    """The maps of the run's own head on the validation images."""
    config, saved, train, val = subject.config, subject.saved, subject.train, subject.val
    assert saved is not None
    found = decode_tables(config, saved, train, val, subject.device)
    guidance = saved.config.guidance
    assert isinstance(guidance, PixelGuidance)
    read = "predicted tokens" if guidance.read == "predicted" else "the tokens of the whole image"
    hidden = "pixels of target patches" if guidance.scope == "target" else "all pixels"
    protocol = f"the run's own head from {read}{f' on {hidden}' if guidance.read == 'predicted' else ''}"
    if guidance.read != "dense":
        protocol += f"; predicted tokens under masks as in training, judged on {hidden}"
    protocol += f"; {whole_views_text(train, val)}"
    yield Probe(tables(TASK, protocol, found), map_arrays(found[-1], config.name))


def decoded_figures(runs: Sequence[Run], images: int = PICTURES) -> list[Captioned]:
    """Ground truth, the map that each pixel-guided run decodes, and the mean map."""
    seen = (
        "Each row is one image that no run was trained on. The ground truth and what each run's own head decodes are "
        "coloured by disparity (bright is near), all on the one scale of the row. Grey in the ground truth is "
        "without a measurement, or not judged (with scope `target` the head answers for hidden patches alone); "
        "grey in the maps is where no training image had a measurement."
    )
    failed = "a run's panels would look like the mean map, the average of the training set, in every row."
    return map_figures(runs, TASK.name, seen, failed, images=images)


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps of `probe RUN decode` side by side."""
    return show_maps(TASK.name, runs, photographs)


TASK = OwnTask(
    name="decode",
    title="Depth as the run's own head decodes it",
    about="the depth that a pixel-guided run's own head gives",
    columns=(*COLUMNS, PREDICTED),
    guesses=(MEAN_MAP, SCENE_MAP),
    reads_run=True,
    needs=(DEPTH, PIXEL_HEAD),
    section=Section("Depth as a run's own head decodes it", decoded_figures, maps=True),
    picture=Picture("maps of `probe RUN decode`", show, photographs=True),
    run=run,
)
