"""A run that starts from a checkpoint has its networks, learns with the head alone while frozen, and never forgets."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa import cost, distributed, training
from depthjepa.backbones.opening import load_encoder
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.commands.convert import convert
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.loading import open_source, open_splits
from depthjepa.data.samples import Batch
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import Subject
from depthjepa.faults import BadInput, RunStopped
from depthjepa.grid import to_map
from depthjepa.logbook import RunFolder
from depthjepa.method import build_encoder, build_method, build_teacher
from depthjepa.model.vit import stretch
from depthjepa.run import beginning
from depthjepa.run.state import freeze_or_thaw
from tiny_images import write_pairs
from tiny_runs import GUIDED, differences, metrics, run, same_losses, tiny, weights

AT_64 = (*GUIDED, "data.image_size=64", "seed=1")  # of another seed than the run it starts from
NETWORKS = ("context_encoder", "target_encoder", "predictor")
FROZEN = ("init.frozen_steps=3", "train.steps=6", "optim.lr=1e-2", "optim.start_lr=1e-2", "optim.momentum=0.5")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True, scope="module")
def quick_estimate() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        yield


@pytest.fixture(scope="module")
def origin(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 64 px whose encoders differ, and whose tables of positions are no longer those that are built."""
    folder = tmp_path_factory.mktemp("origin") / "run"
    run(pairs, folder, *GUIDED, "data.image_size=64", "train.steps=3", "optim.lr=1e-2", "optim.momentum=0.5")
    content, generator = weights(folder), torch.Generator().manual_seed(0)
    for key, value in content["model"].items():
        if key.endswith("pos_embed"):
            content["model"][key] = torch.randn(value.shape, generator=generator)
    torch.save(content, folder / "checkpoints" / "last.pt")
    return folder


@pytest.fixture(scope="module")
def layouts(origin: Path, pairs: Path) -> dict[str, Path]:
    """The networks of `origin` in every layout, and a run of one encoder."""
    place = origin.parent
    paths = {"run": origin, "file": origin / "checkpoints" / "last.pt"}
    for to, name, which in (
        ("reference", "origin.pth.tar", "target"),
        ("hf", "hf", "target"),
        ("timm", "timm", "context"),
        ("safetensors", "origin.safetensors", "target"),
    ):
        paths[to] = place / name
        convert(str(origin), paths[to], to, which)
    paths["twice"] = place / "twice.pth.tar"  # of one encoder, which the layout holds as both
    convert(str(paths["hf"]), paths["twice"], "reference", settings=["model.heads=2"])
    paths["supervised"] = place / "supervised"
    run(pairs, paths["supervised"], "train.objective=supervised", "data.image_size=64", "train.steps=1")
    return paths


# What stands for the context encoder, the target encoder and the predictor in each layout.
BOTH = ("context encoder as context encoder", "target encoder as target encoder")
ONE = "starts at random: the checkpoint holds none"
TAKEN = {
    "run": ("context", "target", "taken as well"),
    "file": ("context", "target", "taken as well"),
    "reference": ("context", "target", "taken as well"),
    "hf": ("target", "target", ONE),
    "timm": ("context", "context", ONE),
    "safetensors": ("target", "target", ONE),
}


def prepared(root: Path, out: Path, *overrides: str) -> tuple[Any, list[str]]:
    """The state of step 0, and what was said."""
    config, said = tiny(root, "train.steps=2", *overrides), list[str]()
    data = open_splits(config.data)
    state = beginning.begin(config, RunFolder(out), data, distributed.Ranks(), resume=False, say=said.append)
    return state, said


def step(state: Any) -> dict[str, Any]:
    """Make one update."""
    source = open_source(state.config.data, "train")
    figures: dict[str, Any] = training.train_step(state, [next(iter(training.training_batches(state, source)))])
    return figures


