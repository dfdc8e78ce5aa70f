"""Every command by itself, in an environment without extras: it works, or ends with one line that names its extra.

Run by tools/wheel_check.sh in an empty folder, with the wheel. All commands share one process, since most of a short
command's time is spent on imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from depthjepa.cli import app, main

DATA = ("data.scenes_train=64", "data.scenes_val=32")
SMALL = (*DATA, "model.width=32", "model.depth=2", "model.heads=2", "train.batch_size=8", "train.precision=fp32")
STUDY = f"""
name: two
base: demo
settings: [{", ".join(SMALL)}, train.steps=2, guidance.kind=none, evaluation.precision=fp32]
seeds: 1
probes: [depth]
arms:
  a: []
  b: [train.batch_size=4]
"""
WORKS = (
    ("train", "demo", *SMALL, "train.steps=5", "guidance.kind=none", "evaluation.precision=fp32", "--out", "run"),
    ("recipes",),
    ("recipes", "photos"),
    ("probe", "run", "depth"),
    ("compare", "run", "--data", "scenes", "--tasks", "depth", "--no-random", "--out", "compared", *DATA),
    ("diagnose", "run"),
    ("embed", "run", "photographs", "--out", "embeddings.npz"),
    ("predict", "run", "photographs", "--out", "maps"),
    ("show", "depth", "run", "--out", "depth.png"),
    ("report", "run", "--out", "report.html"),
    ("convert", "run", "encoder.safetensors", "--to", "safetensors"),
    ("study", "two.yaml", "--out", "two"),
    ("bench", *SMALL, "guidance.kind=none"),
    ("prepare", "realsense", "recording", "--out", "prepared"),
)
MISSES = {
    "teachers": (
        ("demo", "--out", "demo"),
        ("train", "demo", *SMALL, "guidance.teacher=depthfm-tiny", "--out", "taught"),
        ("teach", "--data", "photographs", "--teacher", "depthfm-tiny", "--out", "latents"),
        ("fit-teacher", "--data", "scenes", "--out", "teacher"),
        ("push", "run", "someone/encoder", "--licence", "apache-2.0"),
        ("compare", "run", "timm:vit_tiny_patch16_224", "--data", "scenes"),
    ),
    "loggers": (("train", "demo", *SMALL, "train.loggers=[mlflow]", "guidance.kind=none", "--out", "logged"),),
    "export": (
        ("convert", "run", "encoder.onnx", "--to", "onnx"),
        ("embed", "photographs.onnx", "photographs", "--out", "other.npz"),
    ),
    "tables": (
        ("embed", "run", "photographs", "--out", "embeddings.parquet"),
        ("prepare", "lerobot", "robot", "--registered", "--out", "robots"),
    ),
    "hub": (("train", "photos", "data.root=hub:owner/name", "--out", "fetched"),),
    "remote": (("train", "photos", "data.root=s3://bucket/photos", "--out", "fetched"),),
    "record3d": (("prepare", "record3d", "phone.r3d", "--out", "phones"),),
}


def run(*words: str) -> tuple[int, str]:
    """Exit status of a command, and what it said of faults."""
    sys.argv, errors = ["depthjepa", *words], io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else int(end.code is not None)), errors.getvalue()
    return 0, errors.getvalue()


def write_sources() -> None:
    """Two photographs, a RealSense recording, and files that only an extra can read."""
    random = np.random.default_rng(0)
    for folder in ("photographs", "recording/color", "recording/depth", "robot/meta"):
        Path(folder).mkdir(parents=True)
    for number in range(2):
        photograph = Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        photograph.save(f"photographs/{number}.png")
        photograph.save(f"recording/color/{number:05}.jpg")
        Image.fromarray(random.integers(500, 5000, (48, 64)).astype(np.uint16)).save(f"recording/depth/{number:05}.png")
    camera = {"width": 64, "height": 48, "depth_scale": 1000.0, "intrinsic_matrix": [60, 0, 0, 0, 60, 0, 32, 24, 1]}
    Path("recording/intrinsic.json").write_text(json.dumps(camera))
    cameras = {
        "observation.images.hand": {"dtype": "image"},
        "observation.images.hand_depth": {"dtype": "image", "info": {"is_depth_map": True, "depth_unit": "mm"}},
    }
    robot = {"codebase_version": "v3.0", "features": cameras}
    Path("robot/meta/info.json").write_text(json.dumps(robot))
    Path("photographs.onnx").write_bytes(b"")
    Path("phone.r3d").write_bytes(b"")
    Path("two.yaml").write_text(STUDY)


def faults() -> list[str]:
    """What did not go as it is to."""
    found = []
    for words in WORKS:
        status, said = run(*words)
        if status != 0:
            found.append(f"{' '.join(words)}: ended with status {status} and said: {said.strip()}")
    for extra, commands in MISSES.items():
        for words in commands:
            status, said = run(*words)
            if status != 2 or len(said.strip().splitlines()) != 1 or f"depthjepa[{extra}]" not in said:
                found.append(f"{' '.join(words)}: does not ask for {extra!r}: status {status}, {said.strip()}")
    tried = {words[0] for words in (*WORKS, *(words for commands in MISSES.values() for words in commands))}
    names = {str(each.name or each.callback.__name__.replace("_", "-")) for each in app.registered_commands}  # type: ignore[union-attr]
    found += [f"{name}: not tried" for name in sorted(names - tried)]
    return found


if __name__ == "__main__":  # studies start processes that import this file
    write_sources()
    if found := faults():
        sys.exit("\n".join(found))
