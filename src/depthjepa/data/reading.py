"""Letting worker processes answer requests, in order; their faults are raised here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from depthjepa.faults import BadInput

Answer = TypeVar("Answer")


def read(reader: Dataset[Answer | BadInput], requests: Iterator[object], workers: int) -> Iterator[Answer]:
    """Let workers answer requests, in order and two each ahead; raise their faults here.

    An exception that leaves a worker gets the worker's traceback into its message, so faults of the user
    travel as values and stay one clear message.
    """
    loader: DataLoader[Answer | BadInput] = DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,  # with batch_size=None it gets an answer, not a list
        worker_init_fn=_leave_interrupts_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws its seed from the global generator
    )
    for answer in loader:
        if isinstance(answer, BadInput):
            raise answer
        yield answer


def _unchanged(answer: Answer) -> Answer:
    return answer


def _leave_interrupts_to_parent(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, SIGTERM of a scheduler every process of the job; the run still
    # needs its batches to end a step in order, and then ends its workers itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
