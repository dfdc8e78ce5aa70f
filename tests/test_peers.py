"""benchmarks/peers.py measures what is there and says what is not; a stand-in has the released code's interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORKS = """
import torch
from torch import nn
from src.masks.utils import apply_masks
from src.utils.tensors import repeat_interleave_batch


class Encoder(nn.Module):
    def __init__(self, img_size, patch_size):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 192, patch_size, patch_size)
        self.patch_embed.num_patches = (img_size[0] // patch_size) ** 2
        self.embed_dim, self.num_heads = 192, 3

    def forward(self, images, masks=None):
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2)
        return tokens if masks is None else apply_masks(tokens, masks)


class Predictor(nn.Module):
    def __init__(self, num_patches, embed_dim, predictor_embed_dim, depth, num_heads):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, num_patches, embed_dim))
        self.last = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens, masks_x, masks):
        asked = apply_masks(self.places.repeat(len(tokens), 1, 1), masks)
        return self.last(asked + tokens.mean(1, keepdim=True).repeat(len(masks), 1, 1))


vit_tiny, vit_predictor = Encoder, Predictor
"""
GATHERING = """
import torch


def apply_masks(tokens, masks):
    return torch.cat([tokens.gather(1, mask[..., None].expand(-1, -1, tokens.shape[-1])) for mask in masks])
"""
REPEATING = """
def repeat_interleave_batch(tokens, size, repeat):
    assert repeat == 1 and len(tokens) % size == 0
    return tokens
"""


def checkout(folder: Path) -> Path:
    """Modules of the released code's names and calls, with other networks inside."""
    for name, text in {
        "models/vision_transformer": NETWORKS,
        "masks/utils": GATHERING,
        "utils/tensors": REPEATING,
    }.items():
        file = folder / "src" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    return folder


def peers(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tiny = (
        "--size",
        "tiny",
        "--image",
        "64",
        "--patch",
        "8",
        "--batch",
        "4",
        "--depth",
        "1",
        "--turns",
        "2",
        "--steps",
        "1",
    )
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), *tiny, "--threads", "1", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_what_is_there_is_measured_in_turn(tmp_path: Path) -> None:
    found = peers("--reference", checkout(tmp_path / "ijepa"), "--json", tmp_path / "peers.json")
    assert found.returncode == 0, found.stderr
    figures = json.loads((tmp_path / "peers.json").read_text())
    assert figures["ours"]["times_ours"] == 1
    for name in ("reference", "ours"):
        of = figures[name]
        assert of["images_per_second"] == pytest.approx(4 / of["seconds_per_step"])
        assert of["fraction_of_matmul_rate"] == pytest.approx(
            figures["operations_per_step"] / of["seconds_per_step"] / of["matmul_rate"]
        )
        assert f"{name}: {of['seconds_per_step']:.3f} s a step, {of['times_ours']:.2f} times ours" in found.stdout
    # One layer and a half takes less than twelve and a predictor.
    assert figures["reference"]["times_ours"] < 1


@pytest.mark.slow
def test_what_is_not_there_is_left_out_and_said(tmp_path: Path) -> None:
    found = peers("--reference", tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"reference: left out, {tmp_path} is no checkout of facebookresearch/ijepa" in found.stdout
    assert "ours: " in found.stdout and "1.00 times ours" in found.stdout
