"""What comes in kinds is one row and one file: its name, as a quoted string, stands nowhere else in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from depthjepa.backbones import opening
from depthjepa.backbones.opening import Backbone, Family, Source, load_encoder, open_backbone
from depthjepa.backbones.table import BACKBONES
from depthjepa.config.run_config import RunConfig
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.evaluation.probes.table import TASKS
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.kinds import Row, Table
from depthjepa.loggers.table import LOGGERS
from depthjepa.model.encoder import Encoder
from depthjepa.model.heads.table import LATENT_HEADS, PIXEL_HEADS
from depthjepa.model.vit import VisionTransformer
from tiny_images import write_flat
from tiny_runs import Call, run

PACKAGE = Path(__file__).parents[1] / "src" / "depthjepa"
TABLES = {  # by what they hold and where they are, below the package
    ("teacher", "guidance/teachers/table.py"): TEACHERS,
    ("layout", "data/layouts/table.py"): LAYOUTS,
    ("backbone", "backbones/table.py"): BACKBONES,
    ("logger", "loggers/table.py"): LOGGERS,
    ("head", "model/heads/table.py"): LATENT_HEADS,
    ("pixel head", "model/heads/table.py"): PIXEL_HEADS,
}
PROBES = PACKAGE / "evaluation" / "probes"

# The same word for something else: (name, file that may say it) -> what it means there.
HOMONYMS = {
    ("depth", "checkpoints/foreign.py"): "blocks of a network",
    ("depth", "evaluation/pictures.py"): "metres of images",
    ("depth", "report/explorer.py"): "metres of images",
    ("depth", "cli/preparing.py"): "metres in a file",
    ("depth", "config/reading.py"): "blocks of a network",
    ("depth", "data/layouts/rgbd.py"): "a folder of depth maps",
    ("depth", "data/hub/table.py"): "a column of a table",
    ("depth", "data/pairing.py"): "the same folder",
    ("depth", "data/depth_files.py"): "a channel of a file",
    ("depth", "data/pixel_maps.py"): "what messages call metres",
    ("depth", "data/prepare/realsense.py"): "a folder of depth maps",
    ("depth", "data/prepare/zed.py"): "the beginning of a file's name",
    ("depth", "data/prepare/record3d.py"): "a folder of depth maps",
    ("depth", "evaluation/depth_cells.py"): "what messages call metres",
    ("depth", "formats/timm.py"): "blocks of a network",
    ("depth", "guidance/config.py"): "what a network gives, beside features",
    ("depth", "guidance/teachers/depthfm/network.py"): "what a network gives, beside features",
    ("depth", "guidance/teachers/depthfm/tiny.py"): "what a network gives, beside features",
    ("depth", "guidance/teachers/transformers_depth.py"): "what a network gives, beside features",
    ("depth", "guidance/teachers/onnx_depth.py"): "an output of a network",
    ("depth", "guidance/teachers/ground_truth.py"): "the teacher, where the probe is meant",
    ("depth", "guidance/teachers/table.py"): "the teacher, where the probe is meant",
    ("depth", "evaluation/probes/depth.py"): "the probe, where the teacher is meant",
    ("depth", "model/supervised.py"): "a head",
    ("depth", "report/page.py"): "blocks of a network",
    ("depth", "warm_start.py"): "blocks of a network",
    ("vit", "formats/transformers.py"): "a type of transformers' models",
    ("timm", "commands/written/table.py"): "a layout that is written",
    ("timm", "commands/written/timm.py"): "a layout that is written",
    ("timm", "formats/timm.py"): "a layout",
    ("onnx", "commands/written/table.py"): "a layout that is written",
    ("onnx", "commands/written/onnx.py"): "a layout that is written",
    ("onnx", "backbones/table.py"): "the backbone, where the teacher is meant",
    ("onnx", "guidance/teachers/table.py"): "the teacher, where the backbone is meant",
    ("transformers", "guidance/teachers/table.py"): "what people call its depth networks",
    ("vit", "backbones/transformers.py"): "a class of transformers",
    ("depthfm", "guidance/teachers/depthfm/network.py"): "the network itself, in the family's own folder",
    ("labelled", "data/prepare/labels.py"): "pixels that have a class",
    ("scenes", "data/prepare/nyuv2.py"): "a key of the official file",
    ("knn", "evaluation/__init__.py"): "a public function",
    ("linear", "evaluation/__init__.py"): "a public function",
    ("attentive", "evaluation/__init__.py"): "a public function",
    ("diagnose", "evaluation/__init__.py"): "a public function",
    ("linear", "config/run_config.py"): "a readout of the depth probe",
    ("linear", "evaluation/depth_readouts.py"): "a readout of the depth probe",
    ("linear", "evaluation/segmentation.py"): "a readout of the segmentation probe",
    ("linear", "guidance/config.py"): "a head",
    ("linear", "model/heads/table.py"): "a head",
    ("mlp", "model/heads/table.py"): "a head",
    ("linear", "evaluation/probes/linear.py"): "a probe",
    ("mlp", "evaluation/probes/mlp.py"): "a probe",
    ("dpt", "config/run_config.py"): "a readout of the depth probe",
    ("dpt", "evaluation/depth_readouts.py"): "a readout of the depth probe",
    ("dpt", "guidance/teachers/table.py"): "a depth network",
    ("dpt", "guidance/teachers/transformers_families.py"): "a depth network",
    ("linear", "method.py"): "a head",
    ("mlp", "guidance/config.py"): "a head",
    ("diagnose", "__init__.py"): "a public function",
    ("diagnose", "commands/diagnose.py"): "the command",
    ("diagnose", "evaluation/probes/guidance.py"): "the command",
    ("diagnose", "evaluation/probes/task.py"): "the command",
    ("guidance", "config/reading.py"): "a part of the configuration",
    ("guidance", "evaluation/probes/running.py"): "a part of the configuration",
    ("guidance", "config/old_keys.py"): "a part of the configuration",
    ("guidance", "evaluation/pictures.py"): "arrays that a run leaves behind",
    ("guidance", "report/sections.py"): "arrays that a run leaves behind",
}


def homes() -> dict[tuple[str, str], tuple[Path, ...]]:
    """Files that may bear a name: its own (or the folder of a family of files), and its table."""
    found = {}
    for (what, place), table in TABLES.items():
        for row in table.rows:
            own = PACKAGE / (row.module.replace(".", "/") + ".py")
            found[what, row.name] = own, PACKAGE / place
    for task in TASKS:
        name = next(file for file in PROBES.glob("*.py") if f'name="{task.name}"' in file.read_text())
        found["probe", task.name] = name, PROBES / "table.py"
    return found


def quoted(file: Path) -> set[str]:
    """All whole string constants of a file."""
    tree = ast.parse(file.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


STRINGS = {file: quoted(file) for file in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize(("what", "name"), homes())
def test_a_kind_is_named_in_its_own_file_and_in_its_table_alone(what: str, name: str) -> None:
    own = homes()[what, name]
    elsewhere = {
        file.relative_to(PACKAGE).as_posix() for file, strings in STRINGS.items() if name in strings and file not in own
    }
    assert {place for place in elsewhere if (name, place) not in HOMONYMS} == set()


def test_every_homonym_is_one() -> None:
    """A name that no file says any more leaves the list."""
    assert [place for place in HOMONYMS if place[0] not in STRINGS[PACKAGE / place[1]]] == []


class Turned(VisionTransformer):
    """An encoder of somebody else's."""

    def forward(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return -super().forward(images, keep)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of ours, and a family that claims what is called `turned:RUN`."""
    out = tmp_path / "run"
    run(write_flat(tmp_path / "flat", 9, 56), out, "train.steps=1")
    known = opening.BACKBONES.load("vit")

    def named(path: str) -> Source:
        return Source(path, Path(path))

    class Opened:
        def __init__(self, backbone: Backbone) -> None:
            self.saved, self.config, self.assumed = backbone.saved, backbone.config, ()
            self.found, self._of = "an encoder that is turned", backbone

        def which(self, wanted: str) -> str:
            return "target"

        def random(self, config: RunConfig) -> Encoder | None:
            return self._of.random(config)

        def encoder(self, which: str) -> VisionTransformer:
            encoder = self._of.encoder(which)
            encoder.__class__ = Turned
            return encoder

    turned = Family(
        claims=lambda source: source.name.startswith("turned:"),
        open=lambda source, settings: Opened(known.open(named(source.name.removeprefix("turned:")), settings)),
    )
    rows = (Row("turned", "turned:RUN", "nowhere"), *BACKBONES.rows)
    monkeypatch.setattr(opening, "BACKBONES", Table("backbone family", "FAMILY", rows))
    monkeypatch.setattr(Table, "load", lambda table, name: turned if name == "turned" else known)
    return out


def test_a_row_is_all_that_a_family_of_backbones_needs(planted: Path, tmp_path: Path, call: Call) -> None:
    images = torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(load_encoder(f"turned:{planted}")(images), -load_encoder(planted)(images))
    status, out, said = call("embed", f"turned:{planted}", tmp_path / "flat", "--out", tmp_path / "turned.npz")
    assert (status, said) == (0, f"turned:{planted}: an encoder that is turned; taken: target encoder\n"), out


def test_what_no_family_claims_is_refused_by_the_last_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no checkpoint"):
        open_backbone(tmp_path / "gone.pt")
