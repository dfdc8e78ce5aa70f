"""Device, precision, random numbers and memory: the only file that touches PyTorch's global state.

Randomness is an argument here. `uniforms` is a pure function of (seed, stream, epoch, sample index), so any
mask or crop can be drawn again, whatever the batch size, the number of workers or the rank that asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from depthjepa.distributed import Ranks, ranks
from depthjepa.faults import BadInput

# Of glibc's malloc.h: above which free memory is given back (-1: never), how many blocks are the system's own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

Precision = Literal["fp32", "bf16"]
BF16_MARGIN = 1.3  # how much faster bf16 has to multiply to be chosen


def device(name: str | None = None, ranks: Ranks | None = None) -> torch.device:
    """Return the device asked for; without a name, this rank's GPU if there is one, else the CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", ranks.local if ranks else 0)
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise BadInput(f"device {name!r} is unknown: use cpu, cuda or cuda:N")
    chosen = torch.device(name)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device {name!r} was asked for, but there is no CUDA GPU here: use cpu")
    if name == "cuda" and ranks:
        return torch.device("cuda", ranks.local)
    if chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
        raise BadInput(f"device {name!r} was asked for, and there are {count} GPUs here, from cuda:0")
    return chosen


def settle_cpu(threads: int | None) -> None:
    """Set the number of threads of this process (None: PyTorch's own choice), and keep memory that it frees.

    glibc gives large blocks back to the system as soon as they are freed and asks for them again in the next step: the
    system clears every page anew, which was a sixth of a training step and half of an autoencoder's pass on a CPU. The
    peak is the same. Elsewhere than on glibc only the threads are set.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_MAX, 0)


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5, side: int | None = None) -> float:
    """Measured operations a second of a square matrix product in `dtype` (median over repetitions).

    `side` of the matrices: 2048, and 8192 on a GPU, which smaller ones leave half idle.
    """
    side = side or (8192 if device.type == "cuda" else 2048)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    for _ in range(2):
        left @ right
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        synchronise(device)
        begin = time.perf_counter()
        left @ right
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / float(np.median(times))


@functools.cache
def faster_precision(device: torch.device) -> Precision:
    """Measure, once in a process, which of the two networks are faster in: bf16 where its matrix products clearly are.

    What is not a matrix product gains nothing from bf16 on a CPU and pays for the casts, hence the margin. On a CPU
    the matrices are small: without bf16 instructions a product of large ones takes minutes.
    """
    side = None if device.type == "cuda" else 256
    rates = [matmul_rate(device, dtype, seconds=0.1, side=side) for dtype in (torch.float32, torch.bfloat16)]
    return "bf16" if rates[1] > BF16_MARGIN * rates[0] else "fp32"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settled(name: str, device: torch.device) -> str:
    """A precision, where `auto` is asked for the faster one of this machine."""
    return faster_precision(device) if name == "auto" else name


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in `fp32`, also inside of bf16, or under bf16 autocast (`bf16`; weights and optimiser in float32).

    `auto`: the one that this machine multiplies faster, see `settled`.
    """
    name = settled(name, device)
    if torch.amp.is_autocast_available(device.type):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
            yield
    else:  # shapes alone, on the meta device
        yield


def generator(seed: int, stream: str = "") -> torch.Generator:
    """Return a CPU generator whose state depends on (seed, stream) alone."""
    return torch.Generator().manual_seed(_key(seed, stream, 0)[0] & (2**63 - 1))


@contextlib.contextmanager
def seeded(seed: int, stream: str) -> Iterator[None]:
    """Let code that draws from PyTorch's own generator (a library's initial weights) depend on (seed, stream) alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, stream).initial_seed())
        yield


def uniforms(count: int, *, seed: int, stream: str, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Draw `count` numbers in [0, 1) for each sample index: a pure function of its arguments.

    Each row comes from a Philox counter generator (Salmon et al. 2011) of its own, keyed by (seed, stream,
    epoch) with the sample index in the counter; rows of different indices never overlap.

    Returns an array [len(indices), count], float64.
    """
    key = np.array(_key(seed, stream, epoch), dtype=np.uint64)
    rows = np.empty((len(indices), count))
    for row, index in zip(rows, indices, strict=True):
        counter = np.array([0, 0, index, 0], dtype=np.uint64)
        np.random.Generator(np.random.Philox(counter=counter, key=key)).random(out=row)
    return rows


def permutation(length: int, *, seed: int, stream: str, epoch: int) -> np.ndarray:
    """Return a random order of `range(length)`: a pure function of (seed, stream, epoch)."""
    key = np.array(_key(seed, stream, epoch), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(length)


def _key(seed: int, stream: str, epoch: int) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}/{epoch}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: on a GPU what was allocated there, else the resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _resident_bytes("VmHWM")


def held_bytes(device: torch.device) -> int:
    """Memory that is taken now: of a GPU by whoever works on it, else of the machine by this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return _resident_bytes("VmRSS")


def _resident_bytes(which: str) -> int:
    """Resident size of this process: now (`VmRSS`) or at most (`VmHWM`); both the latter where there is no /proc.

    What `getrusage` calls the maximum counts the process that started this one, too, as long as it was that one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    line = next(line for line in status.read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


def free_bytes(device: torch.device) -> int:
    """Memory that nobody has taken: of a GPU, else of the machine or of the container that this is."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return machine_bytes() - held_bytes(device)
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return min(1024 * int(line.split()[1]), machine_bytes() - held_bytes(device))


def memory_bytes(device: torch.device, ranks: Ranks) -> int:
    """Memory that a process may take: its GPU's, else its share of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return machine_bytes() // ranks.beside


def machine_bytes() -> int:
    """The memory of this machine, or of the container that this is where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            found.append(int(text))
    return min(found)


def _commit() -> str | None:
    """The commit of the source tree; None where this file is not in one (an environment may lie in another's)."""
    here = Path(__file__).resolve()
    command = ["git", "-C", str(here.parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return None
    own = len(found) == 2 and Path(found[0]).resolve() == here.parents[2]
    return found[1] if own else None


def environment() -> dict[str, object]:
    """Describe what a run ran on: versions, processor, threads, GPU, commit of the source tree."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "world": ranks().world,
        "commit": _commit(),
    }
