"""An encoder that is published on a hub is the run's own, and its card says what the run's tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from depthjepa import cost
from depthjepa.backbones.opening import load_encoder
from depthjepa.formats.opening import snapshot
from tiny_hub import hub_of
from tiny_images import write_pairs
from tiny_runs import GUIDED, Call, run

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("push")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        run(write_pairs(place / "pairs", 12, 6), place / "run", *GUIDED, "train.steps=2")
    table = {
        "task": "depth",
        "data": "pairs",
        "protocol": "as planted",
        "columns": [
            {"key": "r2_within", "label": "R² within images", "unit": "", "better": "higher"},
            {"key": "absrel", "label": "AbsRel", "unit": "", "better": "lower"},
            {"key": "empty", "label": "Nothing", "unit": "", "better": "lower"},
        ],
        "rows": [
            {"name": "mean map", "r2_within": 0.0, "absrel": 0.5, "empty": 0.25},
            {"name": "scene map", "r2_within": None, "absrel": None},
            {"name": "random encoder", "r2_within": 0.25, "absrel": 0.375},
            {"name": "run", "r2_within": 0.125, "absrel": 0.25},
        ],
    }
    (place / "run" / "probes").mkdir(exist_ok=True)
    (place / "run" / "probes" / "depth.json").write_text(json.dumps(table))
    return place / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that a stand-in of the hub serves; somebody is logged in."""
    (tmp_path / "hub").mkdir()
    with hub_of(tmp_path / "hub") as address:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            tail = "" if name == "ENDPOINT" else "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", address + tail)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_somebody")
        snapshot.cache_clear()
        yield tmp_path / "hub"
    snapshot.cache_clear()


def test_what_is_pushed_is_loaded_by_its_name_and_is_the_run_s_encoder(trained: Path, hub: Path, call: Call) -> None:
    status, said, errors = call("push", trained, "somebody/streets", "--licence", "apache-2.0")
    assert status == 0, errors
    written = {path.relative_to(hub / "somebody/streets").as_posix() for path in hub.rglob("*") if path.is_file()}
    assert written >= {"README.md", "config.yaml", "config.json", "model.safetensors", "probes/depth.json"}
    assert "somebody/streets" in said
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    own, published = load_encoder(trained), load_encoder("somebody/streets")
    assert torch.equal(own(own.normalise(images)), published(published.normalise(images)))


def test_the_card_has_the_run_s_figures_beside_their_baselines(trained: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "card"
    status, said, errors = call("push", trained, "somebody/streets", "--licence", "cc-by-nc-4.0", "--out", out)
    assert status == 0, errors
    assert "nothing was sent" in said
    _, facts, text = (out / "README.md").read_text().split("---\n", 2)
    known = yaml.safe_load(facts)
    assert (known["license"], known["library_name"]) == ("cc-by-nc-4.0", "depthjepa")
    (figure,) = known["model-index"][0]["results"][0]["metrics"]
    assert (figure["type"], figure["value"]) == ("depth.r2_within", 0.125)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    name = next(row[0] for row in rows if row[1:] == ["0.125", "0.250"])
    assert rows == [
        ["", "R² within images ↑", "AbsRel ↓"],
        ["---", "--:", "--:"],
        ["mean map", "0.000", "0.500"],
        ["random encoder", "0.250", "0.375"],
        [name, "0.125", "0.250"],
    ]
    assert "In R² within images (depth, pairs) it is not better than random encoder." in text
    assert "2 steps" in text and "12 images" in text and "guided by" in text
    assert 'load_encoder("somebody/streets")' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody", "--licence", "mit"), "nobody is no name of a model on a hub: give OWNER/NAME"),
        (("a/b/c", "--licence", "mit"), "is no name of a model on a hub"),
    ],
)
def test_what_cannot_be_published_is_said_in_one_line(
    words: tuple[str, ...], said: str, trained: Path, call: Call
) -> None:
    status, _, errors = call("push", trained, *words)
    assert status == 2 and said in errors and "Traceback" not in errors


def test_without_a_network_it_is_one_line(trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise type("ConnectError", (Exception,), {"__module__": "httpx"})("[Errno 111] Connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    status, _, errors = call("push", trained, "somebody/streets", "--licence", "mit")
    assert status == 2 and "somebody/streets was not published: [Errno 111] Connection refused" in errors
    assert "Traceback" not in errors


def test_a_hub_that_refuses_is_one_line(trained: Path, hub: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None, raising=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    status, _, errors = call("push", trained, "somebody/streets", "--licence", "mit")
    assert status == 2 and "somebody/streets was not published: " in errors and "Traceback" not in errors
    assert not any(hub.iterdir())
