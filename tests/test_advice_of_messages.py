"""What a message advises helps: each wrong command is refused in these words, and what they advise then runs.

A message of the package that names a command, an option or a key to give is run here or named with where it is.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from depthjepa import cost
from depthjepa.config.run_config import to_mapping
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import GUIDED, Call, run, tiny

PACKAGE = Path(__file__).parents[1] / "src" / "depthjepa"

# What is refused, the words of the advice as they stand in the package, and what they advise; OUT is a new folder, RUN
# a copy of the guided run.
CASES = [
    ("train tiny.yaml model.width=96 init.checkpoint=run", "does not fit the run: {}; take {}",
     ["train tiny.yaml model.width=32 model.heads=2 model.hidden=128 init.checkpoint=run --out OUT"]),
    ("train tiny.yaml guidance.kind=feature data.root=flat", "or take guidance.kind=none",
     ["train tiny.yaml guidance.kind=none data.root=flat --out OUT"]),
    ("train tiny.yaml guidance.kind=pixel data.root=flat", "let a depth network teach (guidance.kind=feature)",
     ["train tiny.yaml guidance.kind=feature guidance.teacher=depthfm-tiny guidance.teacher_steps=1 data.root=flat "
      "train.batch_size=2 train.whitening_images=2 --out OUT"]),
    ("train tiny.yaml loss.latent=0", "give loss.pixel or guidance.kind=feature or pixel",
     ["train tiny.yaml loss.latent=0 loss.pixel=1 --out OUT/a",
      "train tiny.yaml loss.latent=0 guidance.kind=feature --out OUT/b",
      "train tiny.yaml loss.latent=0 guidance.kind=pixel --out OUT/c"]),
    ("train tiny.yaml guidance.kind=feature guidance.depth_share=0.5 guidance.read=predicted",
     "choose guidance.read=dense or context",
     ["train tiny.yaml guidance.kind=feature guidance.depth_share=0.5 guidance.read=dense --out OUT/a",
      "train tiny.yaml guidance.kind=feature guidance.depth_share=0.5 guidance.read=context --out OUT/b"]),
    ("train tiny.yaml init.frozen_steps=1", "give guidance.kind=feature or init.frozen_steps=0",
     ["train tiny.yaml init.frozen_steps=1 guidance.kind=feature --out OUT/a",
      "train tiny.yaml init.frozen_steps=0 --out OUT/b"]),
    ("train tiny.yaml train.steps=1 train.epochs=1", "give one of train.epochs and train.steps",
     ["train tiny.yaml train.epochs=1 train.steps=null --out OUT"]),
    ("train tiny.yaml data.kind=folder", "take data.kind={}", ["train tiny.yaml data.kind=rgbd --out OUT"]),
    ("train tiny.yaml masks.min_keep=30", "raise the scale or lower masks.min_keep",
     ["train tiny.yaml masks.min_keep=1 --out OUT"]),
    ("train tiny.yaml masks.bias=reference masks.min_keep=12", "lower masks.min_keep or take masks.bias=unbiased",
     ["train tiny.yaml masks.bias=reference masks.min_keep=1 --out OUT/a",
      "train tiny.yaml masks.bias=unbiased masks.min_keep=1 --out OUT/b"]),
    ("train tiny.yaml masks.targets=50", "lower masks.target_scale or masks.targets",
     ["train tiny.yaml masks.targets=1 --out OUT"]),
    ("train tiny.yaml data.image_size=800000", "lower data.image_size", ["train tiny.yaml --out OUT"]),
    ("train tiny.yaml train.batch_size=8 train.accumulate=3", "take {}",
     ["train tiny.yaml train.batch_size=9 train.accumulate=3 --out OUT"]),
    ("train tiny.yaml data.image_size=50", "the nearest size that it divides is {} x {}",
     ["train tiny.yaml data.image_size=48 --out OUT"]),
    ("train tiny.yaml masks.kind=mae masks.mae_share=1", "take a share between {} and {}",
     ["train tiny.yaml masks.kind=mae masks.mae_share=0.97 --out OUT"]),
    ("train tiny.yaml train.device=gpu", "use cpu, cuda or cuda:N", ["train tiny.yaml train.device=cpu --out OUT"]),
    ("train tiny.yaml --out OUT --resume", "leave --resume out to start one there", ["train tiny.yaml --out OUT"]),
    ("train RUN/config.yaml --out RUN", "continue it with --resume, or choose another --out",
     ["train RUN/config.yaml --out RUN --resume", "train RUN/config.yaml --out OUT"]),
    ("train tiny.yaml --out flat", "give a folder that is new or empty", ["train tiny.yaml --out OUT"]),
    ("train tiny.yaml loss.variance=1 loss.gaussian=1 train.accumulate=4 train.batch_size=4",
     "take train.batch_size={} or more",
     ["train tiny.yaml loss.variance=1 loss.gaussian=1 train.accumulate=4 train.batch_size=8 --out OUT/a",
      "train tiny.yaml loss.variance=0 loss.gaussian=0 train.accumulate=4 train.batch_size=4 --out OUT/b"]),
    ("train tiny.yaml guidance.kind=feature guidance.control=another train.batch_size=2",
     "take evaluation.pictures=2 or more",
     ["train tiny.yaml guidance.kind=feature guidance.control=another train.batch_size=2 evaluation.pictures=2 --out "
      "OUT"]),
    ("train tiny.yaml data.root=lacking", "or name the other classes in data.classes",
     ["train tiny.yaml data.root=lacking data.classes=[blue,red] --out OUT"]),
    ("recipes nope", "`depthjepa recipes` lists them", ["recipes"]),
    ("train flat", "and `depthjepa recipes` lists the shipped ones", ["recipes"]),
    ("teach --data flat --teacher depth --out OUT", "name a network (--teacher)",
     ["teach --data flat --teacher depthfm-tiny guidance.teacher_size=32 guidance.teacher_steps=1 --out OUT"]),
    ("train tiny.yaml guidance.kind=feature guidance.teacher=depthfm-tiny guidance.cache=OUT/l",
     "(`depthjepa teach` makes one)",
     ["teach --data pairs --teacher depthfm-tiny guidance.teacher_size=32 guidance.teacher_steps=1 --out OUT/l",
      "train tiny.yaml guidance.kind=feature guidance.teacher=depthfm-tiny guidance.teacher_size=32 "
      "guidance.teacher_steps=1 guidance.cache=OUT/l --out OUT/run"]),
    ("predict RUN flat --out OUT", "fit a depth readout first with `depthjepa probe RUN depth --data DATA`",
     ["probe RUN depth --data pairs", "predict RUN flat --out OUT"]),
    ("predict loose.pt flat --out OUT",
     "RUN --to depthjepa`, then `depthjepa probe RUN depth --data DATA`",
     ["convert loose.pt OUT/run --to depthjepa", "probe OUT/run depth --data pairs",
      "predict OUT/run flat --out OUT/maps"]),
    ("compare RUN --data pairs --tasks depth evaluation.depth_readout=linear", "is a protocol of `depthjepa probe`",
     ["probe RUN depth evaluation.depth_readout=linear evaluation.depth_steps=2"]),
    ("probe RUN decode", "probe its features with `depthjepa probe RUN depth`", ["probe RUN depth"]),
    ("probe pixel decode data.image_size=64", "leave data.image_size as it is", ["probe pixel decode"]),
    ("probe RUN depth --data unsplit", "say which pairs are validation data, by the beginnings of their IDs (data.val_",
     ["probe RUN depth --data unsplit 'data.val_prefixes=[\"0000\",\"0001\"]'"]),
    ("show depth RUN --out OUT/a.png", "run `depthjepa probe {} {}` first",
     ["probe RUN depth", "show depth RUN --out OUT/a.png"]),
    ("show gates RUN --out OUT/a.png", "run `depthjepa diagnose {} --gates` first",
     ["diagnose RUN --gates evaluation.gate_steps=1", "show gates RUN --out OUT/a.png"]),
    ("show features RUN larger --out OUT/a.png", "draw runs with the same data.image_size",
     ["show features RUN pixel --out OUT/a.png"]),
    ("embed RUN flat --out OUT/a.csv", "embeddings are written as {}", ["embed RUN flat --out OUT/a.npz"]),
    ("report RUN --out OUT/a.pdf", "give a path that ends in .html", ["report RUN --out OUT/a.html"]),
    ("convert RUN flat --to hf", "give a new path", ["convert RUN OUT/hf --to hf"]),
    ("embed RUN flat --out OUT/a.npz model.width=64", "a probe takes data.*, evaluation.* and train.device",
     ["embed RUN flat --out OUT/a.npz evaluation.batch_size=2 data.workers=0 train.device=cpu"]),
]  # fmt: skip

# Advice that is run in other tests, or cannot be run here; by words of it.
ELSEWHERE = {
    "shuffled together would be fetched again and again; take data.cache_gib={}": "test_shard_addresses.py",
    "data.image_size=[HEIGHT,WIDTH]": "test_formats.py",
    "give model.heads=N": "test_formats.py",
    "a run starts from it where it is in a folder": "test_public_starts.py",
    "RUN is a run: go on with it": "test_messages.py",
    "{} is a run: go on with it by": "test_messages.py",
    "there is no study in {}; leave --resume out": "test_study.py starts studies without it",
    "go on with --resume, or choose another --out": "test_study.py",
    "study.yaml is not there; choose another --out": "test_study.py",
    "choose another --keep": "test_study.py",
    "share the folder {} (steps.json) with the shards": "test_study.py",
    "runs finished; continue with --resume": "test_study.py",
    "start each part of the study with --shard I/N": "test_study.py",
    "give --slurm N as well": "test_study_slurm.py",
    "Give --slurm-option timeout_min=MINUTES": "test_study_slurm.py",
    "to submit it, give --resume as well": "test_study_slurm.py",
    "give --resume as well": "test_train.py lengthens with it",
    "are asked for: give more of train.steps or train.epochs": "test_train.py",
    "measured; continue with --resume": "test_study.py",
    "stopped at step {} of {}; continue with --resume": "test_train.py",
    "go on with --resume once it answers": "test_logger_services.py",
    "Make room and go on (a run with --resume)": "test_train.py",
    "take fewer data.workers, or 0": "test_foreign_faults.py: without workers nothing is shared",
    "or take data.workers=0": "test_foreign_faults.py: without workers nothing is shared",
    "take other data (data.root=scenes:1)": "test_guidance_reads.py, and all recipes and studies do",
    "give data.kind=folder": "test_what_is_read.py: who insists on images gets them",
    "Lower optim.lr, or set optim.clip": "test_train.py: a loss that is not finite is planted",
    "holds a demo with other values of {}: choose another --out": "another folder is a new demo",
    "holds a fit with other values of {}: choose another --out": "another folder is a new fit",
    "holds a run, not a fit: choose another --out": "another folder is a new fit",
    "go on with the version that started it": "takes an earlier version",
    "is there and is not of an earlier comparison: choose another --out": "test_compare.py",
    "choose other fit.scored": "test_fit_teacher.py",
    "Lower fit.lr": "test_fit_teacher.py: a loss that is not finite is planted",
    "fit-teacher needs depth": "test_fit_teacher.py fits on such data",
    "or give data.depth_scale": "test_depth_files.py",
    "are less than {} s apart (--max-difference)": "test_recordings.py",
    "--val names no recording": "test_recordings.py",
    "Training/ and Validation/: leave out --val": "test_phones.py",
    "leave out --confidence, or export the recording as": "test_phones.py",
    "give --registered if your recorder did": "test_lerobot.py",
    "flags no depth map (is_depth_map): give --depth FEATURE": "test_lerobot.py",
    "give --depth as well": "test_lerobot.py",
    "give --photographs": "test_lerobot.py",
    "record with --dataset.video=false": "LeRobot's own option",
    "give --depth-unit, one of": "test_lerobot.py",
    "leave out --depth-unit": "test_lerobot.py",
    "give --val EPISODE,EPISODE": "test_lerobot.py",
    "give --depth-scale": "test_recordings.py",
    "has no sizes; photos and rgbd have, others set model.size=NAME": "test_config.py",
    "A run starts from it with": "test_push.py: a card",
    "units per metre": "test_recordings.py",
    "export the recording again with --mode 4": "test_recordings.py",
    "(--raw DIR)": "test_prepare.py",
    "leave out --raw, --split": "test_prepare.py",
    "or give --splits FILE": "test_prepare.py",
    "was not written by this command: choose another --out": "test_prepare.py",
    "holds {}, not {}: choose another --out": "test_prepare.py",
    "this source or split does not have: choose another --out": "test_prepare.py",
    "guidance.control=another needs batches of at least two images": "of the library alone: a run is refused before",
    "or --force to write over what is there": "test_cli.py",
    "and one process at a time writes there: wait until it has ended": "test_locks.py",
    "which divides the study into other parts: wait until it has ended": "test_locks.py",
    "a run whose data have moved goes on with data.root=PLACE": "test_contents.py",
    "was begun with other data: {}; bring them back as they were": "test_contents.py",
    "take a smaller model or a smaller data.image_size": "test_memory.py: the memory is planted",
    "the largest that fits is about train.batch_size={}": "test_memory.py: the memory is planted",
    "train.checkpoint_blocks=true lets more images fit": "test_memory.py: the memory is planted",
    "put the run (--out) on a disk that all of them see": "test_sharded.py: it takes several machines",
    "set data.image_size": "of the library alone: views of the command line are of one size",
    "give PROBE.KEY with one of": "test_study.py",
    "give {} as data.root": "of the library alone: a run is refused before",
    "run the same `depthjepa teach` again": "test_teach.py",
    "compute it for these data with `depthjepa teach`": "test_teach.py",
    "take a larger guidance.teacher_size or data.crop_scale, or no cache": "test_teach.py: a verdict",
    "take another control, the teacher's depth, or no guidance.cache": "test_controls.py",
    "which told disparity: fit it anew with `depthjepa probe RUN depth`": "test_predict.py: an older file is planted",
    "name one of {} (guidance.teacher_output)": "test_teachers_onnx.py",
    "is not told: give guidance.teacher_direction=nearer": "test_teachers_onnx.py",
    "is no ONNX file: give a file NAME.onnx": "test_teachers_onnx.py",
    "may be {} (guidance.teacher_unit)": "test_teachers_onnx.py",
    "take a smaller evaluation.cell_share": "test_depth_probe.py: sparse depth is planted",
}
VERBS = "give|take|choose|lower|raise|leave|use|continue|go on|set|fit|run|make|draw|start|name"
ADVICE = re.compile(rf"`depthjepa |\b({VERBS})\b[^;]*?(\b[a-z]+\.[a-z_]+\b(?!/)|--[a-z]+)", re.IGNORECASE)


def messages() -> list[str]:
    """The messages of faults in the package, and texts that functions return; `{}` where something is put in."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("BadInput", "RunStopped", "ValueError"):
                found += [template(text) for text in node.args[:1]]
            elif isinstance(node, (ast.Return, ast.Yield)) and isinstance(node.value, ast.JoinedStr):
                found.append(template(node.value))
    return found


