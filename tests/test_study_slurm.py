"""A study as jobs of Slurm, with stand-ins for its commands: one table, whatever ends a job before its time."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from depthjepa import cost
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.stopping import interruptions
from depthjepa.study import slurm
from depthjepa.study.results import known_steps
from depthjepa.study.slurm import Resumed, do_part, kinds, measure, read_options, submit
from test_study import twins
from tiny_images import write_pairs
from tiny_runs import CLOCK, SETTINGS, Call, inside, weights

submitit = pytest.importorskip("submitit")

TIME = ("--slurm-option", "timeout_min=60")
# As the real one: it keeps a copy of the script, starts it for each part of the array, and again where that was asked.
SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path

spool = Path(os.environ["SPOOL"])
text = Path(sys.argv[1]).read_text()
if "--partition=gone" in text:
    sys.exit("sbatch: error: invalid partition specified: gone")
job = 1000 + len(list(spool.glob("*.sh")))
script = spool / f"{{job}}.sh"
script.write_text(text)
if "HELD" not in os.environ:
    array = re.search(r"--array=0-([0-9]+)", text)
    for part in range(int(array[1]) + 1) if array else [None]:
        told = {{"SLURM_JOB_ID": str(job if part is None else job + 100 + part)}}
        if part is not None:
            told |= {{"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(part)}}
        name = str(job) if part is None else f"{{job}}_{{part}}"
        begun = f'while bash {{script}}; [ -e {{spool}}/requeue-{{name}} ]; do rm {{spool}}/requeue-{{name}}; done'
        subprocess.Popen(
            ["bash", "-c", f"{{begun}}; touch {{spool}}/ended-{{name}}"],
            env=os.environ | told | {{"NAME": name}},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=(spool / f"{{name}}.out").open("a"),
            stderr=subprocess.STDOUT,
        )
print(f"Submitted batch job {{job}}")
"""
# Output as it is asked for; the job has a group of processes of its own, to which a test can send what Slurm may send.
SRUN = """#!/bin/bash
shift  # --unbuffered
out=${2//%A_%a/$NAME}; out=${out//%j/$NAME}; out=${out//%t/0}
err=${4//%A_%a/$NAME}; err=${err//%j/$NAME}; err=${err//%t/0}
shift 4
echo $$ > "$SPOOL/process-$NAME"
exec setsid "$@" >> "$out" 2>> "$err"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$SPOOL/asked"
touch "$SPOOL/$1-$2"
"""


