"""Runs small enough for tests: settings, images made from an integer formula, runs in this and in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from depthjepa.config import RunConfig, build_config, to_mapping
from depthjepa.logbook import RunFolder
from depthjepa.train import train

Call = Callable[..., tuple[int, str, str]]  # the fixture `call`: arguments to exit status, output, errors

SETTINGS = (
    "data.image_size=48",
    "data.crop_scale=[0.5, 1.0]",
    "data.flip=true",
    "model.patch_size=8",
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "predictor.width=16",
    "predictor.depth=1",
    "train.batch_size=8",
    "train.log_every=1",
    "train.threads=1",
)
GUIDED = ("guidance.kind=feature", "guidance.weight=0.5")
CLOCK = ("images_per_second", "waiting_share", "seconds", "peak_memory_bytes")  # what differs from run to run


def picture(number: int, height: int = 56, width: int = 72) -> np.ndarray:
    """Triangle waves whose direction and period depend on the number, and a light box, uint8 [height, width, 3]."""
    row, column = np.mgrid[:height, :width]
    waves = [column * (2 + number % 5) + row * factor + 37 * number * factor for factor in (1, 3, 5)]
    pixels = np.stack([np.abs(wave % 510 - 255) // 2 for wave in waves], axis=-1).astype(np.uint8)
    pixels[box(number)] = (255, 250 - 10 * (number % 11), 200)
    return pixels


def millimetres(number: int, height: int = 56, width: int = 72) -> np.ndarray:
    """The box before a slanted wall; the first rows are unmeasured (0)."""
    row, column = np.mgrid[:height, :width]
    depth = 4000 - 40 * row + 10 * column
    depth[box(number)] = 1500 + 50 * (number % 11)
    depth[:2] = 0
    return depth.astype(np.uint16)


def box(number: int) -> tuple[slice, slice]:
    """Rows and columns of the box."""
    top, left = 4 + 5 * (number % 5), 3 + 8 * (number % 4)
    return slice(top, top + 28), slice(left, left + 36)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pairs(root: Path, train_images: int = 24, val_images: int = 8) -> Path:
    """An RGB-D folder."""
    for split, numbers in (("train", range(train_images)), ("val", range(1000, 1000 + val_images))):
        for number in numbers:
            save(root / split / "rgb" / f"{number:04}.png", picture(number))
            save(root / split / "depth" / f"{number:04}.png", millimetres(number))
    return root


def write_classes(root: Path, images: int = 12) -> Path:
    """A class folder of two classes that colour tells apart."""
    for split in ("train", "val"):
        for number in range(images):
            for word, channel in (("red", 0), ("blue", 2)):
                pixels = picture(number if split == "train" else 1000 + number)
                pixels[..., channel] = 255
                save(root / split / word / f"{number:04}.png", pixels)
    return root


def write_flat(root: Path, images: int, size: int = 16) -> Path:
    """A folder of images without labels or depth."""
    for number in range(images):
        save(root / f"{number:04}.png", picture(number, size, size))
    return root


def tiny(root: Path, *overrides: str) -> RunConfig:
    """A configuration of a tiny run on `root`."""
    return build_config({"name": "tiny"}, [f"data.root={root}", *SETTINGS, *overrides])


def run(root: Path, out: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
    """Train a tiny run in this process."""
    return train(tiny(root, *overrides), out, resume=resume, say=lambda _: None)


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    """Everything that a checkpoint holds."""
    content: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    return content


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Places where two nested contents are not bit by bit the same."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [fault for key in first for fault in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, (list, tuple)) and type(first) is type(second) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [fault for number, pair in pairs for fault in differences(*pair, f"{place}/{number}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [place]
    return [] if type(first) is type(second) and first == second else [place]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The logged steps without what the clock says."""
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in RunFolder(folder).metrics()]


def recipe_file(path: Path, root: Path, *overrides: str) -> Path:
    """A YAML file of a tiny configuration, for the command line."""
    path.write_text(yaml.safe_dump(to_mapping(tiny(root, *overrides))))
    return path


def start(*arguments: str | Path, module: Sequence[str] = ("depthjepa.cli",), **options: Any) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` with one thread, outside of this process's settings."""
    return subprocess.Popen(
        [sys.executable, "-m", *module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        **options,
    )
