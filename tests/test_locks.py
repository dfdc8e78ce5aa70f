"""A folder belongs to one process at a time, whatever becomes of it; who only reads is not locked out."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from depthjepa import cost, locks
from depthjepa.commands import demo as demonstrating
from depthjepa.commands.fit_teacher import fit_teacher
from depthjepa.commands.teach import teach
from depthjepa.config.reading import build_fit
from depthjepa.faults import BadInput
from depthjepa.locks import Holder, Lock, holder_of, locked, wait_for
from depthjepa.logbook import RunFolder
from depthjepa.study.plan import Study
from depthjepa.study.running import run_study
from tiny_images import write_flat
from tiny_runs import SETTINGS, Call, metrics, recipe_file, run, start, tiny, weights

HOLD = """
import sys
from depthjepa import locks
with locks.locked(sys.argv[1], name=sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
WITH_WORKER = """
import os, sys, time
from depthjepa import locks
with locks.locked(sys.argv[1], name=sys.argv[2]):
    if worker := os.fork():
        print(worker, flush=True)
        sys.stdin.read()
    time.sleep(60)
"""

# Holds one folder after the other, until a line says that the next one is meant or that none is.
HOLD_EACH = """
import sys
from depthjepa import locks
for line in sys.stdin:
    folder, name = line.rstrip().split("\\t")
    with locks.locked(folder, name=name):
        print("held", flush=True)
        sys.stdin.readline()
    print("free", flush=True)
"""

Started = Callable[..., subprocess.Popen[str]]
Held = Callable[..., None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flat(tmp_path_factory.mktemp("photographs"), 16, 48)


@pytest.fixture
def other() -> Iterator[Started]:
    """Start another process that holds a folder until it is ended; `said` is its first line."""
    running: list[subprocess.Popen[str]] = []

    def begin(folder: Path, name: str = locks.NAME, program: str = HOLD, said: str = "held") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert re.fullmatch(said, process.stdout.readline().strip())
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def holding() -> Iterator[Callable[[str], str]]:
    """Another process that answers each line; it starts once, since that takes seconds."""
    command = [sys.executable, "-c", HOLD_EACH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        told, answers = process.stdin, process.stdout

        def ask(line: str) -> str:
            print(line, file=told, flush=True)
            return answers.readline().strip()

        yield ask


@pytest.fixture
def held(holding: Callable[[str], str]) -> Iterator[Held]:
    """Have another process hold a folder until the test ends."""
    taken = False

    def begin(folder: Path, name: str = locks.NAME) -> None:
        nonlocal taken
        assert not taken and holding(f"{folder}\t{name}") == "held"
        taken = True

    yield begin
    assert not taken or holding("") == "free"


def left(folder: Path, **changes: object) -> Holder:
    """A lock that was left behind."""
    holder = replace(Holder.this(), **changes)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    (folder / locks.NAME).write_text(json.dumps(asdict(holder)))
    return holder


def without_locks(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no locks on this file system")


def test_who_holds_a_folder_is_named_until_it_ends(tmp_path: Path, other: Started) -> None:
    process = other(tmp_path / "run")
    with pytest.raises(BadInput) as refused, locked(tmp_path / "run"):
        pass
    said = str(refused.value)
    assert f"in use by process {process.pid} on {os.uname().nodename} since 20" in said and "(-c " in said
    assert "\n" not in said and (holder := holder_of(tmp_path / "run/.lock")) and holder.process == process.pid
    process.communicate("")
    assert process.returncode == 0 and not (tmp_path / "run").exists()  # it made the folder, and gave it back
    with locked(tmp_path / "run"):
        assert holder_of(tmp_path / "run/.lock") == replace(Holder.this(), since=holder_now(tmp_path / "run"))


def holder_now(folder: Path) -> str:
    holder = holder_of(folder / locks.NAME)
    assert holder is not None
    return holder.since


def test_a_killed_process_leaves_a_lock_that_is_said_and_taken_over(tmp_path: Path, other: Started) -> None:
    process, said = other(tmp_path), list[str]()
    process.kill()
    process.wait()
    with locked(tmp_path, say=said.append):
        assert holder_now(tmp_path)
    assert len(said) == 1 and f"process {process.pid} on" in said[0] and "which is gone" in said[0]
    with locked(tmp_path, say=said.append):
        pass
    assert len(said) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_workers_of_a_killed_process_do_not_hold_its_folder(tmp_path: Path, other: Started) -> None:
    process = other(tmp_path, program=WITH_WORKER, said=r"\d+")
    worker = int(next(iter(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())))
    process.kill()
    process.wait()
    try:
        with locked(tmp_path):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_another_machine_cannot_be_checked_and_is_not_overruled(tmp_path: Path) -> None:
    left(tmp_path, host="node7", boot="another", process=123, since="2026-01-02 03:04:05+00:00")
    with pytest.raises(BadInput, match=r"held by process 123 on node7 since 2026-01-02 03:04:05\+00:00") as refused:
        Lock(tmp_path).take()
    assert str(refused.value).endswith(f"once it has ended, remove {tmp_path / '.lock'}")
    (tmp_path / ".lock").unlink()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"boot": "before the machine was started again"}, True),
        ({"process": 2**22 + 1}, True),  # beyond all numbers of processes
        ({"start": -5}, True),  # as in a container that was started again: the same number, another process
        ({}, False),
    ],
)
def test_a_lock_of_this_machine_is_judged_by_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool, changes: dict[str, object], free: bool
) -> None:
    monkeypatch.setattr(locks, "SETTLING", 0.0)
    if not system:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    left(tmp_path, **changes)
    assert (holder_of(tmp_path / ".lock") is None) == free
    if free:
        with locked(tmp_path):
            pass
    else:
        with pytest.raises(BadInput, match=f"in use by process {os.getpid()}"), locked(tmp_path):
            pass


