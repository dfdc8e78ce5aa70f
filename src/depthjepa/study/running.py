"""Studies: arms x seeds -> runs -> probes -> one table of means and deviations over the seeds.

An arm is a list of settings on top of those that all arms share. Every run is a process of its own with a run folder
of its own, DIR/ARM/seed-N, so a study that was cut off goes on where it stopped. In the folder of a study:

study.yaml          the study as it was asked for, with the resolved configuration of each arm
steps.json          where the arms have equal time: the steps of each arm, settled once
study.json, .md     all figures, their table and what may be claimed, rewritten after every run
ARM/seed-N.log      what the run said

With equal time, the arms differ in steps instead (a cheaper step is taken more often). What is equal is the time of
the steps with their loading; rendering scenes, fitting the teacher's statistics, checkpoints and probes come on top.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib import resources
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass as configuration

from depthjepa import runtime
from depthjepa.config import RunConfig, build_config, differences, to_mapping
from depthjepa.data.loading import TrainingBatches, open_source
from depthjepa.data.order import steps_per_epoch
from depthjepa.evaluation.probes import table as probes
from depthjepa.faults import BadInput, RunStopped, nearest
from depthjepa.logbook import plain, to_json, write_whole
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher
from depthjepa.recipe_files import read_recipe
from depthjepa.starting import refuse_frozen_without_head, refuse_unusable_validation
from depthjepa.study.claims import Comparison, compare, lines
from depthjepa.study.processes import POLL, end, measure_seconds, spawn, why_failed
from depthjepa.study.results import is_done, keep_results, known_steps, refuse_other_kept, run_place, write_tables
from depthjepa.warm_start import start_from

FILES = ("study.yaml", "steps.json", "study.json", "study.md")
NAME = re.compile(r"\w[\w.+=-]*", re.ASCII)
TURNS = 2  # measurements of each arm

Measure = Callable[[RunConfig, int, Path, Callable[[], bool]], float]


@configuration(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Study:
    """What a study file says. `settings` and each of the `arms` are lists of KEY=VALUE on top of the recipe `base`."""

    base: str  # a shipped recipe, or a file: relative to the study's folder
    arms: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]  # or how many: 3 is 0, 1, 2
    name: str = "study"
    about: str = ""
    printed: str = ""  # what the source paper has in the place of these figures
    settings: tuple[str, ...] = ()
    minutes: PositiveFloat | None = None  # equal training time for each arm; None: as long as its configuration says
    side_by_side: PositiveInt = 1  # runs at a time; they share the threads of the machine
    probes: tuple[str, ...] = ()
    claims: tuple[Comparison, ...] = ()

    @field_validator("arms", mode="before")
    @classmethod
    def _lists_of_lists_are_one(cls, value: object) -> object:
        """Arms that share settings name them once, by an anchor: `[*paper, *dense]`; an empty arm changes nothing."""
        return {key: _flat(arm) for key, arm in value.items()} if isinstance(value, dict) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: object) -> object:
        return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _flat(arm: object) -> object:
    if arm is None:
        return ()
    if not isinstance(arm, list):
        return arm
    return [setting for each in arm for setting in (each if isinstance(each, list) else [each])]


# reading and refusing -------------------------------------------------------------------------------------


def study_names() -> list[str]:
    """Names of the shipped studies."""
    folder = resources.files("depthjepa") / "studies"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_study(study: str | Path) -> Study:
    """Read a shipped study (by name) or a YAML file; raises `BadInput` with all faults of the file."""
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise BadInput(f"there is no study file {path}")
    elif str(study) in study_names():
        path = Path(str(resources.files("depthjepa") / "studies" / f"{study}.yaml"))
    else:
        raise BadInput(f"there is no study {str(study)!r}{nearest(str(study), study_names())}; give a name or a file")
    content = read_recipe(path)
    content.setdefault("name", path.stem)
    base = content.get("base")
    if isinstance(base, str) and (path.parent / base).is_file():
        content["base"] = str(path.parent / base)
    known = [each.name for each in fields(Study)]
    faults = [f"unknown key {key!r}{nearest(str(key), known)}" for key in content if key not in known]
    try:
        return TypeAdapter(Study).validate_python({key: content[key] for key in content if key in known and not faults})
    except ValidationError as error:
        wrong = [] if faults else error.errors()
        faults += [f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}" for each in wrong]
    raise BadInput(f"{study}: {'; '.join(faults)}")


def resolve(study: Study) -> dict[str, RunConfig]:
    """The configuration of each arm, with the first seed; raises `BadInput` with every fault that can be known."""
    faults = [f"name {study.name!r} is to name a folder: letters, digits and . + = - _"] * (
        not NAME.fullmatch(study.name)
    )
    if not study.arms or not study.seeds:
        faults.append("a study needs at least one arm and one seed")
    faults += [f"{what} {each!r} is given twice" for what, each in _repeated(study)]
    faults += [fault for task in study.probes if (fault := probes.fault_of(task, probes.studied()))]
    faults += _claim_faults(study)
    content = read_recipe(study.base)
    found: dict[str, RunConfig] = {}
    for arm, settings in study.arms.items():
        try:
            _refuse_name(arm)
            _refuse_reserved(study, settings)
            config = build_config(content | {"name": arm, "seed": 0}, study.settings, settings)
            if study.minutes is not None:
                config = _of_length(config, None)
            threads = config.train.threads or max(1, torch.get_num_threads() // study.side_by_side)
            config = replace(config, train=replace(config.train, threads=threads))
            _refuse_unusable(config, study, checked=[other.data for other in found.values()])
            found[arm] = config
        except BadInput as fault:
            faults.append(f"arm {arm!r}: {fault}")
    if faults:
        raise BadInput(f"study {study.name}: {'; '.join(faults)}")
    return found


def _repeated(study: Study) -> Iterator[tuple[str, object]]:
    for what, values in (("seed", study.seeds), ("probe", study.probes)):
        yield from ((what, value) for value in dict.fromkeys(values) if values.count(value) > 1)


def _claim_faults(study: Study) -> Iterator[str]:
    """What is compared has to be an arm and a figure of the study."""
    for each in study.claims:
        for arm in (each.first, *each.against):
            if arm not in study.arms:
                yield f"claims: there is no arm {arm!r}{nearest(arm, study.arms)}"
        if each.first in each.against:
            yield f"claims: {each.first} is to stand against others, not against itself"
        task = each.measure.partition(".")[0]
        if task not in study.probes:
            yield (
                f"claims: {each.measure} is no figure of a probe of the study{nearest(task, study.probes)}: give "
                f"PROBE.KEY with one of {', '.join(study.probes) or 'its probes (there are none)'}"
            )


def _refuse_name(arm: str) -> None:
    if not NAME.fullmatch(arm) or arm in FILES:
        raise BadInput("the name is to name a folder: letters, digits and . + = - _, beginning with a letter or digit")
    if arm in probes.baselines():
        raise BadInput("tables have a row of this name that no run trained: choose another one")


def _refuse_reserved(study: Study, settings: Sequence[str]) -> None:
    reserved = {"seed": "`seeds`", "name": "the arm's name"}
    if study.minutes is not None:
        reserved |= dict.fromkeys(("train.steps", "train.epochs"), "`minutes`")
    for text in (*study.settings, *settings):
        if (key := text.partition("=")[0]) in reserved:
            raise BadInput(f"{key} is given by {reserved[key]} of a study, not by settings")


def _refuse_unusable(config: RunConfig, study: Study, checked: Sequence[Any]) -> None:
    """Meet the faults of a run and of its probes that need no training, without holding its weights."""
    source = open_source(config.data, "train")
    if config.data not in checked:  # listing a large folder takes a while
        _refuse_probes_without_data(config, study.probes)
    refuse_unusable_validation(config)
    refuse_frozen_without_head(config)
    runtime.device(config.train.device)
    if study.minutes is None:
        config.train.total_steps(steps_per_epoch(len(source), config.train.batch_size))
    TrainingBatches(
        source=source,
        data=config.data,
        masks=config.masks,
        grid=config.grid,
        seed=0,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        steps=1,
    )
    if config.train.objective == "jepa":
        sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(2), batch_index=0)
    teacher = build_teacher(config, has_depth=source.has_depth)
    with torch.device("meta"):  # shapes alone: a checkpoint's tensors are put in their place, whatever they were
        method = build_method(config, teacher, len(source.classes))
    if config.init.checkpoint:
        start_from(method, config)


def _refuse_probes_without_data(config: RunConfig, tasks: Sequence[str]) -> None:
    if not tasks:
        return
    train_source, val_source = open_source(config.data, "train"), open_source(config.data, "val")
    known = probes.studied()
    for task in [known[name] for name in tasks if name in known]:  # names that are none are told with the study's
        for need in task.needs:
            if lacking := need.lacking(task.name, config, train_source, val_source):
                raise BadInput(lacking)


def _of_length(config: RunConfig, steps: int | None) -> RunConfig:
    return replace(config, train=replace(config.train, steps=steps, epochs=None))


# running --------------------------------------------------------------------------------------------------


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
    _claim(study, configs, folder, resume=resume or shard[1] > 1)
    with runtime.interruptions() as stopping:
        failed = _measure_steps(study, configs, folder, measure or measure_seconds, stopping, say)
        order = [(arm, seed) for seed in study.seeds for arm in study.arms]
        mine = order[shard[0] :: shard[1]]
        left = [run for run in mine if run[0] not in failed and not is_done(run_place(folder, *run), study.probes)]
        reasons = {(arm, seed): failed[arm] for arm, seed in order if arm in failed}

        def claimed(content: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
            found = compare(study.claims, content, folder)
            return found, lines(found)

        content = write_tables(asked, folder, reasons, claimed)
        ends = _run_all(study, _with_steps(study, configs, folder), folder, left, stopping, say)
        with contextlib.closing(ends):  # whatever happens here, no run is left behind
            for run, reason in ends:
                if reason is not None:
                    reasons[run] = reason
                content = write_tables(asked, folder, reasons, claimed)
    if keep is not None:
        keep_results(asked, folder, Path(keep))
    return content


def _refuse_shard(study: Study, folder: Path, shard: tuple[int, int]) -> None:
    number, count = shard
    if not 0 <= number < count:
        raise BadInput(
            f"--shard {number}/{count}: the first of {count} parts is 0/{count}, the last {count - 1}/{count}"
        )
    if count > 1 and study.minutes is not None and not set(study.arms) <= set(known_steps(folder)):
        raise BadInput(
            f"arms of equal time ({study.minutes:g} min) have as many steps as one machine measures: start the study "
            f"on one machine, stop it when it trains, and share the folder {folder} (steps.json) with the shards"
        )


def _claim(study: Study, configs: Mapping[str, RunConfig], folder: Path, *, resume: bool) -> None:
    """Write down what the folder is for, or find out that it is for this study."""
    asked = plain(asdict(study) | {"configs": {arm: to_mapping(config) for arm, config in configs.items()}})
    file = folder / "study.yaml"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not resume:
            raise BadInput(f"{folder} is there already: go on with --resume, or choose another --out")
        if not file.is_file():
            raise BadInput(f"{folder} holds no study to go on with: study.yaml is not there; choose another --out")
        if changed := _changes(yaml.safe_load(file.read_text()), asked):
            raise BadInput(f"--resume with a changed study: {', '.join(changed)}; {folder} holds other values")
    write_whole(file, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What asks for other runs; `base` and settings count by what they resolve to, `side_by_side` not at all."""
    changed = [key for key in ("name", "seeds", "minutes", "probes") if before[key] != now[key]]
    one, other = before["configs"], now["configs"]
    changed += [f"arms.{arm}" for arm in dict.fromkeys((*one, *other)) if (arm in one) != (arm in other)]
    common = [arm for arm in one if arm in other]
    return changed + [f"arms.{arm}.{key}" for arm in common for key in differences(one[arm], other[arm])]


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
    waiting, running, ended = list(left), dict[tuple[str, int], tuple[SpawnProcess, float]](), total - len(left)
    if done := sum(is_done(run_place(folder, arm, seed), study.probes) for arm in study.arms for seed in study.seeds):
        say(f"{done} of {total} runs were finished before")
    try:
        while waiting or running:
            while waiting and len(running) < study.side_by_side and not stopping():
                arm, seed = run = waiting.pop(0)
                say(f"{arm}, seed {seed} starts (run {total - len(waiting)} of {total})")
                content = to_mapping(replace(configs[arm], seed=seed))
                running[run] = spawn(content, run_place(folder, *run), study.probes), time.perf_counter()
            wait([process.sentinel for process, _ in running.values()], POLL)
            if stopping():
                break
            for run in [run for run, (process, _) in running.items() if process.exitcode is not None]:
                process, begin = running.pop(run)
                reason, ended = why_failed(process, run_place(folder, *run)), ended + 1
                how = "finished" if reason is None else f"failed ({reason})"
                say(f"{run[0]}, seed {run[1]} {how} after {time.perf_counter() - begin:.0f} s ({ended} of {total})")
                yield run, reason
    finally:
        end([process for process, _ in running.values()])
    if stopping():
        done = sum(is_done(run_place(folder, arm, seed), study.probes) for arm in study.arms for seed in study.seeds)
        raise RunStopped(f"stopped with {done} of {total} runs finished; continue with --resume")


# equal time -----------------------------------------------------------------------------------------------


def _measure_steps(
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
            except RunStopped as fault:
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


def _with_steps(study: Study, configs: Mapping[str, RunConfig], folder: Path) -> dict[str, RunConfig]:
    if study.minutes is None:
        return dict(configs)
    return {arm: _of_length(configs[arm], each["steps"]) for arm, each in known_steps(folder).items()}
