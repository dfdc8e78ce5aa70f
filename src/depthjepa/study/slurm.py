"""A study as an array of Slurm jobs, by submitit: each does one part of it, and goes on when its time was over.

A job is what `--shard I/N` is, begun by submitit on a machine of Slurm's choice. What the jobs do on a signal:

SIGUSR2    submitit has Slurm send it before a job's time is over, and some clusters send it to what they preempt.
           submitit's handler would write the job down, put it into the queue again and exit, in the midst of whatever
           the study does. So for the length of the work another handler stands there, which asks the study to stop as
           a SIGTERM does: its runs save and end, the locks of the folder are given back. Then submitit's own is called.
SIGTERM    submitit would pass it over. Inside of the work it stops the study, which takes a few of the seconds that
           Slurm leaves between this signal and SIGKILL; a run that is killed loses its last steps, and leaves its lock.
           Whether the job was cancelled or preempted is not known: it waits for what comes next.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from depthjepa import locks
from depthjepa.config.reading import refuse_repeated
from depthjepa.config.recipe_files import read_yaml
from depthjepa.faults import BadInput, RunStopped, nearest
from depthjepa.stopping import SIGNALS, Interrupted, interruptions
from depthjepa.study.plan import Study, resolve
from depthjepa.study.processes import measure_seconds
from depthjepa.study.results import known_steps, markdown, refuse_other_kept
from depthjepa.study.running import claim_folder, failed_in, measure_steps, of_one_precision, refuse_overlap, run_study

LOGS = "slurm"  # in the folder of a study
OFTEN = 100  # times that a job may run out of time; not submitit's 3: the runs come further each time
PATIENCE = 600.0  # seconds in which Slurm does what it has announced by SIGTERM: a grace time is some minutes
# No options: a job is one process, and srun starts it, as else it would not be told that its time is over.
SETTLED = ("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node", "slurm_use_srun")

Say = Callable[[str], None]


def submit(
    study: Study,
    folder: Path,
    count: int,
    options: Sequence[str] = (),
    *,
    resume: bool = False,
    keep: Path | None = None,
    say: Say = print,
) -> None:
    """Have Slurm do a study in `count` jobs, and say which ones they are; `options` are KEY=VALUE of submitit.

    Raises `BadInput` where the study is at fault, an option, the folder, or there is no Slurm: before anything is
    submitted.
    """
    submitit = _submitit()
    given = read_options(options, kinds())
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise BadInput(
                f"--slurm: there is no Slurm on this machine (no {command}); submit from one that has it, or start "
                f"each part of the study with --shard I/N"
            )
    if (told := f"SIG{submitit.JobEnvironment.USR_SIG}") in [signal.Signals(each).name for each in SIGNALS]:
        raise BadInput(
            f"SUBMITIT_PREEMPT_SIGNAL: {told} has another meaning for runs; unset it, SIGUSR2 is the default"
        )
    if LOGS in study.arms:
        raise BadInput(f"arm {LOGS!r}: the folder of this name is for what the jobs say; call the arm otherwise")
    configs = resolve(study)
    refuse_other_kept({"name": study.name}, keep)
    often = given.pop("slurm_max_num_timeout", OFTEN)
    # Unless it is asked for, a cluster may not queue a job again.
    more = {"requeue": True} | (given.pop("slurm_additional_parameters", None) or {})
    executor = submitit.AutoExecutor(folder / LOGS, cluster="slurm", slurm_max_num_timeout=often)
    executor.update_parameters(**{"name": study.name} | given, slurm_additional_parameters=more)
    with locks.locked(folder, say=say):  # given back before a job begins
        refuse_overlap(folder, (0, 1))
        claim_folder(study, configs, folder, resume=resume, say=say)

    parts = [Resumed(functools.partial(do_part, study, folder, (part, count), keep)) for part in range(count)]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch complains of; our message has it
            if count > 1 and study.minutes is not None and not set(study.arms) <= set(known_steps(folder)):
                first = executor.submit(Resumed(functools.partial(measure, study, folder)))
                executor.update_parameters(
                    slurm_dependency=f"afterok:{first.job_id}",  # the first one has waited for what else was asked
                    slurm_additional_parameters=more | {"kill-on-invalid-dep": "yes"},
                )
                say(f"job {first.job_id} measures the time of a step of each arm; the others begin when it ended well")
            jobs = [job.job_id for job in executor.submit_array(parts)]
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as fault:
        why = " ".join(str(fault).split())
        raise BadInput(
            f"Slurm did not take the jobs: {why}; the study is written down in {folder}: to submit it, give --resume "
            f"as well"
        ) from fault
    say(f"{count} {'jobs' if count > 1 else 'job'} of Slurm: {jobs[0]}{f' to {jobs[-1]}' * (count > 1)}")
    say(f"what they say: {executor.folder}/JOB_0_log.out and .err; each run: {folder}/ARM/seed-N.log")
    say(f"the table: {folder}/study.md, with all runs once the last job has ended")


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as missing:
        raise BadInput("--slurm needs submitit: pip install 'depthjepa[slurm]'") from missing
    return submitit


def kinds() -> dict[str, Any]:
    """The parameters of a submission, by submitit's names, with their types."""
    submitit = _submitit()
    own = get_type_hints(submitit.slurm.slurm._make_sbatch_string)
    slurm = {f"slurm_{name}": own[name] for name in sorted(submitit.SlurmExecutor._valid_parameters())}
    found = submitit.AutoExecutor._typed_parameters() | slurm | {"slurm_max_num_timeout": int}
    return {key: kind for key, kind in found.items() if key not in SETTLED}