def test_without_locks_of_the_system_the_last_of_two_that_begin_together_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    monkeypatch.setattr(time, "sleep", lambda _: left(tmp_path, process=os.getppid(), start=0, host="node7", boot=""))
    with pytest.raises(BadInput, match="on node7"), locked(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()  # it is the other one's


def test_threads_exclude_each_other_and_a_later_lock_finds_the_folder_free(tmp_path: Path) -> None:
    count, most, refused, ended = 0, 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal count, most, refused, ended
        for _ in range(50):
            try:
                with locked(tmp_path / "deep/run"):
                    with guard:
                        count += 1
                        most = max(most, count)
                    time.sleep(0.001)
                    with guard:
                        count -= 1
            except BadInput as fault:
                assert "in use by process" in str(fault)
                refused += 1
        ended += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == 4 and most == 1 and refused > 0 and list(tmp_path.rglob(locks.NAME)) == []
    with locked(tmp_path / "deep/run"):
        pass


@pytest.mark.slow
def test_an_orphan_is_waited_for(tmp_path: Path, other: Started) -> None:
    process, begin = other(tmp_path), time.monotonic()
    wait_for(tmp_path, 0.2)
    assert time.monotonic() - begin >= 0.2
    threading.Timer(0.2, process.kill).start()
    threading.Timer(0.3, process.wait).start()
    wait_for(tmp_path, 60.0)
    assert time.monotonic() - begin < 30


def test_processes_that_srun_started_apart_are_told_how_to_be_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with locked(tmp_path), pytest.raises(BadInput, match=r"srun has started 4 processes.* torchrun\)$"):
        Lock(tmp_path).take()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with locked(tmp_path), pytest.raises(BadInput, match=r"another --out$"):
        Lock(tmp_path).take()


def test_nothing_is_checked_or_written_while_another_process_is_at_work(
    photographs: Path, tmp_path: Path, held: Held
) -> None:
    folder = tmp_path / "run"
    held(folder)
    for resume in (False, True):
        with pytest.raises(BadInput, match="in use by process"):
            run(tmp_path / "nowhere", folder, "train.steps=1", resume=resume)
    assert [file.name for file in folder.iterdir()] == [".lock"]


def test_a_notebook_trains_twice_in_one_folder_one_after_the_other(photographs: Path, tmp_path: Path) -> None:
    run(photographs, tmp_path / "run", "train.steps=2")
    assert run(photographs, tmp_path / "run", "train.steps=2", resume=True)["steps"] == 2
    with pytest.raises(BadInput, match="holds a run already"):
        run(photographs, tmp_path / "run", "train.steps=2")
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_that_is_refused_leaves_no_folder(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        run(tmp_path / "nowhere", tmp_path / "deep/run", "train.steps=2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_readers_are_not_locked_out(photographs: Path, tmp_path: Path, other: Started, call: Call) -> None:
    run(photographs, tmp_path / "run", "train.steps=2")
    other(tmp_path / "run")
    assert call("report", tmp_path / "run", "--out", tmp_path / "page.html")[0] == 0
    assert call("embed", tmp_path / "run", photographs, "--out", tmp_path / "embeddings.npz")[0] == 0
    status, _, said = call("train", "demo", "--out", tmp_path / "run", "--resume")  # finished: nothing is written
    assert status == 0, said


def test_caches_fits_and_demos_are_locked(
    photographs: Path, tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstrating, "run_all", lambda *_, **__: pytest.fail("it has begun"))
    held(tmp_path)
    with pytest.raises(BadInput, match="in use by process"):
        teach(tiny(photographs, "guidance.kind=feature", "guidance.teacher=depthfm-tiny"), tmp_path)
    with pytest.raises(BadInput, match="in use by process"):
        fit_teacher(build_fit({}, [f"data.root={photographs}"]), tmp_path)
    with pytest.raises(BadInput, match="in use by process"):
        demonstrating.demo(tmp_path, 0)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("name", "refused"),
    [(".lock", True), (".lock-1-of-2", False), (".lock-0-of-2", True), (".lock-1-of-3", True)],
)
def test_machines_share_a_study_by_its_parts(
    photographs: Path, tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch, name: str, refused: bool
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{}")
    settings = (f"data.root={photographs}", *SETTINGS, "train.steps=1")
    asked = Study(base=str(base), arms={"one": ()}, seeds=(0, 1), settings=settings)
    monkeypatch.setattr("depthjepa.study.running._run_all", lambda *_: (each for each in ()))
    held(tmp_path / "study", name)
    for shard in ((0, 2), (0, 1)):
        if refused or shard == (0, 1):
            with pytest.raises(BadInput, match="in use by process"):
                run_study(asked, tmp_path / "study", resume=True, shard=shard, say=lambda _: None)
            assert [file.name for file in (tmp_path / "study").iterdir()] == [name]
    if not refused:
        run_study(asked, tmp_path / "study", shard=(0, 2), say=lambda _: None)
        assert (tmp_path / "study/study.yaml").exists()


@pytest.mark.slow
def test_a_run_cannot_be_resumed_while_it_goes_on(photographs: Path, tmp_path: Path, call: Call) -> None:
    folder, steps = tmp_path / "run", "train.steps=1000000"
    job = start("train", recipe_file(tmp_path / "job.yaml", photographs, steps), "--out", folder)
    try:
        while len(metrics(folder)) < 3:
            assert job.poll() is None and not time.sleep(0.05)
        status, _, said = call("train", tmp_path / "job.yaml", "--out", folder, "--resume")
        assert status == 2 and f"in use by process {job.pid} on" in said and said.count("\n") == 1
    finally:
        job.send_signal(signal.SIGTERM)
        job.communicate()
    steps_done = [record["step"] for record in metrics(folder)]
    assert steps_done == list(range(1, len(steps_done) + 1))
    assert weights(folder)["step"] == steps_done[-1]


def together(photographs: Path, folder: Path) -> None:
    """Two jobs that differ in their seeds are started at once in one folder: one runs, the other is refused."""
    jobs = [
        start("train", recipe_file(folder.with_name(f"{folder.name}-{seed}.yaml"), photographs, f"seed={seed}",
                                   "train.steps=40"), "--out", folder)
        for seed in (0, 1)
    ]  # fmt: skip
    said = [job.communicate()[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], said
    seed = [job.returncode for job in jobs].index(0)
    refusal = said[1 - seed]
    assert refusal.count("\n") == 1 and ("in use by process" in refusal or "holds a run already" in refusal)
    assert RunFolder(folder).config()["seed"] == weights(folder)["config"]["seed"] == seed
    assert [record["step"] for record in metrics(folder)] == list(range(1, 41))
    assert RunFolder(folder).finished and not (folder / ".lock").exists()


@pytest.mark.slow
def test_of_two_jobs_in_one_folder_one_runs(photographs: Path, tmp_path: Path) -> None:
    together(photographs, tmp_path / "run")


@pytest.mark.slow
def test_of_two_jobs_in_one_folder_one_runs_twenty_times(photographs: Path, tmp_path: Path) -> None:
    for number in range(20):
        together(photographs, tmp_path / f"run-{number}")


@pytest.mark.slow
def test_several_processes_of_one_run_are_one_owner(photographs: Path, tmp_path: Path, other: Started) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "depthjepa")
    recipe, folder = recipe_file(tmp_path / "job.yaml", photographs, "train.steps=4"), tmp_path / "run"
    holder = other(folder)
    job = start("train", recipe, "--out", folder, module=launcher)
    _, said = job.communicate()
    assert job.returncode and f"in use by process {holder.pid}" in said and not RunFolder(folder).started
    holder.communicate("")
    job = start("train", recipe, "--out", folder, module=launcher)
    _, said = job.communicate()
    assert job.returncode == 0, said
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3, 4] and not (folder / ".lock").exists()
