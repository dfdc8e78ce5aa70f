"""What a process keeps: memory that it freed, so that the system need not clear every page anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
def test_a_settled_process_asks_for_the_same_memory_once() -> None:
    """Ten times 48 MB are 117,000 pages of 4 KiB, or 230 of 2 MiB: either way far more than none."""
    told = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True, timeout=120)
    as_it_is, settled = map(int, told.stdout.split())
    assert settled < 10
    assert as_it_is > 10 * settled + 50
