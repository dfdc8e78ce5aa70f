"""One run of a study in a process of its own: started, ended, asked why it failed, and the time of its steps."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from depthjepa import locks, runtime
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.evaluation import probes
from depthjepa.evaluation.probes import Judged
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder, writing
from depthjepa.progress import Task
from depthjepa.study.results import missing_tables
from depthjepa.training import train

POLL = 0.1  # seconds between two looks at the running processes
ORPHANED = 60.0  # seconds in which a run whose study was killed has saved and ended
WARM, MEASURED = 10, 30  # steps before and (at least) within a measurement


def spawn(content: dict[str, Any], place: Path, tasks: Sequence[str | Judged]) -> SpawnProcess:
    """Start `work` in a process of its own."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(content, place, tuple(tasks)))
    # A terminal's Ctrl-C reaches all processes, and so may Slurm's SIGUSR2: the study alone answers them, and asks its
    # runs to end by SIGTERM.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def end(processes: Sequence[SpawnProcess]) -> None:
    """Ask runs to save and end, and wait until they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be done: what it is called, its resolved configuration, its folder."""

    name: str
    config: RunConfig
    place: Path


def side_by_side(
    jobs: Sequence[Job],
    count: int,
    tasks: Sequence[str | Judged],
    stopping: Callable[[], bool],
    say: Callable[[str], None],
    shown: Task,
) -> Generator[tuple[Job, BadInput | RunStopped | None]]:
    """Train and probe, `count` jobs at a time; yield each as it ends, with its fault if it failed.

    `shown` counts those that have ended. When nobody asks any more, or `stopping`, all are ended, and each has saved.
    """
    waiting, running = list(jobs), dict[Path, tuple[Job, SpawnProcess, float]]()
    before = shown.done
    total = before + len(jobs)
    try:
        while waiting or running:
            shown.figures = ", ".join(job.name for job, *_ in running.values())
            while waiting and len(running) < count and not stopping():
                job = waiting.pop(0)
                say(f"{job.name} starts (run {total - len(waiting)} of {total})")
                started = spawn(to_mapping(job.config), job.place, tasks)
                running[job.place] = job, started, time.perf_counter()
            wait([process.sentinel for _, process, _ in running.values()], POLL)
            if stopping():
                return
            for place in [place for place, (_, process, _) in running.items() if process.exitcode is not None]:
                job, process, begin = running.pop(place)
                fault = why_failed(process, place)
                shown.done += 1
                how = "finished" if fault is None else f"failed ({fault})"
                say(f"{job.name} {how} after {time.perf_counter() - begin:.0f} s ({shown.done} of {total})")
                yield job, fault
    finally:
        end([process for _, process, _ in running.values()])


def why_failed(process: SpawnProcess, place: Path) -> BadInput | RunStopped | None:
    """Why a process failed, in one line; None for one that did not."""
    code = process.exitcode
    if not code:
        return None
    if code < 0:
        return RunStopped(f"ended by {signal.Signals(-code).name}")
    log = log_of(place)
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    said = next((line.removeprefix("depthjepa: ") for line in reversed(lines) if line.strip()), f"exit status {code}")
    return BadInput(said) if code == 2 else RunStopped(said)


def log_of(place: Path) -> Path:
    """What a run says goes there, beside its folder."""
    return place.with_name(f"{place.name}.log")


def work(content: Mapping[str, Any], place: Path, tasks: Sequence[str | Judged]) -> None:
    """Train and probe one run in this process, which says everything to the run's log file."""
    with log_of(place).open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = build_config(content)
    locks.wait_for(place, ORPHANED)
    try:
        train(config, place, resume=True)
        probe_run(config, place, tasks)
    except (BadInput, RunStopped) as fault:
        print(f"depthjepa: {fault}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(fault, BadInput) else 1)


def _end_with_parent() -> None:
    """Save and end when the study was killed: on resume, it must not meet a run of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def probe_run(config: RunConfig, place: Path, tasks: Sequence[str | Judged]) -> None:
    """Write the probe tables that a finished run has not got yet."""
    missing = missing_tables(place, tasks)
    if not missing:
        return
    runtime.settle_cpu(config.train.threads)
    probes.probe_run(config, load_checkpoint(place), missing)


def measure_seconds(config: RunConfig, side_by_side: int, folder: Path, stopping: Callable[[], bool]) -> float:
    """Mean seconds of a training step with its loading, while `side_by_side` processes train the same.

    They are ended once each has done some steps with all others at work. Scenes are rendered in the steps before, and
    images that fit into memory decoded: later steps have them at hand, as almost all of a run's have.
    Raises `RunStopped` where the steps cannot be done, or when it is to stop.
    """
    size, endless = config.train.batch_size, 10**6
    config = replace(
        config,
        data=replace(config.data, scenes_train=min(config.data.scenes_train, WARM * size)),
        init=replace(config.init, frozen_steps=0),
        train=replace(
            config.train,
            steps=endless,
            epochs=None,
            log_every=WARM,
            checkpoint_every=endless,
            probe_every=None,
            loggers=(),
        ),
    )
    with tempfile.TemporaryDirectory(prefix="measuring-", dir=folder, ignore_cleanup_errors=True) as name:
        places = [Path(name) / str(number) for number in range(side_by_side)]
        processes = [spawn(to_mapping(config), place, ()) for place in places]
        try:
            speeds = _speeds(dict(zip(places, processes, strict=True)), stopping)
        finally:
            end(processes)
    return statistics.fmean(size / speed for speed in speeds)


def _speeds(running: Mapping[Path, SpawnProcess], stopping: Callable[[], bool]) -> list[float]:
    """Images a second, logged by each of the runs since the last of them had done its first steps."""
    before: dict[Path, int] = {}
    while not stopping():
        for place, process in running.items():
            if (fault := why_failed(process, place)) is not None:
                raise fault
        logged = {place: RunFolder(place).metrics() for place in running}
        if not before and all(logged.values()):
            before = {place: len(records) + 1 for place, records in logged.items()}  # the one under way is not counted
        if before and all(len(logged[place]) - count >= MEASURED // WARM for place, count in before.items()):
            return [record["images_per_second"] for place, count in before.items() for record in logged[place][count:]]
        time.sleep(POLL)
    raise RunStopped("stopped while the time of a step was measured; continue with --resume")
