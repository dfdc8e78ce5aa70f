"""Letting worker processes answer requests, in order; their faults are raised here."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from depthjepa.faults import BadInput, OutOfReach, RunStopped
from depthjepa.stopping import SIGNALS

Answer = TypeVar("Answer")
Fault = BadInput | OutOfReach
FAULTS = (BadInput, OutOfReach)

LOOK_EVERY = 0.5  # seconds in which a worker finds out that it is to end


def read(reader: Dataset[Answer | Fault], requests: Iterator[object], workers: int) -> Iterator[Answer]:
    """Let workers answer requests, in order and two each ahead; raise their faults here.

    An exception that leaves a worker gets the worker's traceback into its message, so faults of the user, and what does
    not answer any more, travel as values and stay one clear message.
    """
    no_more = _shared_byte() if workers else ctypes.c_byte(0)
    loader: DataLoader[Answer | Fault] = DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,  # with batch_size=None it gets an answer, not a list
        worker_init_fn=partial(_end_when_told, no_more),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws its seed from the global generator
    )
    answers = iter(loader)  # held until the workers are told: where it is dropped, it waits for them
    try:
        for answer in answers:
            if isinstance(answer, FAULTS):
                raise answer
            yield answer
    except RuntimeError as fault:
        if "DataLoader worker (pid" not in str(fault):  # a fault within a worker keeps its traceback
            raise
        raise RunStopped(
            f"a process that decodes images is gone ({str(fault).splitlines()[0]}). Where memory is short, also "
            f"that which processes share (in a container: --shm-size or --ipc=host), take fewer data.workers, or 0"
        ) from fault
    finally:
        no_more.value = 1


def _shared_byte() -> ctypes.c_byte:
    try:
        byte: ctypes.c_byte = multiprocessing.RawValue("b", 0)
        return byte
    except OSError as fault:  # it is a file in shared memory, or in the folder of temporary files
        raise RunStopped(
            f"no memory can be shared between processes ({fault.strerror}): make room in /dev/shm and "
            f"{tempfile.gettempdir()}, or take data.workers=0"
        ) from fault


def _unchanged(answer: Answer) -> Answer:
    return answer


def _end_when_told(no_more: ctypes.c_byte, worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, a scheduler's signal every process of the job; the run still
    # needs its batches to end a step in order, and then ends its workers itself: also those that are in the middle of
    # an answer, for which the loader would wait.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait, args=(no_more, os.getppid()), daemon=True).start()


def _wait(no_more: ctypes.c_byte, parent: int) -> None:
    while not no_more.value and os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(0)
