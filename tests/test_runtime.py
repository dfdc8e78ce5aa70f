"""What a process keeps: memory that it freed, so that the system need not clear every page anew."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from depthjepa import runtime
from depthjepa.faults import BadInput

COUNT_FAULTS = """
import resource, torch
from depthjepa import runtime

def faults():
    for _ in range(20):  # until its heap has room
        torch.ones(12_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
runtime.settle_cpu(1)
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is told to keep memory on glibc alone")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadInput, match="'cuda:7' was asked for, and there are 2 GPUs here"):
        runtime.device("cuda:7")


def test_the_commit_is_that_of_this_project_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may lie in somebody else's repository."""
    for words in (
        ("init", "-q"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "a"),
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    for place, own in (("src/depthjepa", True), (".venv/lib/depthjepa", False)):
        (tmp_path / place).mkdir(parents=True)
        monkeypatch.setattr(runtime, "__file__", str(tmp_path / place / "runtime.py"))
        assert (runtime.environment()["commit"] is not None) is own


def test_a_settled_process_asks_for_the_same_memory_once() -> None:
    """Ten times 48 MB are 117,000 pages of 4 KiB, or 230 of 2 MiB: either way far more than none."""
    told = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True, timeout=120)
    as_it_is, settled = map(int, told.stdout.split())
    assert settled < 10
    assert as_it_is > 10 * settled + 50
