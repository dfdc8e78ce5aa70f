"""A cache holds what the teacher said of whole images, gives crops of it, survives kills and refuses what it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from depthjepa import cost
from depthjepa.commands import teach as teaching
from depthjepa.config.run_config import RunConfig
from depthjepa.data.config import DataConfig
from depthjepa.data.loading import TrainingBatches, open_source, view_batches
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Description
from depthjepa.guidance.teachers import cache_files
from depthjepa.guidance.teachers.cache import CachedTeacher, cut, fingerprint, open_cache
from depthjepa.logbook import RunFolder
from depthjepa.losses import Latents
from tiny_images import picture, save, write_classes, write_flat, write_pairs
from tiny_runs import run, tiny

SIZE = 64
SETTINGS = ("guidance.kind=feature", "guidance.teacher=huggingface", f"guidance.teacher_size={SIZE}")


class MeanColours:
    """A teacher whose latents are the mean colours of their cells: of a crop they are the whole image's, resampled."""

    def __init__(self, killed_after: int | None = None) -> None:
        self.seen, self._killed_after = 0, killed_after
        self.sizes: set[tuple[int, int]] = set()

    def describe(self) -> Description:
        return Description("colours", 3, 8, "", "undirected", stochastic=False, needs_depth=False)

    def to(self, device: torch.device) -> MeanColours:
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        self.seen += len(batch.images)
        self.sizes.add((batch.images.shape[-2], batch.images.shape[-1]))
        if self._killed_after is not None and self.seen > self._killed_after:
            raise KeyboardInterrupt
        values = adaptive_avg_pool2d(batch.images, cells)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    monkeypatch.setattr(cache_files, "TOGETHER", 8)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MeanColours]:
    """Run `teach` with the teacher above; returns the teacher."""

    def taught(config: RunConfig, out: Path, killed_after: int | None = None) -> MeanColours:
        teacher = MeanColours(killed_after)
        monkeypatch.setattr(teaching, "load_network", lambda guidance: teacher)
        teaching.teach(config, out, say=lambda _: None)
        return teacher

    return taught


