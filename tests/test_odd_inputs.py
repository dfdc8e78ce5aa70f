"""Wrong and odd input of every command: one message that says what, where and what to give; nothing written or lost."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from depthjepa import cost, training
from depthjepa.data.layouts.table import LAYOUTS
from depthjepa.evaluation.probes import table
from depthjepa.runs import listed
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import GUIDED, SETTINGS, Call, run, start

RECIPES = {
    "broken.yaml": "train: {steps: [1\n",
    "listed.yaml": "- train\n",
    "tabs.yaml": "train:\n\tsteps: 1\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "twice-below.yaml": "train: {steps: 1, steps: 2}\n",
    "word.yaml": "hello\n",
    "section.yaml": "train: 5\n",
    "unknown.yaml": "trian: {steps: 1}\n",
    "dotted.yaml": "train.steps: 3\n",
    "python.yaml": "seed: !!python/object/apply:os.getcwd []\n",
    "two.yaml": "seed: 1\n---\nseed: 2\n",
    "colons.yaml": "train: steps: 3\n",
    "anchor.yaml": "seed: *nothing\n",
    "date.yaml": "name: 2020-13-45\n",
    "empty.yaml": "",
}
CLAIM = "claims: [{{measure: {}, first: {}, against: [{}], margin: {}}}]\nprobes: [depth]\n"
ARMS = "arms: {plain: [], other: [loss.gaussian=1]}\n"
STUDIES = {  # what stands beside base, settings and seeds
    "good": ARMS,
    "unknown": ARMS + "probs: [depth]\n",
    "typo": "arms: {plain: [model.widht=3]}\n",
    "no-arms": "arms: {}\n",
    "arms-list": "arms: [a, b]\n",
    "arm-text": "arms: {plain: seed=1}\n",
    "arm-name": "arms: {a/b: []}\n",
    "arm-key-twice": "arms: {plain: [train.log_every=1, train.log_every=2]}\n",
    "arm-twice": "arms: {plain: [], plain: []}\n",
    "arm-seed": "arms: {plain: [seed=1]}\n",
    "probe": ARMS + "probes: [dept]\n",
    "probe-labels": ARMS + "probes: [knn]\n",
    "probe-twice": ARMS + "probes: [depth, depth]\n",
    "claim-figure": ARMS + CLAIM.format("depth.r2_withn", "plain", "other", 0.1),
    "claim-probe": ARMS + CLAIM.format("dept.r2_within", "plain", "other", 0.1),
    "claim-arm": ARMS + CLAIM.format("depth.r2_within", "plian", "other", 0.1),
    "claim-against": ARMS + CLAIM.format("depth.r2_within", "plain", "othr", 0.1),
    "claim-itself": ARMS + CLAIM.format("depth.r2_within", "plain", "plain", 0.1),
    "claim-margin": ARMS + CLAIM.format("depth.r2_within", "plain", "other", -0.1),
    "claim-half": ARMS + "claims: [{measure: depth.r2_within, first: plain, against: [other]}]\n",
    "name": ARMS + "name: ../up\n",
    "minutes": ARMS + "minutes: -1\n",
    "minutes-and-steps": ARMS + "minutes: 1\n",
    "none-at-a-time": ARMS + "side_by_side: 0\n",
}
HEADS = {  # instead of base, settings and seeds
    "missing": "seeds: 2\n",
    "no-recipe": "base: photoz\nseeds: 2\n",
    "no-seeds": "base: photos\nseeds: 0\n",
    "words": "base: photos\nseeds: three\n",
    "seed-twice": "base: photos\nseeds: [1, 1]\n",
    "negative": "base: photos\nseeds: [-1, 2]\n",
    "settings": "base: photos\nsettings: data.root=pairs\nseeds: 1\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data, runs, checkpoints, recipes and studies, most of them faulty."""
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        patch.chdir(folder)
        make(folder)
    return folder


def make(folder: Path) -> None:
    write_pairs(folder / "pairs", 8, 4)
    write_classes(folder / "classes", 2)
    write_flat(folder / "flat", 3)
    for name in ("empty", "texts", "mine", "folder.yaml", "folder.npz", "folder.png", "folder.json"):
        (folder / name).mkdir()
    (folder / "texts" / "a.txt").write_text("words")
    (folder / "mine" / "thesis.txt").write_text("mine")
    (folder / "file").write_text("mine")
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    settings = yaml.safe_dump({"settings": ["data.root=pairs", *SETTINGS, "train.steps=1"]})
    for name, text in STUDIES.items():
        (folder / f"study-{name}.yaml").write_text("base: photos\n" + settings + "seeds: 2\n" + text)
    for name, text in HEADS.items():
        (folder / f"study-{name}.yaml").write_text(text + ARMS)
    run(Path("pairs"), folder / "run", *GUIDED, "train.steps=1", "evaluation.pictures=1", "train.whitening_images=8")
    faulty_runs(folder)


