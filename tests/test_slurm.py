"""The job script of docs/slurm.sbatch with stand-ins for Slurm's commands: saved in time, queued again, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from depthjepa.logbook import RunFolder
from tiny_images import write_pairs
from tiny_runs import GUIDED, differences, lines, recipe_file, wait_for, weights

SCRIPT = Path(__file__).parents[1] / "docs" / "slurm.sbatch"
SCONTROL = """#!/bin/bash
case $1 in
    show) echo localhost ;;
    *) echo "$*" >> asked.txt ;;
esac
"""
# As the real one, it starts a task for each process, hands SIGUSR1 on, and ends with the highest status.
SRUN = """#!/bin/bash
tasks=()
for number in 0 1; do
    SLURM_PROCID=$number SLURM_LOCALID=$number "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
highest=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do
        wait "$task"
        status=$?
    done
    test "$status" -gt "$highest" && highest=$status
done
exit "$highest"
"""


def slurm(folder: Path) -> dict[str, str]:
    """Stand-ins in `folder`, and what Slurm tells a job of two processes on one machine."""
    folder.mkdir()
    python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("python", python)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    told = {"JOB_ID": str(os.getpid()), "JOB_NODELIST": "here", "NTASKS": "2", "NTASKS_PER_NODE": "2"}
    path = f"{folder}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **{f"SLURM_{key}": each for key, each in told.items()}}


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_is_saved_and_queued_again(tmp_path: Path) -> None:
    settings = (*GUIDED, "train.steps=40", "train.log_every=1")
    recipe = recipe_file(tmp_path / "mine.yaml", write_pairs(tmp_path / "pairs"), *settings)
    environment = slurm(tmp_path / "slurm")

    def job() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), "run", str(recipe)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = job()
    wait_for(lambda: lines(tmp_path / "run" / "metrics.jsonl") >= 3, first)
    first.send_signal(signal.SIGUSR1)  # to the script alone, as --signal=B:USR1 asks
    _, errors = first.communicate(timeout=120)
    step = weights(tmp_path / "run")["step"]
    assert first.returncode == 1 and 3 <= step < 40
    assert errors.count(f"depthjepa: stopped at step {step} of 40; continue with --resume") == 2, errors
    assert (tmp_path / "asked.txt").read_text() == f"requeue {os.getpid()}\n"
    second = job()  # what the queue does then
    output, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    assert f"resumed at step {step} of 40" in output
    assert (tmp_path / "asked.txt").read_text().count("requeue") == 1
    assert RunFolder(tmp_path / "run").finished
    # The figures of a run that was never stopped, on as many processes.
    whole = subprocess.run(
        ["srun", "bash", "-c", "RANK=$SLURM_PROCID WORLD_SIZE=2 exec python -m depthjepa train mine.yaml --out whole"],
        cwd=tmp_path,
        env={**environment, "MASTER_ADDR": "localhost", "MASTER_PORT": str(21000 + os.getpid() % 5000)},
        check=False,
    )
    assert whole.returncode == 0
    assert differences(weights(tmp_path / "run")["model"], weights(tmp_path / "whole")["model"]) == []


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = subprocess.run(
        ["bash", str(SCRIPT), "run", "photos", "data.root=gone"],
        cwd=tmp_path,
        env=slurm(tmp_path / "slurm"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 2 and "there is no folder gone" in job.stderr
    assert not (tmp_path / "asked.txt").exists()
