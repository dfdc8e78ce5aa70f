"""Studies: arms x seeds -> runs -> probes -> one table of means and deviations over the seeds.

An arm is a list of settings on top of those that all arms share. Every run is a process of its own with a run folder
of its own, DIR/ARM/seed-N, so a study that was cut off goes on where it stopped. In the folder of a study:

study.yaml          the study as it was asked for, with the resolved configuration of each arm
data.json, .npz     what the data were when it began
steps.json          where the arms have equal time: the steps of each arm, settled once
study.json, .md     all figures, their table and what may be claimed, rewritten after every run
ARM/seed-N.log      what the run said

With equal time, the arms differ in steps instead (a cheaper step is taken more often). What is equal is the time of
the steps with their loading; rendering scenes, fitting the teacher's statistics, checkpoints and probes come on top.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from depthjepa import locks, runtime
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import PLACES, RunConfig, differences, to_mapping
from depthjepa.data.config import DataConfig
from depthjepa.data.contents import FILE, NAMES, Contents, contents_of, read_contents, refuse_changed, write_contents
from depthjepa.data.loading import open_splits
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.build import contents_of_teacher
from depthjepa.logbook import plain, to_json, write_new, write_whole
from depthjepa.progress import task
from depthjepa.shared_work import refuse_shard
from depthjepa.stopping import interruptions
from depthjepa.study.claims import compare, lines
from depthjepa.study.plan import Study, of_length, resolve
from depthjepa.study.processes import Job, measure_seconds, side_by_side
from depthjepa.study.results import (
    is_done,
    keep_results,
    known_steps,
    reason_file,
    refuse_other_kept,
    run_place,
    write_tables,
)

TURNS = 2  # measurements of each arm

Measure = Callable[[RunConfig, int, Path, Callable[[], bool]], float]


def run_study(
    study: Study,
    out: str | Path,
    *,
    resume: bool = False,
    keep: str | Path | None = None,
    shard: tuple[int, int] = (0, 1),
    measure: Measure | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run all arms with all seeds, the arms of one seed before the next seed; return the content of `study.json`.

    A run that fails is listed under `failed` with its reason, and the others go on. `keep` is a folder that gets a
    copy of what a repository keeps. `measure` gives the seconds of a step where the study has `minutes`. `shard` =
    (i, n) does every n-th run from the i-th on: one machine of n, with a folder that all see; the last one to end
    writes tables of all runs.

    Raises:
        BadInput: the study or one of its arms is at fault (before any run starts), or `out` holds something else.
        RunStopped: Ctrl-C or SIGTERM; the running ones have saved, `resume` goes on.
    """
    folder, say = Path(out), say or (lambda text: print(text, flush=True))
    asked: dict[str, Any] = plain(asdict(study))
    configs = resolve(study)
    refuse_other_kept(asked, keep)
    _refuse_shard(study, folder, shard)
    with locks.locked(folder, say=say, name=_lock_name(shard)):
        refuse_overlap(folder, shard)
        claim_folder(study, configs, folder, resume=resume or shard[1] > 1, say=say)
        content = _run_study(study, configs, folder, shard, measure or measure_seconds, say)
    if keep is not None:
        keep_results(asked, folder, Path(keep))
    return content


def _lock_name(shard: tuple[int, int]) -> str:
    """Machines share the folder of a study, each by the lock of its own part; the runs have their own ones."""
    return locks.NAME if shard == (0, 1) else f"{locks.NAME}-{shard[0]}-of-{shard[1]}"


def refuse_overlap(folder: Path, shard: tuple[int, int]) -> None:
    """Refuse to run what another process runs as a part of the study in another division: each run belongs to one."""
    alike = {_lock_name((number, shard[1])) for number in range(shard[1])}
    for file in sorted(folder.glob(f"{locks.NAME}*")):
        if file.name not in alike and (holder := locks.holder_of(file)):
            raise BadInput(
                f"{folder} is in use by {holder}, which divides the study into other parts: wait until it has ended, "
                f"or give all machines the same N of --shard I/N ({file} can be removed if its process is gone)"
            )