def faulty_runs(folder: Path) -> None:
    """Copies of the run that lack something or hold damaged parts, and files that are no whole checkpoints."""
    names = ("bare", "torn", "garbled", "listed", "unsummed", "unmeasured", "undrawn")
    bare, torn, garbled, listed, unsummed, unmeasured, undrawn = (
        Path(shutil.copytree(folder / "run", folder / name)) for name in names
    )
    shutil.rmtree(bare / "checkpoints")
    last = folder / "run" / "checkpoints" / "last.pt"
    (torn / "checkpoints" / "last.pt").write_bytes(last.read_bytes()[:2000])
    (garbled / "config.yaml").write_text("seed: [1\n")
    (listed / "config.yaml").write_text("- seed\n")
    (unsummed / "summary.json").write_text("{")
    (unmeasured / "metrics.jsonl").write_text("{\n{\n")
    for file in (undrawn / "figures").iterdir():
        file.write_bytes(b"x")
    (folder / "nothing.pt").write_bytes(b"")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"a": 1}, folder / "words.pt")
    content = torch.load(last)
    torch.save(content | {"format": 99}, folder / "later.pt")
    torch.save({key: value for key, value in content.items() if key != "model"}, folder / "part.pt")
    (folder / "torn.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    save_file({"a": torch.zeros(2)}, folder / "foreign.safetensors")


DATA = r"scenes: rendered streets .*; flat: a flat folder of images"
NO_CHECKPOINT = r"there is no checkpoint gone: give a run folder, a checkpoint file, a Hugging Face folder or hub id"
A_FILE = "cannot be written: file is a file, not a folder"
EMPTY = "is empty: give a value"
ALL_PROBES = ", ".join(table.of_command("probe"))
SPARED = [name for name, row in table.pictured().items() if row.picture and row.picture.photographs]

COMMANDS = {
    "trian demo": r"there is no command 'trian' \(did you mean 'train'\?\): choose from demo, train",
    "nonsense": r"there is no command 'nonsense': choose from demo, train, .*bench",
    "--nonsense": r"No such option: --nonsense Usage: depthjepa",
    "''": "an argument is empty",
    "recipes nope": r"there is no recipe 'nope'; `depthjepa recipes` lists them",
    "recipes photo": r"no recipe 'photo' \(did you mean 'photos'\?\)",
    "recipes --keys dta": r"no section or key 'dta' \(did you mean 'data'\?\): sections are about, data",
    "recipes --keys data.rot": r"did you mean 'data\.root'\?",
    "recipes demo extra": r"unexpected extra argument\(s\) \(extra\) Usage: depthjepa recipes",
    "demo --seed x": r"--seed.*valid integer",
    "demo --seed -1": "'--seed' should be greater than or equal to 0",
    "demo --out file": A_FILE,
    "demo --out mine": r"mine holds something else \(thesis\.txt\): give a folder that is new or empty",
    "demo --out ''": f"--out {EMPTY}",
    "demo nonsense=1 --out d": r"unknown key 'nonsense'$",
    "demo --steps 5 --out d": r"no option --steps: settings are written KEY=VALUE, as train\.steps=",
    "demo seed=1 --out d": r"seed of the demo is given by --seed",
    "demo name=x --out d": r"name of the demo is given by none",
    "demo data.root=gone --out d": "data.root: there is no folder gone",
    "demo data.root=flat --out d": r"the depth probe needs depth, and flat has none: give an RGB-D folder",
    "demo data.root=pairs --out d": r"the linear probe needs labels, and pairs has none: give a class folder",
}
SYNTAX = {
    "train": "Missing argument 'recipe'. Usage: depthjepa train",
    "train nope": r"there is no recipe 'nope'; `depthjepa recipes` lists them",
    "train ''": rf"an argument {EMPTY} \(`depthjepa train ''`\)",
    "train demo --out=": f"--out {EMPTY}",
    "train demo --out": "Option '--out' requires an argument",
    "train demo --resum": r"No such option: --resum \(Possible options: --resume\)",
    "train demo --steps 5": r"no option --steps: settings are written KEY=VALUE, as train\.steps=",
    "train demo --lr 1": r"no option --lr: settings are written KEY=VALUE, as optim\.lr=",
    "train demo nonsense=1": "unknown key 'nonsense'$",
    "train demo é=1": "unknown key 'é'$",
    "train demo =value": "'=value' is not of the form key=value",
    "train demo key": "'key' is not of the form key=value",
    "train demo seed=": rf"seed= {EMPTY}$",
    "train demo guidance.teacher=": rf"guidance\.teacher= {EMPTY}$",
    "train demo guidance.cache=": rf"guidance\.cache= {EMPTY} \(null stands for none\)$",
    "train demo guidance.weight=": rf"guidance\.weight= {EMPTY}$",
    "train demo data.root=": rf"data\.root= {EMPTY}$",
    "train demo 'seed = 1'": r"unknown key 'seed ' \(did you mean 'seed'\?\)",
    "train demo seed = 1": "'seed' is not of the form key=value; '=' is not .*; '1' is not",
    "train demo seed=1=2": "seed='1=2': should be a valid integer$",
    "train demo optim.lr=1 optim.lr=2": r"optim\.lr: given more than once",
    "train demo lr=1": r"unknown key 'lr' \(did you mean 'optim\.lr'\?\)",
    "train demo batch_size=1": r"\(did you mean 'train\.batch_size' or 'evaluation\.batch_size'\?\)",
    "train demo train=5": r"train is a section, not a key: give its keys, such as train\.objective",
    "train demo guidance=none": r"guidance is a section, not a key: give its keys, such as guidance\.kind",
    "train demo train.steps.more=5": r"unknown key 'train\.steps\.more': 'steps' holds no keys",
    "train demo train..steps=5": r"did you mean 'train\.steps'\?",
    "train demo data.rooot=x": r"did you mean 'data\.root'\?",
    "train demo new words": "'new' is not of the form key=value; 'words' is not",
    "train demo 'seed=[1'": r"seed='\[1': should be a valid integer",
    "train demo 'seed={a: 1}'": r"unknown key 'seed\.a'",
}
VALUES = {
    "seed=x": "seed='x': should be a valid integer",
    "seed=-1": "seed=-1: should be greater than or equal to 0",
    "seed=true": "seed=true: should be a number",
    "seed=1.5": "seed=1.5: should be a valid integer$",
    "seed=null": "seed=None: should be a valid integer",
    "name=a/b": "name='a/b': the name is to name a folder: no / in it",
    "name=..": "no . at its beginning",
    "name=2020-13-99 train.steps=0": "train.steps=0: should be greater than 0",
    "train.steps=0": "train.steps=0: should be greater than 0",
    "train.steps=1e3": "train.steps='1e3': should be a valid integer",
    "train.steps=nan": "train.steps='nan': should be a valid integer",
    "train.steps=010": 'train.steps=010: 010 is 8 in YAML: write 8, or "010" in quotes for a text$',
    "train.steps=.inf": "train.steps=inf: should be a finite number",
    "train.steps=null": r"give one of train\.epochs and train\.steps",
    "train.steps=1 train.epochs=1": r"give one of train\.epochs and train\.steps",
    "train.batch_size=64k": "train.batch_size='64k': should be a valid integer",
    "train.accumulate=3": r"train\.batch_size=32 must be a multiple of .* = 3: take 33",
    "train.precision=fp16": r"should be 'fp32', 'bf16' or 'auto' \(did you mean 'bf16'\?\)",
    "train.device=gpu": "device 'gpu' is unknown: use cpu, cuda or cuda:N",
    "train.device=meta": "device 'meta' is unknown: use cpu, cuda or cuda:N",
    "train.device=cuda:x": "device 'cuda:x' is unknown: use cpu, cuda or cuda:N",
    "train.log_every=yes": r"train\.log_every=true: should be a number",
    "train.compile=maybe": "train.compile='maybe': should be a valid boolean$",
    "train.loggers=comet": "train.loggers='comet': should be 'run_folder', 'tensorboard', 'wandb' or 'mlflow'",
    "train.objective=sup": "should be 'jepa' or 'supervised'",
    "train.probe_every=1 data.root=flat guidance.kind=none": "needs labels or depth, and flat has neither",
    "optim.lr=nan": "optim.lr='nan': should be a finite number",
    "optim.lr=1e400": "optim.lr='1e400': should be a finite number",
    "optim.lr=-1": "optim.lr=-1: should be greater than 0",
    "optim.betas=0.9": r"optim\.betas=0\.9: should be a list",
    "optim.betas=[0.9,2]": "should be less than 1",
    "optim.momentum=2": "should be less than or equal to 1",
    "optim.warmup_epochs=2 optim.warmup_steps=1": r"has no effect here: it takes optim\.warmup_steps=null",
    "optim.average_over=[0.5,1] optim.momentum=0.5": r"it takes optim\.average_over=null",
    "data.image_size=50": r"model\.patch_size=8 does not divide data\.image_size=50 x 50: .* is 48 x 48",
    "data.image_size=[64]": r"should be one side \[px\], or height and width as \[48, 64\]$",
    "data.image_size=-8": r"data\.image_size=-8: should be one side \[px\]",
    "data.image_size=[48,x]": r"should be one side \[px\]",
    "data.image_size=8": r"targets below masks\.min_keep=4 patches on a grid of 1 x 1: .* lower masks\.min_keep",
    "data.image_size=800000": r"patches do not fit into memory: lower data\.image_size",
    "data.crop_scale=[1,0.5]": "the first number must not be larger than the second",
    "data.crop_scale=[0.5,2]": "a crop cannot be larger than the image: at most 1",
    "data.crop_scale=0.5": "data.crop_scale=0.5: should be a list",
    "data.flip=perhaps": "data.flip='perhaps': should be a valid boolean",
    "data.light=1": "should be less than 1",
    "data.workers=-1": "should be greater than or equal to 0",
    "data.memory_gib=.inf": "should be a finite number",
    "data.kind=scene": rf"should be {', '.join(map(repr, LAYOUTS.names))} or 'folder' \(did you mean 'scenes'\?\)",
    "data.kind=flat": r"data\.kind=flat, but scenes:2 is rendered scenes: take data\.kind=scenes",
    "data.kind=rgbd data.root=flat": r"flat",
    "data.root=gone": r"data\.root: there is no folder gone$",
    "data.root=pair": r"no folder pair \(did you mean 'pairs'\?\)",
    "data.root=file": r"data\.root=file is a file, not a folder",
    "data.root=empty": r"empty holds no images \(accepted: \.jpg",
    "data.root=texts": r"texts holds no images \(accepted: \.jpg",
    "data.root=scenes:x": r"write scenes or scenes:SEED, as in scenes:3",
    "data.root=scenes:-1": r"write scenes or scenes:SEED, as in scenes:3",
    "data.root=rooms:x": r"'rooms:x' are no rendered rooms: write rooms or rooms:SEED, as in rooms:3",
    "data.scene_textures=gone": r"data\.scene_textures=gone is no folder: give one of photographs",
    "data.root=pairs*0,flat": r"PATH\*WEIGHT with a weight above 0, as in photos\*2",
    "data.root=pairs,,flat": "data.root names an empty path: give scenes, a folder",
    "data.root=pairs,gone": r"data\.root: there is no folder gone",
    "data.root=[pairs]": r"data\.root: there is no folder \[pairs\] \(did you mean 'pairs'\?\)",
    "data.root=2011_09_26": "data.root: there is no folder 2011_09_26$",
    "data.root='pairs #2'": r"data\.root: there is no folder pairs #2 \(did you mean 'pairs'\?\)",
    "data.root=classes data.classes=010": "data.classes: no class '010' in classes/train",
    "data.root=flat": r"needs depth, but data\.root=flat has none: give .* or take guidance\.kind=none",
    "data.root=ünïcode": "there is no folder ünïcode",
    "data.root=pairs data.scenes_train=8": "has no effect here: it takes rendered streets",
    "data.classes=3": "data.classes needs a class folder .* or tar shards",
    "data.classes=[a,a]": "name at least one class, and each only once",
    "data.root=classes data.classes=[rde]": r"no class 'rde' in classes/train \(did you mean 'red'\?\); there are 2",
    "data.root=classes data.classes=5": "data.classes=5, but there are 2 classes in classes/train",
    "data.root=pairs data.val_prefixes=[a]": "are for pairs without val/, but pairs has its own val/",
    "data.scenes_train=0": "should be greater than or equal to 1",
    "model.size=small model.width=64 model.depth=2": r"model\.size has no effect here: it takes model\.width or",
    "model.patch_size=7": r"does not divide .* is 49 x 49",
    "model.heads=5": r"model\.width=96 must be a multiple of 4 and of model\.heads=5",
    "model.depth=0": "should be greater than 0",
    "model.width=100000000000 model.heads=1": r"does not fit into memory: choose smaller ones",
    "predictor.width=50": "must be a multiple of 4 and of the encoder's 3 heads",
    "predictor.heads=7": "unknown key 'predictor.heads'",
    "loss.gaussian_directions=8": r"has no effect here: it takes loss\.gaussian above 0",
    "loss.target_norm=batch": "loss.target_norm is no key any more",
    "loss.latent=0 loss.pixel=0 loss.visible=0 guidance.kind=none": r"leaves nothing to learn: give loss\.pixel",
    "masks.kind=block": r"did you mean 'multiblock'\?",
    "masks.kind=mae masks.targets=3": r"masks\.targets has no effect here: it takes masks\.kind=multiblock",
    "masks.targets=50": r"leave too little context .*: lower masks\.target_scale or masks\.targets",
    "masks.mae_share=1 masks.kind=mae": "take a share between 0.03 and 0.97",
    "guidance.kind=[none]": r"guidance\.kind='\[none\]': should be 'none', 'feature' or 'pixel'",
    "guidance.kind=nope": "should be 'none', 'feature' or 'pixel'",
    "guidance.teacher=depthanything": r"\(did you mean 'huggingface'\?\)",
    "guidance.teacher=huggingface": r"needs guidance\.teacher_checkpoint: a folder or hub id",
    "guidance.teacher=depthfm": r"needs guidance\.teacher_checkpoint .* and guidance\.teacher_vae",
    "guidance.teacher_seed=2": r"has no effect here: it takes guidance\.teacher=depthfm or depthfm-tiny",
    "guidance.teacher_size=128": r"has no effect here: it takes guidance\.cache",
    "guidance.cache=gone": r"gone is no cache of latents: .* \(`depthjepa teach` makes one\)",
    "guidance.cache=empty": "empty is no cache of latents",
    "guidance.weight=-1": "should be greater than or equal to 0",
    "guidance.kind=none guidance.head=cnn": r"guidance\.head is for guidance\.kind=feature or guidance\.kind=pixel",
    "guidance.kind=pixel guidance.teacher=depth": r"guidance\.teacher is for guidance\.kind=feature, not",
    "guidance.head=dpt": r"guidance\.head='dpt': should be 'linear' or 'conv'",
    "guidance.kind=pixel guidance.layers=[0.5,0.5]": r"guidance: layers: name at least one, in ascending order",
    "guidance.kind=pixel guidance.nearest=5 guidance.farthest=4": r"nearest=5 m must be less than farthest=4 m$",
    "guidance.kind=pixel guidance.loss=ssi guidance.sky=1": "choose l1 or sig",
    "guidance.kind=pixel data.root=flat": r"guidance\.kind=pixel needs depth, but data\.root=flat has none",
    "init.checkpoint=gone.pt": "there is no checkpoint gone.pt: give a run folder",
    "init.checkpoint=torn": r"torn/checkpoints/last\.pt is truncated, its end is missing",
    "init.checkpoint=run": r"init\.checkpoint=run does not fit the run: model\.width=96 here and 32 there",
    "init.frozen_steps=5 guidance.kind=none": r"give guidance\.kind=feature or init\.frozen_steps=0",
    "evaluation.nearest=1": r"it takes evaluation\.depth_readout=linear, linear4 or dpt",
    "evaluation.neighbours=[5,5]": "give at least one number, and each only once",
    "evaluation.which=teacher": "should be 'target', 'context' or 'single'",
}
FILES = {
    "train broken.yaml": r"broken\.yaml is not YAML, line 2, column 1: expected ',' or ']'",
    "train tabs.yaml": r"tabs\.yaml is not YAML, line 2, column 1: found character",
    "train twice.yaml": r"twice\.yaml is not YAML, line 2, column 1: the key 'seed' is given twice",
    "train twice-below.yaml": r"line 1, column 19: the key 'steps' is given twice",
    "train python.yaml": r"python\.yaml is not YAML, line 1, column 7: could not determine a constructor",
    "train two.yaml": "is not YAML, line 2, column 1: but found another document",
    "train colons.yaml": "is not YAML, line 1, column 13: mapping values are not allowed here",
    "train anchor.yaml": "is not YAML, line 1, column 7: found undefined alias 'nothing'",
    "train date.yaml": r"date\.yaml is not YAML: month must be",
    "train listed.yaml": "listed.yaml does not hold keys and values",
    "train word.yaml": "word.yaml does not hold keys and values",
    "train latin.yaml": "latin.yaml is not a text file: a recipe is YAML",
    "train section.yaml": r"train is a section, not a key: give its keys, such as train\.objective",
    "train unknown.yaml": r"did you mean 'train\.steps'\?",
    "train dotted.yaml": r"train\.steps: dots are for KEY=VALUE, in a file write `train: {steps: …}`",
    "train empty.yaml train.steps=0": r"train\.steps=0: should be greater than 0",
    "train folder.yaml": "folder.yaml is a folder, not a recipe file",
    "train brokn.yaml": r"there is no recipe file brokn\.yaml \(did you mean 'broken\.yaml'\?\)",
    "train pairs": r"pairs is no recipe: a file of one ends in \.yaml, and `depthjepa recipes` lists the shipped ones",
    "train run": r"run is a run: go on with it by `depthjepa train run/config\.yaml --out run --resume`, or repeat",
    "train run/checkpoints/last.pt": "is not a text file: a recipe is YAML",
    "train photos": rf"data\.root is empty: say which data \(data\.root=, or --data\): {DATA}",
    "train demo --out run": "run holds a run already: continue it with --resume, or choose another --out",
    "train demo --out file": A_FILE,
    "train demo --out file/deep": A_FILE,
    "train demo --out mine": r"mine holds something else \(thesis\.txt\): give a folder that is new or empty",
    "train demo --out ''": f"--out {EMPTY}",
    "train demo --out gone --resume": "--resume: there is no run in gone; leave --resume out to start one there",
    "train demo --out empty --resume": "--resume: there is no run in empty; leave --resume out",
    "train demo --resume": "--resume: there is no run in runs/demo",
    "train demo --out garbled --resume": r"garbled/config\.yaml is damaged: while parsing",
    "train demo --out listed --resume": r"listed/config\.yaml is damaged: it holds no keys and values",
    "train demo --out unsummed --resume": r"unsummed/summary\.json is damaged: Expecting",
    "train demo --out run --resume train.steps=5": r"--resume with changed keys: train\.steps; the run in run has",
    "train demo --out run --lengthen train.steps=5": "--lengthen is for a run that is there: give --resume as well",
}
TEACHERS = {
    "teach": "Missing option '--data'",
    "teach --data gone --teacher depthfm-tiny --out l": "data.root: there is no folder gone",
    "teach --data empty --teacher depthfm-tiny --out l": "empty holds no images",
    "teach --data '' --teacher depthfm-tiny --out l": f"--data {EMPTY}",
    "teach --data flat --teacher nope --out l": "should be 'depth', 'depthfm', 'depthfm-tiny', 'huggingface' or 'onnx'",
    "teach --data flat --teacher depth --out l": r"the depth teacher needs no cache: .*name a network \(--teacher\)",
    "teach --data flat --teacher depthfm-tiny --out file": A_FILE,
    "teach --data flat --teacher depthfm-tiny --out mine": "mine is there already and holds no cache: choose another",
    "teach --data flat --teacher depthfm-tiny --out l data.root=pairs": "data.root is given by --data, not",
    "teach --data flat --teacher depthfm-tiny --out l guidance.kind=none": "guidance.kind is given by the command",
    "teach --data flat --teacher depthfm-tiny --out l train.steps=4": r"train\.steps: no effect on latents",
    "teach --data flat --teacher depthfm-tiny --out l model.widht=4": r"did you mean 'model\.width'\?",
    "teach --data flat --teacher depthfm-tiny --out l guidance.teacher_layer=1": "takes guidance.teacher=huggingface",
    "fit-teacher": "Missing option '--data'",
    "fit-teacher --data gone --out fit": "data.root: there is no folder gone",
    "fit-teacher --data flat --out fit": r"fit-teacher needs depth, but data\.root=flat has none: give an RGB-D folder",
    "fit-teacher --data pairs --out fit fit.stpes=1": r"did you mean 'fit\.steps'\?",
    "fit-teacher --data pairs --out fit optim.lr=1": r"unknown key 'optim\.lr'",
    "fit-teacher --data pairs --out fit data.image_size=50": "must be multiples of 32 px .* nearest to 50 is 64",
    "fit-teacher --data pairs --out fit data.root=flat": "data.root is given by --data",
    "fit-teacher --data pairs --out file": A_FILE,
    "fit-teacher --data pairs --out mine": "mine holds something else",
    "fit-teacher --data pairs --out run": "run holds a run, not a fit: choose another --out",
    "fit-teacher --data pairs --out fit fit.device=tpu": "device 'tpu' is unknown: use cpu, cuda or cuda:N",
    "prepare nyu": r"there is no command 'nyu' \(did you mean 'nyuv2'\?\): choose from nyuv2, kitti",
    "prepare nyuv2": "Missing argument 'source'",
    "prepare nyuv2 gone --out p": r"there is no gone: NYUv2 is prepared from nyu_depth_v2_labeled\.mat \(http",
    "prepare nyuv2 file --out p": "file is no HDF5 file, or is damaged .*: fetch it again from http",
    "prepare nyuv2 empty --out p": r"there is no empty/nyu_depth_v2_labeled\.mat",
    "prepare nyuv2 file --out p --depth rwa": r"no depth 'rwa' \(did you mean 'raw'\?\): choose from raw, filled",
    "prepare nyuv2 file --out file": A_FILE,
    "prepare tum gone --out p": r"there is no folder gone: TUM RGB-D is prepared from .*rgb\.txt, depth\.txt",
    "prepare arkitscenes empty --out p": "empty holds no recording: ARKitScenes is prepared from a video",
    "prepare record3d gone --out p": r"there is no gone: Record3D is prepared from a \.r3d file",
    "prepare realsense empty --out p": "empty holds no recording: a RealSense recording has color/ beside depth/",
    "prepare zed empty --out p": r"empty holds no recording: a ZED recording is a folder of left000000\.png",
    "prepare lerobot empty --out p": r"there is no empty/meta/info\.json: a LeRobot data set has",
    "prepare lerobot empty --out p --depth-unit inch": "there is no unit 'inch'.*choose from metres, centimetres",
    "prepare kitti gone --out p": "there is no folder gone: KITTI is prepared from its annotated depth maps",
    "prepare kitti empty --out p": "empty holds no annotated depth: expected train/DRIVE_sync",
    "prepare kitti '' --out p": f"an argument {EMPTY}",
}
PROBES = {
    "probe run": "Missing argument 'TASK'",
    "probe run dept": rf"no probe 'dept' \(did you mean 'depth'\?\): choose from {ALL_PROBES}$",
    "probe run depth extra": "'extra' is not of the form key=value",
    "probe gone depth": NO_CHECKPOINT,
    "probe '' depth": f"an argument {EMPTY}",
    "probe file depth": "file is a text file, not a checkpoint: it begins with 'mine'",
    "probe empty depth": r"empty holds no checkpoint: neither checkpoints/last\.pt nor config\.json is there",
    "probe bare depth": r"bare holds no checkpoint: bare/checkpoints/last\.pt is not there",
    "probe torn depth": r"last\.pt is truncated, its end is missing: download or copy it again",
    "probe nothing.pt depth": "nothing.pt is empty: download or copy it again",
    "probe list.pt depth": "list.pt holds a list, no checkpoint of a known layout",
    "probe words.pt depth": "words.pt is not a checkpoint",
    "probe later.pt depth": r"later\.pt has format 99, and this version of depthjepa reads 2 and 3",
    "probe part.pt depth": r"part\.pt is no whole checkpoint: model is missing",
    "probe torn.safetensors depth": "torn.safetensors is truncated or not a safetensors file",
    "probe foreign.safetensors depth": r"does not hold an encoder of I-JEPA: patch_embed\.proj\.weight is missing",
    "probe garbled depth": r"garbled/config\.yaml is damaged",
    "probe run depth --data gone": r"data\.root: there is no folder gone",
    "probe run depth --data flat": "the depth probe needs depth, and flat has none: give an RGB-D folder",
    "probe run depth --data ''": f"--data {EMPTY}",
    "probe run knn": "the knn probe needs labels, and pairs has none: give a class folder",
    "probe run decode": r"no pixel head to decode depth with .*: probe its features with `depthjepa probe",
    "probe run depth --data flat data.root=pairs": "data.root=pairs, but flat is given as the data already",
    "probe run depth evaluation.nearest=1": r"it takes evaluation\.depth_readout=linear, linear4 or dpt",
    "probe run depth evaluation.neighbours=5": "no effect on depth probes: the probe that reads it is knn",
    "probe run depth train.steps=5": r"belongs to the checkpoint; a probe takes train\.device and train\.threads",
    "probe run depth model.width=64": r"model\.\* belongs to the checkpoint",
    "probe run depth data.image_size=50": "does not divide .* 48 x 48",
    "probe run depth --out file/a.json": A_FILE,
    "probe run depth --out folder.json": "folder.json cannot be written: Is a directory",
    "probe run linear --data classes data.classes=[green]": "no class 'green' in classes/train; there are 2: blue, red",
    "diagnose gone": NO_CHECKPOINT,
    "diagnose run --gate": r"No such option: --gate \(Possible options: .*--gates",
    "diagnose run --against gone": NO_CHECKPOINT,
    "diagnose run --against run": "--against run: this is the run itself; give its unguided twin",
    "diagnose run --gates --data flat": "the gates probe needs depth, and flat has none",
    "diagnose run evaluation.gate_steps=5": "no effect on diagnoses: the probe that reads it is gates",
    "diagnose run --out file/x": A_FILE,
    "embed run flat": "Missing option '--out'",
    "embed run '' --out a.npz": f"an argument {EMPTY}",
    "embed run flta --out a.npz": r"there is no folder flta \(did you mean 'flat'\?\)",
    "embed run file --out a.npz": "file is a file, not a folder",
    "embed run texts --out a.npz": r"texts holds no images \(accepted: \.jpg",
    "embed run flat --out a.csv": r"embeddings are written as \.npz, \.parquet, \.safetensors",
    "embed run flat --out folder.npz": "folder.npz cannot be written: Is a directory",
    "embed run flat --out file/a.npz": A_FILE,
    "embed run flat --out a.npz data.root=pairs": "data.root=pairs, but flat is given as the data already",
    "embed run flat --out a.npz evaluation.neighbours=4": "no effect on embeddings: the probe that reads it is knn",
    "embed torn flat --out a.npz": r"last\.pt is truncated",
    "predict run gone --out maps": "there is no folder gone",
    "predict run '' --out maps": f"an argument {EMPTY}",
    "predict run flat --out maps": r"depth\.safetensors is not there: fit a depth readout first with `depthjepa probe",
    "predict run flat --out file": A_FILE,
    "predict later.pt flat --out maps": "later.pt has format 99",
}
PAGES = {
    "report run": "Missing option '--out'",
    "report gone --out r.html": "gone is not a run folder: it has no config.yaml",
    "report pairs --out r.html": "pairs is not a run folder: it has no config.yaml$",
    "report foreign.safetensors --out r.html": r"`depthjepa compare foreign\.safetensors --data DATA",
    "report run run --out r.html": "run: this run is given twice",
    "report run --out r.txt": r"a report is one HTML file; give a path that ends in \.html",
    "report run --out file/r.html": A_FILE,
    "report garbled --out r.html": r"garbled/config\.yaml is damaged: while parsing",
    "report unsummed --out r.html": r"unsummed/summary\.json is damaged",
    "report unmeasured --out r.html": r"unmeasured/metrics\.jsonl, line 1 is damaged",
    "report undrawn --out r.html": r"undrawn/figures/.*\.npz is damaged",
    "show mask demo --out a.png": r"no picture 'mask' \(did you mean 'masks'\?\): choose from masks, batch",
    "show masks nope --out a.png": "there is no recipe 'nope'",
    "show masks demo --out a.txt": r"cannot be written as '\.txt'; use \.png, \.pdf, \.svg",
    "show masks demo --out folder.png": "folder.png cannot be written: Is a directory",
    "show masks demo --no-photographs --out a.png": rf"--no-photographs is for {listed(SPARED)}: masks is",
    "show batch demo data.root=gone --out a.png": "there is no folder gone",
    "show features gone --out a.png": NO_CHECKPOINT,
    "show features run run --out a.png": "run: this run is given twice",
    "show depth run --out a.png": r"run/probes/depth\.npz is not there: run `depthjepa probe run depth` first",
    "convert run new --to keras": "no layout 'keras': choose from depthjepa, checkpoint, reference, hf",
    "convert run new --to hf --which both": "no encoder 'both': choose from target, context",
    "convert run file --to safetensors": "file exists already: give a new path",
    "convert run mine --to hf": "mine exists already: give a new path",
    "convert run file/x --to safetensors": A_FILE,
    "convert run '' --to hf": f"an argument {EMPTY}",
    "convert run new --to hf model.heads=3": r"says all about itself: model\.heads=3 is for checkpoints of other",
    "convert part.pt new --to hf": r"part\.pt is no whole checkpoint: model is missing",
    "convert bare new --to hf": r"bare holds no checkpoint: bare/checkpoints/last\.pt is not there",
    "bench nonsense=1": "unknown key 'nonsense'",
    "bench --json file/x": A_FILE,
    "bench --json folder.json": "folder.json cannot be written: Is a directory",
    "bench data.image_size=50": r"model\.patch_size=16 does not divide .* 48 x 48",
    "bench guidance.cache=gone guidance.kind=feature": "gone is no cache of latents",
}
OF_STUDIES = {
    "nope": "there is no study 'nope'; give a file, or one of .*pixel-causes",
    "pixel-cause": r"did you mean 'pixel-causes'\?",
    "gone.yaml": r"there is no study file gone\.yaml",
    "folder.yaml": "folder.yaml is a folder, not a study file",
    "broken.yaml": "broken.yaml is not YAML, line 2, column 1",
    "listed.yaml": "listed.yaml does not hold keys and values",
    "empty.yaml": "base is missing; arms is missing; seeds is missing",
    "study-unknown.yaml": r"unknown key 'probs' \(did you mean 'probes'\?\)",
    "study-missing.yaml": "base is missing$",
    "study-typo.yaml": r"arm 'plain': .*did you mean 'model\.width'\?",
    "study-no-arms.yaml": "needs at least one arm and one seed",
    "study-no-seeds.yaml": "needs at least one arm and one seed",
    "study-arms-list.yaml": r"arms: should be a mapping of names to lists, got \['a', 'b'\]",
    "study-arm-text.yaml": r"arms\.plain: should be a list, got 'seed=1'",
    "study-arm-name.yaml": "arm 'a/b': the name is to name a folder",
    "study-arm-key-twice.yaml": r"arm 'plain': train\.log_every: given more than once",
    "study-arm-twice.yaml": "the key 'plain' is given twice",
    "study-arm-seed.yaml": "seed is given by `seeds` of a study",
    "study-no-recipe.yaml": r"no recipe 'photoz' \(did you mean 'photos'\?\)",
    "study-words.yaml": "seeds: should be a list, got 'three'",
    "study-seed-twice.yaml": "seed 1 is given twice",
    "study-negative.yaml": r"seeds\.0: should be greater than or equal to 0, got -1",
    "study-settings.yaml": r"settings: should be a list, got 'data\.root=pairs'",
    "study-probe.yaml": r"no probe 'dept' \(did you mean 'depth'\?\)",
    "study-probe-labels.yaml": "the knn probe needs labels, and pairs has none",
    "study-probe-twice.yaml": "probe 'depth' is given twice",
    "study-claim-figure.yaml": r"depth probes have no figure 'r2_withn' \(did you mean 'r2_within'\?\): choose from",
    "study-claim-probe.yaml": r"dept\.r2_within is no figure of a probe .*give PROBE\.KEY with one of depth",
    "study-claim-arm.yaml": r"no arm 'plian' \(did you mean 'plain'\?\)",
    "study-claim-against.yaml": r"no arm 'othr' \(did you mean 'other'\?\)",
    "study-claim-itself.yaml": "plain is to stand against others, not against itself",
    "study-claim-margin.yaml": r"claims\.0\.margin: should be greater than 0, got -0\.1",
    "study-claim-half.yaml": r"claims\.0\.margin is missing",
    "study-name.yaml": r"name '\.\./up' is to name a folder",
    "study-minutes.yaml": "minutes: should be greater than 0",
    "study-minutes-and-steps.yaml": r"train\.steps is given by `minutes` of a study",
    "study-none-at-a-time.yaml": "side_by_side: should be greater than 0",
    "study-good.yaml --shard 5/4": "the first of 4 parts is 0/4, the last 3/4",
    "study-good.yaml --shard x": "--shard 'x': give I/N, such as 0/4",
    "study-good.yaml --shard 0/0": "--shard 0/0",
    "study-good.yaml --shard ''": f"--shard {EMPTY}",
    "study-good.yaml --out file": A_FILE,
    "study-good.yaml --out mine": "mine is there already: go on with --resume, or choose another --out",
    "study-good.yaml --out gone --resume": "--resume: there is no study in gone; leave --resume out",
    "study-good.yaml --keep file": A_FILE,
    "study-good.yaml nonsense=1": "unknown key 'nonsense'",
    "study-good.yaml seed=3": "seed is given by `seeds` of a study",
    "study-good.yaml data.root=gone": "there is no folder gone",
    "study-good.yaml optim.lr=1 optim.lr=2": r"optim\.lr: given more than once",
}
CASES = {
    **COMMANDS,
    **SYNTAX,
    **{f"train demo {settings}": said for settings, said in VALUES.items()},
    **FILES,
    **TEACHERS,
    **PROBES,
    **PAGES,
    **{f"study {rest}": said for rest, said in OF_STUDIES.items()},
}


def snapshot(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Size and time of every file; folders, in which a lock comes and goes."""
    return {
        str(each): None if each.is_dir() else (each.lstat().st_size, each.lstat().st_mtime_ns)
        for each in folder.rglob("*")
    }


def answered(said: str, status: int, output: str, errors: str) -> None:
    # A machine that is busy with other tests may take so long that the command tells that it is at work.
    output = re.sub(r"^[\w-]+: for \d+ s$\n", "", output, flags=re.MULTILINE)
    assert (status, output) == (2, ""), errors
    assert errors.startswith("depthjepa: ") and errors.count("\n") == 1 and errors.endswith("\n"), errors
    assert re.search(said, errors.rstrip("\n")), errors


@pytest.mark.parametrize(("line", "said"), CASES.items(), ids=list(CASES))
def test_odd_input_is_answered_in_one_line(
    line: str, said: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(training, "loop", lambda *_: pytest.fail("accepted"))
    before = snapshot(place)
    answered(said, *call(*shlex.split(line)))
    assert snapshot(place) == before


def test_no_gpu_is_said(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for line in ("train demo train.device=cuda", "probe run depth train.device=cuda:7", "bench train.device=cuda"):
        answered("device 'cuda.*' was asked for, but there is no CUDA GPU here: use cpu", *call(*line.split()))


PROCESSES = {
    "nonsense": "there is no command 'nonsense'",
    "train": "Missing argument 'recipe'. Usage: depthjepa train",
    "probe torn depth": "is truncated, its end is missing",
    "study study-claim-arm.yaml": r"no arm 'plian' \(did you mean 'plain'\?\)",
    "report gone --out r.html": "gone is not a run folder",
}
LOCKED = {
    "train locked.yaml": r"locked\.yaml cannot be read: Permission denied",
    "train photos data.root=locked": r"locked/\S+: Permission denied",
    "probe locked depth": r"locked/\S+: Permission denied",
    "train demo --out shut/run": "shut/run cannot be written: shut may not be written in",
    "embed run flat --out shut/a.npz": r"shut/a\.npz cannot be written: shut may not be written in",
}
# What lets root read and write everything.
RIGHTS = ("dac_override", "dac_read_search")


@pytest.mark.slow
def test_a_process_answers_as_main_does(place: Path) -> None:
    before = snapshot(place)
    started = {line: start(*shlex.split(line), cwd=place) for line in PROCESSES}
    for line, process in started.items():
        output, errors = process.communicate(timeout=120)
        answered(PROCESSES[line], process.returncode, output, errors)
    assert snapshot(place) == before


@pytest.mark.slow
def test_what_may_not_be_read_or_written_is_named(place: Path) -> None:
    """Root may do everything, so that its processes give up the rights that it takes."""
    without: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and there is no setpriv to take that right away")
        without = ["setpriv", "--bounding-set", ",".join(f"-{right}" for right in RIGHTS)]
    locked = (place / "locked.yaml", place / "locked", place / "shut")
    locked[0].write_text("seed: 1\n")
    for folder in locked[1:]:
        folder.mkdir()
    before = snapshot(place)
    for path, mode in zip(locked, (0, 0, 0o555), strict=True):
        path.chmod(mode)
    try:
        started = {
            line: subprocess.Popen(
                [*without, sys.executable, "-m", "depthjepa", *shlex.split(line)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=place,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for line in LOCKED
        }
        for line, process in started.items():
            output, errors = process.communicate(timeout=120)
            answered(LOCKED[line], process.returncode, output, errors)
    finally:
        for path in locked:
            path.chmod(0o755)
        after = snapshot(place)
        for path in locked:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert after == before