@pytest.fixture(scope="module", autouse=True)
def quick_estimate() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with Slurm, and what Slurm keeps of its jobs."""
    commands, place = tmp_path / "commands", tmp_path / "spool"
    texts = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "scontrol": SCONTROL}
    texts |= dict.fromkeys(("squeue", "sacct"), "#!/bin/bash\nexit 1\n")  # nobody is to ask them
    for folder in (commands, place):
        folder.mkdir()
    for name, text in texts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SPOOL", str(place))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    return place


def write_study(place: Path, root: Path, **changes: Any) -> Path:
    """The file of a study of two arms and two seeds."""
    asked = twins(root, settings=(f"data.root={root}", *SETTINGS, f"train.steps={changes.pop('steps', 4)}"), **changes)
    content = {
        **{key: getattr(asked, key) for key in ("base", "minutes")},
        **{key: list(getattr(asked, key)) for key in ("seeds", "settings", "probes")},
        "arms": {arm: list(each) for arm, each in asked.arms.items()},
        "claims": [{"measure": "depth.r2_within", "first": "guided", "against": ["unguided"], "margin": 0.02}],
    }
    place.write_text(yaml.safe_dump(content))
    return place


def wait_for(condition: Callable[[], bool], spool: Path) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "\n".join(file.read_text() for file in spool.glob("*.out"))
        time.sleep(0.05)


def table(folder: Path) -> Any:
    """What a study found, but for what the clock says."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(each) for key, each in value.items() if key not in CLOCK}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "study.json").read_text()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slurm", "0"), "--slurm"),
        (("--slurm", "four"), "--slurm"),
        (("--slurm", "2", "--shard", "0/2", *TIME), "--shard and --slurm both divide the study"),
        (TIME, "--slurm-option is for jobs of Slurm: give --slurm N as well"),
        (("--slurm", "2"), r"how long may a job take\? Give --slurm-option timeout_min=MINUTES"),
        (("--slurm", "2", "--slurm-option", "timeout_mins=60"), r"'timeout_mins' \(did you mean 'timeout_min'\?\)"),
        (("--slurm", "2", "--slurm-option", "partition=a"), r"'partition' \(did you mean 'slurm_partition'\?\)"),
        (("--slurm", "2", *TIME, *TIME), "timeout_min: given more than once"),
        (("--slurm", "2", "--slurm-option", "timeout_min"), "give KEY=VALUE, such as timeout_min=240"),
        (("--slurm", "2", "--slurm-option", "timeout_min=long"), "timeout_min=long: should be a valid integer"),
        (("--slurm", "2", "--slurm-option", "slurm_time=1:00:00"), "1:00:00 is 3600 in YAML"),
        (("--slurm", "2", *TIME, "--slurm-option", "slurm_setup=module"), "slurm_setup=module: should be a valid list"),
        (("--slurm", "2", *TIME, "--slurm-option", "tasks_per_node=2"), "jobs have no option 'tasks_per_node'"),
        (("--slurm", "2", *TIME, "--resume"), "--resume: there is no study in"),
        (("--slurm", "2", *TIME, "data.root=gone"), "there is no folder gone"),
        (("--slurm", "2", *TIME, "optim.lrr=1"), r"unknown key 'optim.lrr' \(did you mean 'optim.lr'\?\)"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_is_wrong_is_refused_before_anything_is_submitted(
    options: tuple[str, ...], said: str, pairs: Path, tmp_path: Path, spool: Path, call: Call
) -> None:
    study = write_study(tmp_path / "twins.yaml", pairs)
    status, output, errors = call("study", study, "--out", tmp_path / "out", *options)
    assert (status, output) == (2, "")
    assert errors.startswith("depthjepa: ") and errors.count("\n") == 1
    assert re.search(said, errors), errors
    assert not any(spool.iterdir()) and not (tmp_path / "out").exists()


def test_without_slurm_or_submitit_it_is_said(
    pairs: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("study", write_study(tmp_path / "twins.yaml", pairs), "--out", tmp_path / "out", "--slurm", "2", *TIME)
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, errors = call(*line)
    assert status == 2 and "there is no Slurm on this machine (no sbatch)" in errors and errors.count("\n") == 1
    monkeypatch.setitem(sys.modules, "submitit", None)
    status, _, errors = call(*line)
    assert (status, errors) == (2, "depthjepa: --slurm needs submitit: pip install 'depthjepa[slurm]'\n")
    assert not (tmp_path / "out").exists()


def test_a_folder_or_an_arm_that_is_in_the_way_is_refused(
    pairs: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    options = ["timeout_min=60"]
    with pytest.raises(BadInput, match="is there already"):
        submit(twins(pairs), tmp_path / "mine", 2, options)
    with pytest.raises(BadInput, match="holds no study to go on with"):
        submit(twins(pairs), tmp_path / "mine", 2, options, resume=True)
    with pytest.raises(BadInput, match="arm 'slurm': the folder of this name"):
        submit(twins(pairs, arms={"slurm": ()}, claims=()), tmp_path / "out", 2, options)
    with pytest.raises(BadInput, match="does not hold study twins: choose another --keep"):
        submit(twins(pairs), tmp_path / "out", 2, options, keep=tmp_path / "mine")
    monkeypatch.setattr(submitit.JobEnvironment, "USR_SIG", "USR1")
    with pytest.raises(BadInput, match="SUBMITIT_PREEMPT_SIGNAL: SIGUSR1 has another meaning for runs"):
        submit(twins(pairs), tmp_path / "out", 2, options)
    assert not any(spool.iterdir()) and not (tmp_path / "out").exists()


def test_jobs_that_slurm_refuses_can_be_submitted_again(
    pairs: Path, tmp_path: Path, spool: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", "")
    study = write_study(tmp_path / "twins.yaml", pairs)
    line = ("study", study, "--out", tmp_path / "out", "--slurm", "2", *TIME)
    status, _, errors = call(*line, "--slurm-option", "slurm_partition=gone")
    assert status == 2 and errors.count("\n") == 1
    assert "did not take the jobs: sbatch: error: invalid partition specified: gone" in errors
    assert "give --resume as well" in errors
    status, output, errors = call(*line, "--resume")
    assert status == 0 and "2 jobs of Slurm: 1000_0 to 1000_1" in output, errors
    assert not list((tmp_path / "out").glob(".lock*"))


def test_options_are_values_of_yaml() -> None:
    given = ["timeout_min=60", "mem_gb=3.5", "slurm_account=1234", "slurm_exclusive=true", "slurm_setup=[a, b c]"]
    assert read_options(given, kinds()) == {
        "timeout_min": 60,
        "mem_gb": 3.5,
        "slurm_account": 1234,
        "slurm_exclusive": True,
        "slurm_setup": ["a", "b c"],
    }
    known = kinds()
    submitit.AutoExecutor("nowhere", cluster="debug").update_parameters(**dict.fromkeys(known.keys() - {
        "slurm_max_num_timeout"  # of the executor itself
    }))  # fmt: skip


def test_the_script_has_the_options_and_a_job_may_be_queued_again(
    pairs: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", "")
    said: list[str] = []
    options = ["timeout_min=60", "gpus_per_node=1", "slurm_additional_parameters={mail-user: me}", "slurm_account=a b"]
    submit(twins(pairs), tmp_path / "out", 3, options, say=said.append)
    [script] = spool.glob("*.sh")
    lines = script.read_text().splitlines()
    asked = ("job-name=twins", "time=60", "gpus-per-node=1", "account='a b'", "requeue", "mail-user=me", "array=0-2%3")
    assert {f"#SBATCH --{each}" for each in (*asked, "signal=USR2@90")} <= set(lines)
    assert said == [
        "3 jobs of Slurm: 1000_0 to 1000_2",
        f"what they say: {tmp_path}/out/slurm/JOB_0_log.out and .err; each run: {tmp_path}/out/ARM/seed-N.log",
        f"the table: {tmp_path}/out/study.md, with all runs once the last job has ended",
    ]


def test_the_steps_of_equal_time_are_measured_before_the_parts_begin(
    pairs: Path, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", "")
    timed = twins(pairs, minutes=0.5, settings=(f"data.root={pairs}", *SETTINGS))
    said: list[str] = []
    submit(timed, tmp_path / "out", 2, ["timeout_min=60", "slurm_dependency=afterok:7"], say=said.append)
    first, parts = ((spool / f"{job}.sh").read_text() for job in (1000, 1001))
    assert "--array" not in first and "--dependency=afterok:7\n" in first
    assert "--array=0-1%2" in parts and "--dependency=afterok:1000\n" in parts and "--kill-on-invalid-dep=yes" in parts
    assert said[0].startswith("job 1000 measures the time of a step of each arm")

    # What the first job does then, and the parts can begin: no run of theirs is done here.
    monkeypatch.setattr(slurm, "measure_seconds", lambda *_: 0.1)
    assert measure(timed, tmp_path / "out")
    assert {arm: each["steps"] for arm, each in known_steps(tmp_path / "out").items()} == dict.fromkeys(timed.arms, 300)
    monkeypatch.setattr("depthjepa.study.running._run_all", lambda *_: (each for each in ()))
    assert do_part(timed, tmp_path / "out", (1, 2), None)
    submit(timed, tmp_path / "out", 2, ["timeout_min=60"], resume=True, say=lambda _: None)
    assert "--dependency" not in (spool / "1002.sh").read_text()
    assert not (spool / "1003.sh").exists()


def test_an_arm_that_cannot_be_measured_ends_the_job_badly(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> float:
        raise RunStopped("loss is nan")

    monkeypatch.setattr(slurm, "measure_seconds", broken)
    timed = twins(pairs, minutes=0.5, settings=(f"data.root={pairs}", *SETTINGS))
    assert not measure(timed, tmp_path / "out")
    assert "arm 'guided' cannot be measured: loss is nan" in capsys.readouterr().err


class Exited(BaseException):
    """What stands for submitit's handler has been called, which ends the process."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The handlers that submitit sets in a job."""
    called: list[str] = []

    def requeue(*_: object) -> None:
        called.append("requeue")
        raise Exited

    numbers = {signal.SIGUSR2: requeue, signal.SIGTERM: lambda *_: called.append("passed over")}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield called
    for number, handler in before.items():
        signal.signal(number, handler)


def busy() -> bool:
    for _ in range(500):
        time.sleep(0.01)
    return pytest.fail("no signal has ended the work")


def test_the_signal_of_time_ends_the_work_first_and_is_then_submitit_s(
    calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def work() -> bool:
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            return busy()
        finally:
            seen.append(f"ended before {calls}")

    with pytest.raises(Exited):
        Resumed(work)()
    assert seen == ["ended before []"] and calls == ["requeue"]
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_study_that_was_asked_to_stop_is_requeued_once_it_has(calls: list[str]) -> None:
    """`run_study` has handlers of its own, which take the wish and end in `RunStopped`."""

    def work() -> bool:
        with interruptions() as stopping:
            os.kill(os.getpid(), signal.SIGUSR2)
            end = time.monotonic() + 5
            while not stopping() and time.monotonic() < end:
                time.sleep(0.01)
            assert stopping() and calls == []
        raise RunStopped("stopped with 1 of 4 runs finished; continue with --resume")

    with pytest.raises(Exited):
        Resumed(work)()
    assert calls == ["requeue"]


def test_after_sigterm_a_job_waits_for_what_comes_next(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return busy()

    waited: list[float] = []
    monkeypatch.setattr("depthjepa.study.slurm.time.sleep", waited.append)
    with pytest.raises(SystemExit) as end:
        Resumed(work)()
    assert end.value.code == 1 and waited[-1] == slurm.PATIENCE and calls == []

    def preempted(_: float) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr("depthjepa.study.slurm.time.sleep", preempted)

    def stopped() -> bool:
        raise RunStopped("stopped with 0 of 4 runs finished; continue with --resume")

    with pytest.raises(Exited):
        Resumed(stopped)()
    assert calls == ["passed over", "requeue"]


@pytest.mark.parametrize(
    ("fault", "status"), [(None, 1), (BadInput("no such folder"), 2), (RunStopped("the disk is full"), 1)]
)
def test_a_job_that_fails_ends_at_once_and_is_not_requeued(
    fault: Exception | None, status: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> bool:
        if fault is None:
            return False
        raise fault from OSError()

    monkeypatch.setattr("depthjepa.study.slurm.time.sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(SystemExit) as end:
        Resumed(work)()
    assert end.value.code == status and calls == []


@pytest.mark.slow
def test_two_jobs_give_the_table_of_one_machine(pairs: Path, tmp_path: Path, spool: Path, call: Call) -> None:
    study, out = write_study(tmp_path / "twins.yaml", pairs), tmp_path / "out"
    status, output, errors = call("study", study, "--out", out, "--slurm", "2", *TIME, "--keep", tmp_path / "kept")
    assert status == 0 and "2 jobs of Slurm: 1000_0 to 1000_1" in output, errors
    assert (tmp_path / "out" / "study.yaml").exists()  # the jobs know what the folder is for
    wait_for(lambda: len(list(spool.glob("ended-*"))) == 2, spool)
    said = [(out / "slurm" / f"1000_{part}_0_log.err").read_text() for part in (0, 1)]
    assert all((out / "slurm" / f"1000_{part}_0_result.pkl").exists() for part in (0, 1)), said
    assert not (spool / "asked").exists() and not list(out.glob(".lock*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthjepa.study.processes.spawn", inside)
        assert call("study", study, "--out", tmp_path / "alone")[0] == 0
    assert table(out) == table(tmp_path / "alone")
    assert len(table(out)["runs"]) == 4 and table(out)["claimed"]
    assert len(json.loads((tmp_path / "kept" / "study.json").read_text())["runs"]) == 4


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_saved_queued_again_and_goes_on(
    pairs: Path, tmp_path: Path, spool: Path, call: Call
) -> None:
    study, out, steps = write_study(tmp_path / "twins.yaml", pairs, steps=150), tmp_path / "out", 150
    assert call("study", study, "--out", out, "--slurm", "2", *TIME)[0] == 0
    place = out / "guided" / "seed-1"  # the second run of the first part
    wait_for(lambda: len(RunFolder(place).metrics()) >= 5, spool)
    assert RunFolder(out / "guided" / "seed-0").finished
    finished_at = (out / "guided" / "seed-0" / "summary.json").stat().st_mtime
    os.killpg(int((spool / "process-1000_0").read_text()), signal.SIGUSR2)  # as where Slurm signals all processes
    wait_for((spool / "asked").exists, spool)
    # All of it is over before the job is in the queue: it may begin at once.
    step = weights(place)["step"]
    assert 5 <= step < steps
    log = place.with_name("seed-1.log")
    assert f"stopped at step {step} of {steps}; continue with --resume" in log.read_text()
    wait_for(lambda: len(list(spool.glob("ended-*"))) == 2, spool)
    assert (spool / "asked").read_text() == "requeue 1000_0\n"
    assert f"resumed at step {step} of {steps}" in log.read_text()
    assert (out / "guided" / "seed-0" / "summary.json").stat().st_mtime == finished_at
    said = (out / "slurm" / "1000_0_0_log.err").read_text()
    assert "stopped with" in said and (out / "slurm" / "1000_0_0_result.pkl").exists()
    assert not list(out.glob("**/.lock*"))
    assert len(table(out)["runs"]) == 4 and table(out)["failed"] == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthjepa.study.processes.spawn", inside)
        assert call("study", study, "--out", tmp_path / "alone")[0] == 0
    assert table(out) == table(tmp_path / "alone")