def template(text: ast.expr) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in parts)


def test_every_advice_is_run() -> None:
    """A new message that advises a command, an option or a key takes a case, or a word on where it is run."""
    known = [words for _, words, _ in CASES] + list(ELSEWHERE)
    advising = [text for text in messages() if ADVICE.search(text) and "is not a run folder" not in text]
    assert len(advising) > 40
    assert [text for text in advising if not any(words in text for words in known)] == []


def test_no_case_is_of_a_message_that_is_gone() -> None:
    there = messages()
    for words in [words for _, words, _ in CASES]:
        assert any(words in text for text in there), words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of several kinds, a recipe of one step, runs, and a checkpoint outside a run folder."""
    folder = tmp_path_factory.mktemp("advice")
    write_pairs(folder / "pairs", 12, 4)
    write_pairs(folder / "unsplit", 12, 0)
    for part in ("rgb", "depth"):
        (folder / "unsplit" / "train" / part).rename(folder / "unsplit" / part)
    shutil.rmtree(folder / "unsplit" / "train")
    write_flat(folder / "flat", 3, 48)
    write_classes(folder / "lacking", 4)
    (folder / "lacking" / "train" / "green").mkdir()
    short = ("train.steps=1", "evaluation.pictures=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        patch.chdir(folder)
        run(Path("pairs"), folder / "run", *GUIDED, *short)
        run(Path("pairs"), folder / "pixel", "guidance.kind=pixel", "guidance.read=predicted", *short)
        run(Path("pairs"), folder / "larger", "data.image_size=64", *short)
        asked = to_mapping(tiny(Path("pairs"), *short))
        asked["guidance"] = {"kind": "none"}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(asked))
    torch.save(torch.load(folder / "run" / "checkpoints" / "last.pt"), folder / "loose.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "words", "right"), CASES, ids=[f"{wrong}: {words}" for wrong, words, _ in CASES])
def test_what_is_advised_helps(
    wrong: str, words: str, right: list[str], place: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    copy = shutil.copytree(place / "run", tmp_path / "run")

    def arguments(line: str) -> list[str]:
        return [each.replace("OUT", str(tmp_path / "out")).replace("RUN", str(copy)) for each in shlex.split(line)]

    status, _, errors = call(*arguments(wrong))
    assert status == 2 and re.search(re.escape(words).replace(r"\{\}", ".*"), errors.replace(str(copy), "RUN")), errors
    for line in right:
        status, _, errors = call(*arguments(line))
        assert status == 0, (line, errors)