def content(folder: Path) -> dict[str, bytes]:
    """All of a cache, without what a kill may leave."""
    files = [folder / "cache.json", *folder.rglob("*.bin")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


Taught = Callable[..., MeanColours]


def test_the_cache_holds_the_latents_of_whole_images_of_both_splits(tmp_path: Path, taught: Taught) -> None:
    root = write_classes(tmp_path / "classes", 5)
    taught(tiny(root, *SETTINGS), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert cache.facts.images == 20 and cache.facts.shape == (3, 8, 8)
    parts = sorted((tmp_path / "cache" / "parts").iterdir())
    assert [file.name for file in parts] == ["000000.bin", "000001.bin", "000002.bin"]
    assert [file.stat().st_size for file in parts] == [images * 3 * 8 * 8 * 2 + 8 for images in (8, 8, 4)]
    for split in ("train", "val"):
        source = open_source(DataConfig(root=str(root)), split)
        for batch in view_batches(source, (SIZE, SIZE)):
            expected = MeanColours().batch_latents(batch, (8, 8)).values
            torch.testing.assert_close(cache.read(batch.names), expected, atol=1e-3, rtol=0)


def test_crops_are_cut_where_they_lie(tmp_path: Path, taught: Taught) -> None:
    """The latents of crops, mirrored ones among them, are those that the teacher gives of the crops themselves."""
    root = write_pairs(tmp_path / "pairs")
    config = tiny(root, *SETTINGS, "guidance.teacher_size=256", "data.crop_scale=[0.3,0.6]")
    taught(config, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert cache.facts.crops is not None
    assert cache.facts.crops["correlation"] > 0.95 and cache.facts.crops["difference"] < 0.3
    source = open_source(config.data, "train")
    batch = next(
        iter(TrainingBatches(source=source, data=config.data, masks=None, grid=(6, 6), seed=0, batch_size=24, steps=1))
    )
    assert batch.mirrored is not None and 4 < int(batch.mirrored.sum()) < 20
    own = MeanColours().batch_latents(batch, (12, 12)).values
    ours = CachedTeacher(cache).batch_latents(batch, (12, 12)).values
    unmirrored = CachedTeacher(cache).batch_latents(replace(batch, mirrored=~batch.mirrored), (12, 12)).values
    assert (own - ours).square().mean() < 0.1 * (own - unmirrored).square().mean()


def test_latents_finer_than_a_cell_are_kept_by_the_cell(
    tmp_path: Path, taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers for each pixel takes as much of the disk as one that answers for 8 x 8."""
    monkeypatch.setattr(
        MeanColours, "batch_latents", lambda self, batch, cells: Latents(batch.images, batch.images > 0)
    )
    taught(tiny(write_flat(tmp_path / "flat", 9), *SETTINGS), tmp_path / "cache")
    assert open_cache(tmp_path / "cache").facts.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("size", "seen", "kept"),
    [
        ("long:64", {(64, 32), (32, 64), (64, 64)}, (8, 8)),
        ("[32,64]", {(32, 64)}, (4, 8)),
        ("64", {(64, 64)}, (8, 8)),
    ],
)
def test_the_teacher_sees_images_in_their_own_proportions(
    tmp_path: Path, taught: Taught, size: str, seen: set[tuple[int, int]], kept: tuple[int, int]
) -> None:
    """Crops of images of all proportions are cut where they lie, however the teacher saw the whole."""
    for number, sides in enumerate([(80, 160), (160, 80), (96, 96)] * 6):
        save(tmp_path / "flat" / f"{number:02}.png", smooth(number, *sides))
    config = tiny(tmp_path / "flat", *SETTINGS, f"guidance.teacher_size={size}", "data.crop_scale=[0.5,1.0]")
    teacher = taught(config, tmp_path / "cache")
    assert teacher.sizes - {config.data.size} == {each for each in seen if each != config.data.size}
    cache = open_cache(tmp_path / "cache")
    assert cache.facts.shape == (3, *kept)
    assert all(np.isfinite(cache.part(part)).all() for part in range(cache.facts.parts))
    assert cache.facts.crops is not None and cache.facts.crops["correlation"] > 0.97
    if size != "64":
        before = content(tmp_path / "cache")
        teaching.teach(config, tmp_path / "cache", say=lambda _: None)  # the same size, as it is read from the file
        assert content(tmp_path / "cache") == before


def smooth(number: int, height: int, width: int) -> np.ndarray:
    """A picture of large blots: what is resampled stays what it was."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(number))
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (255 * pixels).byte().permute(1, 2, 0).numpy()


def test_a_cut_of_whole_cells_is_those_cells() -> None:
    whole = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[2 / 8, 3 / 10, 4 / 8, 5 / 10]] * 2)
    found = cut(whole, boxes, torch.tensor([False, True]), (4, 5))
    torch.testing.assert_close(found[0], whole[0, :, 2:6, 3:8])
    torch.testing.assert_close(found[1], whole[1, :, 2:6, 3:8].flip(-1))
    everything = cut(whole, torch.tensor([[0.0, 0, 1, 1]] * 2), torch.tensor([False, False]), (8, 10))
    torch.testing.assert_close(everything, whole)


def test_a_killed_cache_goes_on_and_repeats_no_part(tmp_path: Path, taught: Taught) -> None:
    config = tiny(write_flat(tmp_path / "flat", 50), *SETTINGS)
    taught(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        taught(config, tmp_path / "cut", killed_after=30)
    with pytest.raises(BadInput, match="is not complete: 4 of 7 parts are to be computed yet"):
        open_cache(tmp_path / "cut")
    again = taught(config, tmp_path / "cut")
    assert again.seen == (50 - 24) + 50  # the comparison at the end has crops of its own
    assert content(tmp_path / "whole") == content(tmp_path / "cut")
    assert taught(config, tmp_path / "cut").seen == 0


def test_processes_of_torchrun_write_the_cache_of_one(
    tmp_path: Path, taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(write_flat(tmp_path / "flat", 50), *SETTINGS)
    taught(config, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        taught(config, tmp_path / "three", killed_after=1)
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        taught(config, tmp_path / "three")
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_an_image_that_cannot_be_read_has_no_latents(tmp_path: Path, taught: Taught) -> None:
    root = write_flat(tmp_path / "flat", 9)
    for name in ("0000.png", "0004.png", "0008.png"):  # the last is the only one of its part
        (root / name).write_bytes(b"torn")
    taught(tiny(root, *SETTINGS), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert (
        cache.read(["0000.png", "0004.png", "0008.png"]).isnan().all()
        and cache.read(["0003.png", "0005.png"]).isfinite().all()
    )


def test_a_run_learns_from_a_cache_without_the_network_and_resumes(tmp_path: Path, taught: Taught) -> None:
    root = write_flat(tmp_path / "flat", 24, size=64)
    settings = (*SETTINGS, "train.steps=60", "optim.lr=2e-2", f"guidance.cache={tmp_path / 'cache'}")
    taught(tiny(root, *SETTINGS), tmp_path / "cache")
    summary = run(root, tmp_path / "run", *settings)
    records = RunFolder(tmp_path / "run").metrics()
    assert records[-1]["loss_depth"] < min(0.75 * summary["depth_floor"], records[0]["loss_depth"])
    assert (tmp_path / "run" / "figures" / "guidance.npz").is_file()
    # Subsets and another order of the same data find their images by name.
    subset = write_flat(tmp_path / "subset", 8, size=64)
    run(subset, tmp_path / "other", *settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("guidance.teacher_size=128",), "another teacher or size: size=64 there and 128 here"),
        (("guidance.teacher_size=[64,128]",), r"another teacher or size: size=64 there and \[64, 128\] here"),
        (("guidance.teacher=depthfm",), "another teacher or size: teacher=huggingface there and depthfm here"),
        (("guidance.teacher_output=features",), "teacher_output=depth there and features here"),
    ],
)
def test_a_cache_of_another_teacher_is_refused_before_training(
    tmp_path: Path, taught: Taught, settings: tuple[str, ...], said: str
) -> None:
    root = write_flat(tmp_path / "flat", 9)
    taught(tiny(root, *SETTINGS), tmp_path / "cache")
    with pytest.raises(BadInput, match=said):
        run(root, tmp_path / "run", *SETTINGS, "train.steps=1", f"guidance.cache={tmp_path / 'cache'}", *settings)
    assert not (tmp_path / "run").exists()


def test_caches_at_fault_are_refused_before_training(tmp_path: Path, taught: Taught) -> None:
    root, cache = write_flat(tmp_path / "flat", 17), tmp_path / "cache"
    settings = (*SETTINGS, "train.steps=1", f"guidance.cache={cache}")

    def fault() -> str:
        with pytest.raises(BadInput) as found:
            run(root, tmp_path / "run", *settings)
        assert not (tmp_path / "run").exists()
        return str(found.value)

    assert "is no cache of latents: cache.json is not there" in fault()
    taught(tiny(root, *SETTINGS), cache)
    save(root / "new.png", picture(3, 16, 16))
    assert "lacks 1 of 18 images, such as new.png" in fault()
    (root / "new.png").unlink()
    part, names = cache / "parts" / "000001.bin", (cache / "names.bin").read_bytes()
    latents = part.read_bytes()
    part.write_bytes(latents[:-2])
    assert f"{part} has {len(latents) - 2} of {len(latents)} bytes: images 8 to 15 of the cache are damaged" in fault()
    part.write_bytes(b"\0\0" + latents[2:])
    assert f"{part} does not have the checksum that was written: images 8 to 15 of the cache are damaged" in fault()
    part.write_bytes(latents)
    (cache / "names.bin").write_bytes(names[:-2])
    assert f"names.bin has {len(names) - 2} of {len(names)} bytes: the cache is truncated" in fault()
    (cache / "cache.json").write_text('{"format": 1}')
    assert "does not describe a cache of latents" in fault()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, taught: Taught) -> None:
    root = write_flat(tmp_path / "flat", 9)
    config = tiny(root, *SETTINGS)
    with pytest.raises(BadInput, match="is there already and holds no cache"):
        taught(config, root)
    taught(config, tmp_path / "cache")
    with pytest.raises(BadInput, match="holds latents of another teacher or size: size=64 there and 128 here"):
        taught(tiny(root, *SETTINGS, "guidance.teacher_size=128"), tmp_path / "cache")
    with pytest.raises(BadInput, match="holds latents of other images"):
        taught(tiny(write_flat(tmp_path / "other", 10), *SETTINGS), tmp_path / "cache")


def test_depth_files_need_no_cache(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the depth teacher needs no cache"):
        teaching.teach(tiny(write_pairs(tmp_path / "pairs", 3, 2), "guidance.kind=feature"), tmp_path / "cache")


def test_weights_are_told_apart_by_their_content(tmp_path: Path) -> None:
    for name, byte in (("one", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(byte * 300_000)
    one, same, other = (fingerprint(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert fingerprint("depth-anything/Depth-Anything-V2-Small-hf") == "depth-anything/Depth-Anything-V2-Small-hf"
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no weights"):
        fingerprint(str(tmp_path / "empty"))


@pytest.mark.slow
def test_two_processes_and_a_network_of_transformers_by_the_command_line(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=24,
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=8,
            head_hidden_size=8,
            initializer_range=0.2,
        )
    )
    network.save_pretrained(tmp_path / "network")
    root = write_classes(tmp_path / "classes", 40)
    given = ["--data", str(root), "--teacher", "huggingface", f"guidance.teacher_checkpoint={tmp_path / 'network'}"]
    given += ["guidance.teacher_size=112", "data.image_size=48", "model.patch_size=8", "train.threads=1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for start, name in (([sys.executable], "one"), (launcher, "two")):
        command = [*start, "-m", "depthjepa", "teach", *given, "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (open_cache(tmp_path / name) for name in ("one", "two"))
    for part in range(one.facts.parts):
        np.testing.assert_allclose(one.part(part), two.part(part), atol=2e-3)
    assert np.array_equal(one.names, two.names) and one.facts.made_of == two.facts.made_of
    run(
        root,
        tmp_path / "run",
        *SETTINGS,
        "guidance.teacher_size=112",
        "train.steps=2",
        f"guidance.cache={tmp_path / 'two'}",
    )


@pytest.mark.parametrize(
    ("correlation", "said"),
    [
        (0.95, "close: they share 90% "),
        (0.8, "usable: they share 64% "),
        (0.5, "far off: they share 25% "),
        (-0.9, "far off: they share 0% "),
    ],
)
def test_the_correlation_of_a_cache_has_a_verdict(correlation: float, said: str) -> None:
    assert teaching.verdict(correlation).startswith(said)


def test_the_estimate_adds_a_teacher_that_is_asked_and_not_one_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    config = tiny(write_classes(tmp_path / "classes", 5), *SETTINGS, "guidance.cache=latents", "train.steps=1")
    lines = [
        cost.estimate(replace(config, guidance=guidance), MeanColours(), 1, 1, torch.device("cpu"), 1)
        for guidance in (config.guidance, replace(config.guidance, cache=None))
    ]
    assert all(line.startswith("estimate: 1 steps") for line in lines)
    assert ["the time of the teacher comes on top" in line for line in lines] == [False, True]