def _run_study(
    study: Study,
    configs: Mapping[str, RunConfig],
    folder: Path,
    shard: tuple[int, int],
    measure: Measure,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do the runs of this part of the study; return the content of `study.json`."""
    asked: dict[str, Any] = plain(asdict(study))
    configs = of_one_precision(configs, folder)
    with interruptions() as stopping:
        failed = measure_steps(study, configs, folder, measure, stopping, say)
        order = [(arm, seed) for seed in study.seeds for arm in study.arms]
        mine = order[shard[0] :: shard[1]]
        left = [run for run in mine if run[0] not in failed and not is_done(run_place(folder, *run), study.asked)]
        for run in left:
            reason_file(folder, *run).unlink(missing_ok=True)
        for arm, seed in order:
            if arm in failed:
                write_whole(reason_file(folder, arm, seed), failed[arm])

        def claimed(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
            found = compare(study.claims, content, folder)
            return found, lines(found)

        content = write_tables(asked, folder, claimed)
        ends = _run_all(study, _with_steps(study, configs, folder), folder, left, stopping, say)
        with contextlib.closing(ends):  # whatever happens here, no run is left behind
            for run, reason in ends:
                if reason is not None:
                    write_whole(reason_file(folder, *run), reason)
                content = write_tables(asked, folder, claimed)
    return content


def failed_in(content: Mapping[str, Any], study: Study, shard: tuple[int, int]) -> list[dict[str, Any]]:
    """The runs of one part of a study that failed, of the content of `study.json`, which has those of all parts."""
    mine = [(arm, seed) for seed in study.seeds for arm in study.arms][shard[0] :: shard[1]]
    return [each for each in content["failed"] if (each["arm"], each["seed"]) in mine]


def _refuse_shard(study: Study, folder: Path, shard: tuple[int, int]) -> None:
    refuse_shard(shard)
    if shard[1] > 1 and study.minutes is not None and not set(study.arms) <= set(known_steps(folder)):
        raise BadInput(
            f"arms of equal time ({study.minutes:g} min) have as many steps as one machine measures: start the study "
            f"on one machine, stop it when it trains, and share the folder {folder} (steps.json) with the shards"
        )


def claim_folder(
    study: Study, configs: Mapping[str, RunConfig], folder: Path, *, resume: bool, say: Callable[[str], None]
) -> None:
    """Write down what the folder is for, or find out that it is for this study."""
    asked = plain(asdict(study) | {"configs": {arm: to_mapping(config) for arm, config in configs.items()}})
    file, contents = folder / "study.yaml", _contents(configs)
    moved = () if read_contents(folder) is None else PLACES
    if not locks.is_free_of_files(folder, (FILE, NAMES)):  # another part may be about to begin it
        if not resume:
            raise BadInput(f"{folder} is there already: go on with --resume, or choose another --out")
        if not file.is_file():
            raise BadInput(f"{folder} holds no study to go on with: study.yaml is not there; choose another --out")
        if changed := _changes(yaml.safe_load(file.read_text()), asked, moved):
            raise BadInput(f"--resume with a changed study: {', '.join(changed)}; {folder} holds other values")
        refuse_changed(folder, contents, say)
    write_contents(folder, contents)
    write_whole(file, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))


def _contents(configs: Mapping[str, RunConfig]) -> dict[str, Contents]:
    """What the arms learn from: their data, which several may share, and what teaches them."""
    found: dict[str, Contents] = {}
    listed = list[tuple[DataConfig, dict[str, Contents]]]()  # listing a large folder takes a while
    for arm, config in configs.items():
        known = next((contents for data, contents in listed if data == config.data), None)
        if known is None:
            known = contents_of(open_splits(config.data))
            listed.append((config.data, known))
        found |= {f"{arm}: {part}": each for part, each in (known | contents_of_teacher(config.guidance)).items()}
    return found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], moved: Collection[str]) -> list[str]:
    """What asks for other runs; `base` and settings count by what they resolve to, `side_by_side` and keys that may
    have `moved` not at all.
    """
    changed = [key for key in ("name", "seeds", "minutes", "probes") if before[key] != now[key]]
    changed += ["judged"] * (before.get("judged", {}) != now["judged"])  # earlier studies have none
    one, other = before["configs"], now["configs"]
    changed += [f"arms.{arm}" for arm in dict.fromkeys((*one, *other)) if (arm in one) != (arm in other)]
    common = [arm for arm in one if arm in other]
    one = {arm: to_mapping(build_config(one[arm])) for arm in common}  # with keys that are newer than the study
    return changed + [
        f"arms.{arm}.{key}" for arm in common for key in differences(one[arm], other[arm]) if key not in moved
    ]


def _run_all(
    study: Study,
    configs: Mapping[str, RunConfig],
    folder: Path,
    left: Sequence[tuple[str, int]],
    stopping: Callable[[], bool],
    say: Callable[[str], None],
) -> Generator[tuple[tuple[str, int], str | None]]:
    """Run what is left, `side_by_side` at a time; yield each run as it ends, with the reason if it failed."""
    total = len(study.arms) * len(study.seeds)
    if done := sum(is_done(run_place(folder, arm, seed), study.asked) for arm in study.arms for seed in study.seeds):
        say(f"{done} of {total} runs were finished before")
    runs = {run_place(folder, *run): run for run in left}
    jobs = [Job(f"{arm}, seed {seed}", replace(configs[arm], seed=seed), place) for place, (arm, seed) in runs.items()]
    with task(f"runs of {study.name}", total, total - len(left)) as shown:
        ends = side_by_side(jobs, study.side_by_side, study.asked, stopping, say, shown)
        with contextlib.closing(ends):
            for job, fault in ends:
                yield runs[job.place], None if fault is None else str(fault)
    if stopping():
        done = sum(is_done(run_place(folder, arm, seed), study.asked) for arm in study.arms for seed in study.seeds)
        raise RunStopped(f"stopped with {done} of {total} runs finished; continue with --resume")


def measure_steps(
    study: Study,
    configs: Mapping[str, RunConfig],
    folder: Path,
    measure: Measure,
    stopping: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Fix the steps of every arm once and for all in `steps.json`; the arms that cannot be measured, and why.

    All are measured in turn, several times over, and the fastest time of each counts: what else a machine does only
    ever adds to it, and not to all alike.
    """
    known, failed = known_steps(folder), dict[str, str]()
    if study.minutes is None:
        return failed
    unknown = {arm: config for arm, config in configs.items() if arm not in known}
    fastest: dict[str, float] = {}
    for turn in range(TURNS):
        for arm in [arm for arm in unknown if arm not in failed]:
            say(f"{arm}: measuring the time of a step ({turn + 1} of {TURNS})")
            try:
                seconds = measure(unknown[arm], study.side_by_side, folder, stopping)
            except (BadInput, RunStopped) as fault:
                if stopping():
                    raise
                failed[arm] = str(fault)
                continue
            fastest[arm] = min(seconds, fastest.get(arm, seconds))
    for arm in [arm for arm in unknown if arm not in failed]:
        steps = max(1, round(60 * study.minutes / fastest[arm]))
        known[arm] = {"steps": steps, "seconds_per_step": fastest[arm]}
        say(f"{arm}: {1e3 * fastest[arm]:.1f} ms a step, {steps} steps in {study.minutes:g} min")
    write_whole(folder / "steps.json", to_json(known))
    return failed


def of_one_precision(configs: Mapping[str, RunConfig], folder: Path) -> dict[str, RunConfig]:
    """The arms with one training precision in the place of `auto`: a claim is not to compare two machines' arithmetic.

    The first part of a study that begins chooses, for all, what its machine multiplies faster.
    """
    asking = [config for config in configs.values() if config.train.precision == "auto"]
    if not asking:
        return dict(configs)
    file = folder / "precision.json"
    if not file.is_file():
        chosen = runtime.faster_precision(runtime.device(asking[0].train.device))
        write_new(file, to_json({"train.precision": chosen}).encode())
    precision = json.loads(file.read_text())["train.precision"]
    return {
        arm: replace(config, train=replace(config.train, precision=precision)) if config in asking else config
        for arm, config in configs.items()
    }


def _with_steps(study: Study, configs: Mapping[str, RunConfig], folder: Path) -> dict[str, RunConfig]:
    if study.minutes is None:
        return dict(configs)
    return {arm: of_length(configs[arm], each["steps"]) for arm, each in known_steps(folder).items()}
