"""How a run's checkpoints are written: one file by the first process, or parts by all while training goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from depthjepa import distributed
from depthjepa.checkpoints import checkpoint, parts
from depthjepa.logbook import REST, RunFolder, parts_at

PLAIN_COPY = StagingOptions(
    use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
)


class Saving:
    """Writes the checkpoints of a run, one at a time; all its processes ask for the same.

    Those in parts are written in the background. What is written is a copy, taken when it is asked for: the training
    goes on to change what it was made of. A write that failed is raised where the next one is asked for, or where
    `settle` waits for it; at the end of the block that this object is entered for nothing is being written any more.
    """

    def __init__(self, folder: RunFolder, ranks: distributed.Ranks, minutes: float, *, in_parts: bool) -> None:
        self.folder, self.ranks, self.in_parts = folder, ranks, in_parts
        self._group = distributed.background_group(ranks, minutes) if in_parts else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None
        if in_parts:  # what kills have left would be taken for parts of what is written next
            distributed.first_writes(ranks, lambda: parts.remove_torn(folder.path / "checkpoints"))

    def save(self, name: str, step: int, content: Mapping[str, Any]) -> None:
        """Write a `checkpoint.content`, or begin to.

        Raises `RunStopped` when a disk is full; the checkpoint that was there stays as it was.
        """
        self.settle()
        if not self.in_parts:
            path = self.folder.path / "checkpoints" / f"{name}.pt"
            self._at_once(path, lambda: checkpoint.save(path, content))
            return
        path = parts_at(self.folder.path, name, step)
        tensors, rest = parts.split(content)
        if distributed.of_first((path / REST).is_file(), self.ranks):  # of this very step: the same shares
            self._at_once(path, lambda: parts.write_rest(path, rest))
            return
        copies = DefaultStager(PLAIN_COPY).stage(tensors)
        self._last = self._thread.submit(self._write_parts, path, copies, rest)

    def settle(self) -> None:
        """Wait until what was begun is written; raises what kept it from being so."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _at_once(self, path: Path, write: Callable[[], None]) -> None:
        def whole() -> None:
            write()
            parts.remove_others(path)

        distributed.first_writes(self.ranks, whole)

    def _write_parts(self, path: Path, tensors: Any, rest: Mapping[str, Any]) -> None:
        try:
            parts.write(path, tensors, rest, self.ranks, self._group)
        except BaseException:
            if self.ranks.first:
                shutil.rmtree(path, ignore_errors=True)  # a disk that is full has no room for what does not count
            raise
        if self.ranks.first:
            parts.remove_others(path)

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