def read_options(given: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """KEY=VALUE as values of the `known` types; raises `BadInput` for the first that is none of them."""
    refuse_repeated(given)
    found = {}
    for text in given:
        key, equals, written = text.partition("=")
        if not equals:
            raise BadInput(f"--slurm-option {text!r}: give KEY=VALUE, such as timeout_min=240")
        if key not in known:
            raise BadInput(
                f"--slurm-option {text}: jobs have no option {key!r}{nearest(key, known)}: choose from "
                f"{', '.join(known)}"
            )
        found[key] = read_yaml(written, f"--slurm-option {text}")
        text_too = str in (known[key], *get_args(known[key]))  # then a number is a text as well: an account may be 1234
        kind: Any = str | float | bool if text_too else known[key]
        try:
            TypeAdapter(kind).validate_python(found[key], strict=True)
        except ValidationError as fault:
            said = fault.errors()[0]["msg"].replace("Input should", "should")
            raise BadInput(f"--slurm-option {text}: {said}") from fault
    if not {"timeout_min", "slurm_time"} & found.keys():
        raise BadInput("--slurm: how long may a job take? Give --slurm-option timeout_min=MINUTES")
    return found


def do_part(study: Study, folder: Path, shard: tuple[int, int], keep: Path | None) -> bool:
    """Do one part of a study; whether all of its runs ended well."""
    content = run_study(study, folder, resume=True, keep=keep, shard=shard)
    print(f"\n{markdown(content)}", end="", flush=True)
    return not failed_in(content, study, shard)


def measure(study: Study, folder: Path) -> bool:
    """Write `steps.json`, on a machine as the runs will have; whether the steps of all arms are known then."""
    with locks.locked(folder, say=print):
        configs = resolve(study)
        claim_folder(study, configs, folder, resume=True, say=print)
        with interruptions() as stopping:
            failed = measure_steps(study, of_one_precision(configs, folder), folder, measure_seconds, stopping, print)
    for arm, why in failed.items():
        print(f"depthjepa: arm {arm!r} cannot be measured: {why}", file=sys.stderr, flush=True)
    return not failed


@dataclass(frozen=True, slots=True)
class Resumed:
    """Work that goes on where it is begun again: submitit calls it in a job, and `checkpoint` to queue the job again.

    `work` tells whether all went well. It raises `RunStopped` on a signal.
    """

    work: Callable[[], bool]

    def checkpoint(self) -> Any:
        """What the job does when it comes out of the queue again: the same, all that is kept being in the folder."""
        return _submitit().helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Do the work; where a signal ends it before it is done, do what submitit does on this signal."""
        number = signal.Signals[f"SIG{_submitit().JobEnvironment.USR_SIG}"]
        stopped: Interrupted | RunStopped | None = None
        with _noted(number) as came:
            try:
                with interruptions() as stopping, stopping.at_once():
                    if came:
                        raise Interrupted(number)
                    well = self.work()
            except BadInput as fault:
                print(f"depthjepa: {fault}", file=sys.stderr, flush=True)
                sys.exit(2)
            except (Interrupted, RunStopped) as fault:
                stopped = fault
        if stopped is None:
            if not well:
                sys.exit(1)
            return
        print(f"depthjepa: {stopped}", file=sys.stderr, flush=True)
        # Nothing is at work any more, and the handlers are submitit's.
        if came:
            signal.raise_signal(number)
        elif stopped.__cause__ is None:  # a signal; a full disk is told with the system's fault
            # Slurm kills what was cancelled, and what it preempts once the grace time is over. It queues the preempted
            # again then, which it would not if the job had ended by itself. Or the other signal comes.
            time.sleep(PATIENCE)
        sys.exit(1)


@contextlib.contextmanager
def _noted(number: int) -> Iterator[list[int]]:
    """Inside of the block a signal of this number is noted in the list, and a SIGTERM follows it."""
    came = list[int]()

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(number, note)
    try:
        yield came
    finally:
        signal.signal(number, before)
