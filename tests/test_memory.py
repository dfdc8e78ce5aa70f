"""What a run takes of the memory is known before its first step, and what cannot fit is refused."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from depthjepa import cost, runtime
from depthjepa.data.loading import open_source
from depthjepa.data.memory import in_memory, kept_bytes
from depthjepa.distributed import Ranks
from depthjepa.method import build_method, build_teacher
from depthjepa.run import memory
from depthjepa.run.memory import Need, activation_bytes, memory_need, peak_bytes, watched
from tiny_images import write_flat, write_pairs
from tiny_runs import GUIDED, SETTINGS, Call, tiny

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
MIB = 2**20
SHAPES = [
    (),
    ("model.width=96", "model.depth=4", "train.batch_size=64"),
    ("predictor.blocks=together", "predictor.depth=4", "data.image_size=96"),
    ("train.objective=supervised", "model.depth=4"),
    (*GUIDED, "train.batch_size=64"),
    ("train.precision=bf16",),
    ("train.checkpoint_blocks=true", "model.width=96", "model.depth=8", "train.batch_size=256"),
    ("train.checkpoint_blocks=true", "predictor.blocks=together", "data.image_size=96", "train.precision=bf16"),
]


def test_tensors_count_while_they_live() -> None:
    def work() -> Tensor:
        first = torch.zeros(MIB // 4)  # a mebibyte
        second = first + 1
        del first
        third = second.view(2, -1).clone()  # the first one's place is free again
        third[0] = 7  # in place: nothing new
        return third.sum()

    assert 2 * MIB <= peak_bytes(work) < 2.1 * MIB


def test_what_is_given_does_not_count() -> None:
    given = torch.zeros(MIB)
    assert peak_bytes(lambda: given.view(2, -1).add_(1)) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_takes_what_two_small_batches_say(shape: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny(write_pairs(tmp_path / "pairs"), *shape)
    teacher = build_teacher(config, has_depth=True)
    method = build_method(config, teacher, classes=0)
    need = memory_need(config, method, teacher, open_source(config.data, "train"), Ranks(), CPU)
    images, masks, latents = cost.example(config, teacher, config.train.batch_size, CPU)

    def step() -> None:
        with runtime.precision(config.train.precision, CPU):
            method(images, masks, latents).total.backward()

    weights = sum(each.nbytes for each in method.parameters() if each.requires_grad)
    moments, waiting = memory.MOMENTS * weights, need.waiting * config.train.batch_size
    told = need.of(config.train.batch_size) - runtime.held_bytes(CPU) - moments - waiting
    assert told == pytest.approx(peak_bytes(step), rel=0.35, abs=MIB)


def test_watching_leaves_the_method_as_it_was(tmp_path: Path) -> None:
    config = tiny(write_pairs(tmp_path / "pairs"), "guidance.kind=pixel", "guidance.head=cnn")  # has running means
    teacher = build_teacher(config, has_depth=True)
    method = build_method(config, teacher, classes=0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = torch.random.get_rng_state()
    assert watched(config, method, teacher, 2, CPU) > 0
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_kept_images_are_those_that_training_keeps(tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", 5)
    source = open_source(tiny(tmp_path / "flat").data, "train")
    kept = in_memory(source, 1.0, 0)
    assert kept is not source
    assert kept_bytes(source, 1.0) == sum(kept.sample(index).image.nbytes for index in range(5))
    assert kept_bytes(source, 0.0) == kept_bytes(source, 1e-6) == 0
    scenes = open_source(tiny(Path("scenes"), "data.scenes_train=8").data, "train")
    assert kept_bytes(scenes, 0.0) == 8 * 48 * 48 * (3 + 4)


def test_need_grows_with_images_parts_and_what_is_read_ahead() -> None:
    need = Need(fixed=1000, image=10, waiting=3)
    assert need.of(4) == 1000 + 4 * 13
    assert need.of(4, parts=2, ahead=6) == 1000 + 4 * (10 + 3 * 8)


def test_too_large_a_batch_is_refused_with_one_that_runs(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    monkeypatch.setattr(runtime, "held_bytes", lambda *_: 500 * MIB)
    monkeypatch.setattr(runtime, "memory_bytes", lambda *_: 700 * MIB)
    write_flat(tmp_path / "flat", 3)
    settings = [text for text in SETTINGS if not text.startswith("train.batch_size")]
    settings += ["train.steps=1", "train.epochs=null", "train.accumulate=2"]
    arguments = ("train", "photos", "data.root=flat", *settings, "--out", "run")
    status, output, errors = call(*arguments, "train.batch_size=1000000")
    assert (status, output) == (2, "") and not (tmp_path / "run").exists()
    said = r"depthjepa: train\.batch_size=1000000 takes \d+\.\d GiB of memory, and there are .* on this cpu: the "
    fits = r"largest that fits is about (train\.batch_size=(\d+))"
    told = re.match(said + fits + "; train.checkpoint_blocks=true lets more images fit$", errors.strip())
    assert told is not None, errors
    assert int(told[2]) % 2 == 0 and 2 <= int(told[2]) < 1000
    status, _, errors = call(*arguments, "train.batch_size=1000000", "train.checkpoint_blocks=true")
    more = re.match(said + fits + "$", errors.strip())
    assert status == 2 and more is not None and int(more[2]) > int(told[2]), errors
    assert call(*arguments, told[1])[0] == 0


@pytest.mark.parametrize("shape", [*SHAPES[:4], ("train.checkpoint_blocks=true", "model.depth=12")])
def test_what_is_tried_is_known_by_arithmetic_before(shape: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny(write_pairs(tmp_path / "pairs"), *shape)
    teacher = build_teacher(config, has_depth=True)
    method = build_method(config, teacher, classes=0)
    small, large = (watched(config, method, teacher, images, CPU) / memory.SLACK for images in memory.WATCHED)
    assert activation_bytes(config) == pytest.approx(large - small, rel=0.4)


@pytest.mark.slow
def test_images_that_would_end_the_process_are_refused_untried(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "watched", lambda *_: pytest.fail("it was tried"))
    monkeypatch.setattr(runtime, "memory_bytes", lambda *_: 2**30)
    asked = ("data.image_size=2048", "data.scenes_train=8", "data.scenes_val=8", "masks.min_keep=null")
    status, _, errors = call("train", "demo", *asked, "--out", tmp_path / "run")
    assert status == 2 and not (tmp_path / "run").exists()
    said = r"depthjepa: steps on 3 images of 2048 x 2048 px take about \d.*GiB of memory, and there are 1.0 GiB on this"
    assert re.match(said, errors), errors


def test_what_does_not_fit_with_one_image_is_no_matter_of_the_batch(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "memory_bytes", lambda *_: 50 * MIB)
    status, _, errors = call("train", "demo", "data.scenes_train=8", "--out", tmp_path / "run")
    assert status == 2 and not (tmp_path / "run").exists()
    assert re.match(r"depthjepa: a step on one image takes .* and there are 50 MiB on this cpu: take a smaller", errors)


def test_the_page_of_sizes_is_what_its_tool_finds() -> None:
    """Of the smallest model; the others take long."""
    tool, page = runpy.run_path(str(ROOT / "tools" / "sizing.py")), (ROOT / "docs" / "sizing.md").read_text()
    smallest = tool["ROWS"][0]
    assert tool["line"](smallest, None) in page and all(row.name in page for row in tool["ROWS"])
    before, after = tool["INTRODUCTION"].split("{checked}")
    figures = page.removeprefix(before).partition(after)[0]
    assert re.fullmatch(r"(\d+\.\d GB told and \d+\.\d measured(, |$)){3}", figures), figures
    assert after in page and page.endswith(tool["RULES"].format(decoded=tool["DECODED"]))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_table_of_undertakings_is_what_its_tool_finds(every: bool) -> None:
    """The smallest one, or all of them."""
    tool, page = runpy.run_path(str(ROOT / "tools" / "scale.py")), (ROOT / "docs" / "scale.md").read_text()
    assert tool["PARTS"].search(page) and all(row.what in page for row in tool["ROWS"])
    assert (tool["table"]() if every else tool["line"](tool["ROWS"][0])) in page


RUN = """
import sys
from depthjepa import training
from depthjepa.run import memory
from tiny_runs import tiny
told = memory.refuse_too_large
memory.refuse_too_large = lambda *given: print("told", told(*given)) or told(*given)
root, out, *settings = sys.argv[1:]
print("used", training.train(tiny(root, "train.steps=2", *settings), out, say=lambda _: None)["peak_memory_bytes"])
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("train.batch_size=256", "model.width=64", "data.image_size=96"), marks=pytest.mark.slow),
    ],
)
def test_a_process_takes_about_what_was_told(settings: tuple[str, ...], tmp_path: Path) -> None:
    """In a process of its own, whose memory nobody else has filled."""
    command = [sys.executable, "-c", RUN, str(write_pairs(tmp_path / "pairs")), str(tmp_path / "run"), *settings]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    figures = dict(line.split() for line in ended.stdout.splitlines())
    assert int(figures["told"]) == pytest.approx(int(figures["used"]), rel=0.3)