def part(model: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A copy of one network's tensors; there must be some, for none would equal none."""
    found = {key.removeprefix(name + "."): value.clone() for key, value in model.items() if key.startswith(name + ".")}
    assert found, f"no tensor of {name}"
    return found


def moved(target: dict[str, Tensor], context: dict[str, Tensor], momentum: float) -> dict[str, Tensor]:
    """The moving average, written out: positions are buffers and stay."""
    return {
        key: value if key == "pos_embed" else momentum * value + (1 - momentum) * context[key]
        for key, value in target.items()
    }


# frozen steps


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """All weights before the first step and after each one, of the runs made in a test."""
    taken: list[dict[str, Tensor]] = []
    update = training.train_step

    def watched(state: Any, parts: list[Batch]) -> dict[str, Any]:
        if not taken:
            taken.append({key: value.clone() for key, value in state.method.state_dict().items()})
        figures: dict[str, Any] = update(state, parts)
        taken.append({key: value.clone() for key, value in state.method.state_dict().items()})
        return figures

    monkeypatch.setattr(training, "train_step", watched)
    return taken


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_while_frozen_the_head_alone_learns_and_then_everything_does(
    pairs: Path, origin: Path, tmp_path: Path, snapshots: list[dict[str, Tensor]], from_checkpoint: bool
) -> None:
    # A decay this strong would show in every weight that it touched.
    settings = (*AT_64, *FROZEN, "optim.weight_decay=0.5", "optim.final_weight_decay=0.5")
    begin = (f"init.checkpoint={origin}",) if from_checkpoint else ()
    run(pairs, tmp_path / "run", *settings, *begin)
    initial = weights(origin)["model"] if from_checkpoint else fresh(tiny(pairs, *settings))
    assert len(snapshots) == 7
    for name in NETWORKS:
        for snapshot in snapshots[:4]:
            assert differences(part(initial, name), part(snapshot, name)) == []
    for before, after in pairwise(snapshots):
        assert all(not torch.equal(before[key], after[key]) for key in before if key.startswith("guide."))
    frozen, thawed = snapshots[3], snapshots[4]
    for key, value in frozen.items():
        assert torch.equal(value, thawed[key]) is key.endswith("pos_embed"), key
    # If the target had crept towards the context before, that would show here as well.
    expected = moved(part(initial, "target_encoder"), part(thawed, "context_encoder"), momentum=0.5 + 3 * 0.5 / 6)
    for key, value in part(thawed, "target_encoder").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def fresh(config: RunConfig) -> dict[str, Tensor]:
    """The networks of a guided run at their initial weights."""
    return build_method(config, build_teacher(config, has_depth=True), classes=0).state_dict()


def test_the_optimiser_of_what_was_frozen_starts_at_the_thaw(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "run", *GUIDED, *FROZEN)
    optimizer = weights(tmp_path / "run")["optimizer"]
    steps = {
        name: int(optimizer["state"][number]["step"])
        for group in optimizer["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
    }
    assert {name.split(".")[0] for name in steps} == {"context_encoder", "predictor", "guide"}
    assert {name: 6 if name.startswith("guide.") else 3 for name in steps} == steps


def test_a_run_may_stay_frozen_to_its_end(pairs: Path, tmp_path: Path, snapshots: list[dict[str, Tensor]]) -> None:
    run(pairs, tmp_path / "run", "train.objective=supervised", "init.frozen_steps=9", "train.steps=2")
    last = weights(tmp_path / "run")["model"]
    changed = {key for key in last if not torch.equal(last[key], snapshots[0][key])}
    assert changed == {key for key in last if key.startswith(("guide.", "head."))}


@pytest.mark.slow
def test_a_stopped_run_crosses_the_thaw_as_one_in_one_go(
    pairs: Path, layouts: dict[str, Path], tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    copy = tmp_path / "start.safetensors"
    copy.write_bytes(layouts["safetensors"].read_bytes())
    more = ("optim.layer_decay=0.7", "optim.head_lr=2e-2", "optim.clip=0.5")
    settings = (*AT_64, *FROZEN, *more, f"init.checkpoint={copy}")
    run(pairs, tmp_path / "whole", *settings)
    stops = (2, 3, 4)
    for number in stops:
        stop_after(number)
        with pytest.raises(RunStopped, match=f"stopped at step {number} of 6"):
            run(pairs, tmp_path / f"{number}", *settings)
    stop_after(None)
    copy.unlink()  # a resumed run starts from its own checkpoint
    for number in stops:
        run(pairs, tmp_path / f"{number}", *settings, resume=True)
        assert differences(weights(tmp_path / "whole"), weights(tmp_path / f"{number}")) == []
        assert metrics(tmp_path / "whole") == metrics(tmp_path / f"{number}")


@pytest.mark.slow
def test_two_processes_thaw_as_one_does(pairs: Path, origin: Path, tmp_path: Path) -> None:
    settings = (*AT_64, *FROZEN, "optim.lr=1e-3", "optim.start_lr=1e-3", f"init.checkpoint={origin}")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    work = [(rank, port, tmp_path / "two", pairs, *settings) for rank in (0, 1)]
    processes = [spawn.Process(target=one_of_two, args=arguments, daemon=True) for arguments in work]
    try:
        for process in processes:
            process.start()
        run(pairs, tmp_path / "one", *settings)
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    said = [(tmp_path / f"said-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0].startswith("start from") and said[1] == ""  # one process talks
    assert [record["step"] for record in metrics(tmp_path / "two")] == [1, 2, 3, 4, 5, 6]
    same_losses(tmp_path / "one", tmp_path / "two")
    whole, halves = weights(tmp_path / "one")["model"], weights(tmp_path / "two")["model"]
    for key, value in whole.items():
        torch.testing.assert_close(halves[key], value, rtol=1e-3, atol=1e-5)


def one_of_two(rank: int, port: int, out: Path, root: Path, *settings: str) -> None:
    """Take part in a run as torchrun would make this process do, and keep what is said."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    cost.matmul_rate = lambda *_, **__: 1e11
    said: list[str] = []
    training.train(tiny(root, *settings), out, say=said.append)
    out.with_name(f"said-{rank}.txt").write_text("\n".join(said))


def test_frozen_steps_of_a_run_without_a_head_are_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"init\.frozen_steps=3 trains the head alone, and an unguided run has none"):
        run(pairs, tmp_path / "run", *FROZEN)
    assert not (tmp_path / "run").exists()


def test_the_head_has_its_own_rate_frozen_and_thawed(pairs: Path, tmp_path: Path) -> None:
    settings = (*AT_64, "optim.start_lr=1e-4", "optim.lr=1e-3", "optim.warmup_steps=2", "init.frozen_steps=1")
    state, _ = prepared(pairs, tmp_path, *settings, "optim.head_lr=4e-3", "train.steps=4")
    rates = [1e-4 + (1e-3 - 1e-4) / 2, 1e-3]  # of the first two updates
    for number, rate in enumerate(rates):
        before = part(state.method.state_dict(), "guide")
        assert step(state)["lr"] == pytest.approx(rate)
        for group in state.optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate * (4 if group["role"] == "head" else 1))
        if number == 0:  # Adam's first step is the rate along each weight whose gradient is not lost in eps
            largest = max(
                float((part(state.method.state_dict(), "guide")[key] - before[key]).abs().max()) for key in before
            )
            assert largest == pytest.approx(4 * rate, rel=1e-2)
        state.step += 1
        freeze_or_thaw(state)


# layouts


@pytest.mark.parametrize("layout", TAKEN)
def test_a_run_starts_with_the_networks_of_every_layout(
    pairs: Path, origin: Path, layouts: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    path, (context, target, predictor) = layouts[layout], TAKEN[layout]
    stored = weights(origin)["model"]
    state, said = prepared(pairs, tmp_path, *AT_64, f"init.checkpoint={path}")
    found, own = state.method.state_dict(), fresh(state.config)
    assert differences(part(stored, f"{context}_encoder"), part(found, "context_encoder")) == []
    assert differences(part(stored, f"{target}_encoder"), part(found, "target_encoder")) == []
    assert differences(part(own if predictor == ONE else stored, "predictor"), part(found, "predictor")) == []
    assert differences(part(own, "guide"), part(found, "guide")) == []
    assert state.optimizer.state_dict()["state"] == {} and state.step == 0
    assert said[0] == (
        f"start from {path}: {context} encoder as context encoder, {target} encoder as target encoder; "
        f"predictor {predictor}"
    )
    # What these claims compare does differ.
    assert (
        len(
            {
                float(each["blocks.0.attn.qkv.weight"].sum())
                for each in (
                    part(stored, "context_encoder"),
                    part(stored, "target_encoder"),
                    part(own, "context_encoder"),
                )
            }
        )
        == 3
    )


@pytest.mark.parametrize("layout", [*TAKEN, "twice"])
def test_after_the_start_the_target_is_a_moving_average_and_the_file_stays_as_it_was(
    pairs: Path, layouts: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    path = layouts[layout]
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    settings = (*AT_64, "optim.lr=1e-2", "optim.start_lr=1e-2", "optim.momentum=0.75")
    state, _ = prepared(pairs, tmp_path, *settings, f"init.checkpoint={path}")
    first = {key: value.clone() for key, value in state.method.state_dict().items()}
    step(state)
    last = state.method.state_dict()
    for key, value in last.items():
        assert torch.equal(value, first[key]) is key.endswith("pos_embed"), key
    expected = moved(part(first, "target_encoder"), part(last, "context_encoder"), momentum=0.75)
    for key, value in part(last, "target_encoder").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)
    assert {file: file.read_bytes() for file in files} == before


def test_an_encoder_trained_with_supervision_starts_both_encoders_and_takes_from_both(
    pairs: Path, origin: Path, layouts: dict[str, Path], tmp_path: Path
) -> None:
    state, said = prepared(pairs, tmp_path, *AT_64, f"init.checkpoint={layouts['supervised']}")
    stored, found = weights(layouts["supervised"])["model"], state.method.state_dict()
    for name in ("context_encoder", "target_encoder"):
        assert differences(part(stored, "context_encoder"), part(found, name)) == []
    assert "context encoder as target encoder; predictor starts at random" in said[0]
    settings = ("train.objective=supervised", "data.image_size=64")
    state, said = prepared(pairs, tmp_path, *settings, f"init.checkpoint={origin}")
    stored, found = weights(origin)["model"], state.method.state_dict()
    assert differences(part(stored, "context_encoder"), part(found, "context_encoder")) == []
    assert said[0] == f"start from {origin}: context encoder as context encoder; predictor none needed"


def test_the_random_encoder_of_tables_stays_the_run_s_own(pairs: Path, origin: Path, tmp_path: Path) -> None:
    config = tiny(pairs, *AT_64, f"init.checkpoint={origin}", "train.steps=2")
    own = build_encoder(tiny(pairs, *AT_64))
    assert differences(dict(own.state_dict()), dict(build_encoder(config).state_dict())) == []
    state, _ = prepared(pairs, tmp_path, *AT_64, f"init.checkpoint={origin}")
    named = Subject(config, state.method.encoder, torch.device("cpu")).encoders()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    random = own.eval()(own.normalise(images))
    assert torch.equal(named[RANDOM](images), random)
    assert not torch.allclose(named["tiny"](images), random, atol=0.1)


# other image sizes


def bicubic(table: np.ndarray, here: tuple[int, int]) -> np.ndarray:
    """Keys' cubic convolution (1981) with a = -3/4 at the centres of the new cells, borders repeated: slow and plain.

    [rows, columns, d] to [*here, d].
    """
    a, rows = -0.75, table.astype(np.float64)
    for axis in (0, 1):
        rows = np.moveaxis(rows, axis, 0)
        there, stretched = len(rows), []
        for number in range(here[axis]):
            place = (number + 0.5) * there / here[axis] - 0.5
            total = np.zeros(rows.shape[1:])
            for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                x = abs(place - tap)
                near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
                total += (near if x <= 1 else far) * rows[min(max(tap, 0), there - 1)]
            stretched.append(total)
        rows = np.moveaxis(np.stack(stretched), 0, axis)
    return rows


@pytest.mark.parametrize(("there", "here"), [((8, 8), (12, 12)), ((8, 8), (5, 16)), ((6, 9), (7, 4)), ((3, 5), (3, 5))])
def test_stretching_is_the_cubic_convolution(there: tuple[int, int], here: tuple[int, int]) -> None:
    table = torch.randn(1, there[0] * there[1], 6, generator=torch.Generator().manual_seed(1))
    found = stretch(table, there, here)
    expected = bicubic(table.view(*there, 6).numpy(), here).reshape(1, -1, 6)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "grid"), [("96", (12, 12)), ("[64,96]", (8, 12)), ("[40,64]", (5, 8))])
@pytest.mark.parametrize("layout", ["run", "reference"])
def test_positions_are_stretched_to_the_grid_of_the_run_and_it_trains(
    pairs: Path, origin: Path, layouts: dict[str, Path], tmp_path: Path, layout: str, size: str, grid: tuple[int, int]
) -> None:
    settings = (*AT_64, f"data.image_size={size}", f"init.checkpoint={layouts[layout]}")
    state, said = prepared(pairs, tmp_path, *settings)
    stored, found = weights(origin)["model"], state.method.state_dict()
    assert said[0].endswith(f"; positions stretched from 8 x 8 to {grid[0]} x {grid[1]} patches")
    for key, value in found.items():
        if key.endswith("pos_embed"):
            expected = bicubic(to_map(stored[key], (8, 8))[0].permute(1, 2, 0).numpy(), grid)
            np.testing.assert_allclose(value[0].view(*grid, -1).numpy(), expected, atol=1e-5)
        elif not key.startswith("guide."):
            assert torch.equal(value, stored[key]), key
    assert np.isfinite(float(step(state)["loss"]))


def test_a_file_that_does_not_say_its_sides_has_the_run_s_where_the_patches_are_as_many(
    pairs: Path, tmp_path: Path
) -> None:
    run(pairs, tmp_path / "wide", *GUIDED, "data.image_size=[40,64]", "train.steps=1")
    convert(str(tmp_path / "wide"), tmp_path / "wide.pth.tar", "reference")
    settings = (*AT_64, f"init.checkpoint={tmp_path / 'wide.pth.tar'}")
    state, said = prepared(pairs, tmp_path / "run", *settings, "data.image_size=[40,64]")
    stored, found = weights(tmp_path / "wide")["model"], state.method.state_dict()
    assert differences(part(stored, "target_encoder"), part(found, "target_encoder")) == []
    assert "stretched" not in said[0]
    with pytest.raises(BadInput, match=r"wide\.pth\.tar has positions for an image that is not square"):
        prepared(pairs, tmp_path / "run", *settings, "data.image_size=48")


def test_a_larger_run_is_started_trained_resumed_and_read_like_any(
    pairs: Path, origin: Path, tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    settings = (*AT_64, "data.image_size=96", "train.steps=2", f"init.checkpoint={origin}")
    stop_after(1)
    with pytest.raises(RunStopped):
        run(pairs, tmp_path / "run", *settings)
    stop_after(None)
    assert run(pairs, tmp_path / "run", *settings, resume=True)["steps"] == 2
    table = weights(origin)["model"]["target_encoder.pos_embed"]
    encoder = load_encoder(tmp_path / "run")
    assert encoder.grid == (12, 12)
    assert torch.equal(encoder.pos_embed, stretch(table, (8, 8), (12, 12)))  # nothing stretches it twice


def test_an_encoder_reads_larger_images_as_the_one_with_the_stretched_table_does(
    pairs: Path, origin: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(origin)
    state, _ = prepared(pairs, tmp_path, *AT_64, "data.image_size=96", f"init.checkpoint={origin}")
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = encoder(images)
    assert tokens.shape == (2, 144, 32)
    torch.testing.assert_close(tokens, state.method.target_encoder(images), rtol=1e-5, atol=1e-6)


# what does not fit


def test_all_that_does_not_fit_is_named_at_once_and_nothing_is_begun(pairs: Path, origin: Path, tmp_path: Path) -> None:
    other = {
        "model.width": ("48", "32"),
        "model.depth": ("3", "2"),
        "model.heads": ("4", "2"),
        "model.patch_size": ("16", "8"),
        "model.mean": ("[0.5, 0.5, 0.5]", None),
        "model.deviation": ("[0.25, 0.25, 0.25]", None),
        "predictor.depth": ("2", "1"),
        "predictor.width": ("24", "16"),
    }
    overrides = [f"{key}={here}" for key, (here, _) in other.items()]
    with pytest.raises(BadInput) as fault:
        settings = (*AT_64, *overrides, "masks.min_keep=1", f"init.checkpoint={origin}", "train.steps=1")
        run(pairs, tmp_path / "run", *settings)
    message = str(fault.value)
    assert message.startswith(f"init.checkpoint={origin} does not fit the run: ") and "\n" not in message
    for key, (here, there) in other.items():
        assert f"{key}={here.replace('[', '(').replace(']', ')')} here and {there or '('}" in message, key
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", ["reference", "hf", "timm", "safetensors"])
def test_what_foreign_layouts_say_is_compared_as_well(
    pairs: Path, layouts: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    other = ("model.width=48", "model.heads=4", "model.patch_size=16", "predictor.width=24")
    settings = (*other, "model.mean=[0.5, 0.5, 0.5]", "masks.min_keep=1")
    with pytest.raises(BadInput) as fault:
        run(pairs, tmp_path / "run", *AT_64, *settings, f"init.checkpoint={layouts[layout]}", "train.steps=1")
    wanted = {"model.width=48 here and 32 there", "model.patch_size=16 here and 8 there", "model.mean=(0.5, 0.5, 0.5)"}
    # The reference's file knows its predictor, not its heads.
    wanted.add("predictor.width=24 here and 16 there" if layout == "reference" else "model.heads=4 here and 2 there")
    assert {text for text in wanted if text in str(fault.value)} == wanted
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nowhere.pth.tar", "nowhere", "empty"])
def test_a_checkpoint_that_is_not_there_is_named_and_nothing_is_begun(pairs: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=name):
        run(pairs, tmp_path / "run", *AT_64, f"init.checkpoint={tmp_path / name}", "train.steps=1")
    assert not (tmp_path / "run").exists()


def test_configurations_from_before_these_keys_read_as_their_defaults(origin: Path, tmp_path: Path) -> None:
    content = weights(origin)
    mapping = content["config"]
    assert mapping.pop("init") == {"checkpoint": None, "frozen_steps": 0, "thaw_steps": 0}
    assert mapping["optim"].pop("layer_decay") == 1.0
    assert to_mapping(build_config(mapping)) == weights(origin)["config"]
    torch.save(content, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt").config
    assert (loaded.init.checkpoint, loaded.init.frozen_steps, loaded.optim.layer_decay) == (None, 0, 1.0)
