"""A study as it is asked for: its file, the configuration of each arm, and all that is refused before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, field_validator

from depthjepa import runtime
from depthjepa.config.reading import IN_QUOTES, build_config, given_twice
from depthjepa.config.recipe_files import read_recipe, read_text
from depthjepa.config.run_config import RunConfig
from depthjepa.data.loading import open_source, open_splits
from depthjepa.data.order import steps_per_epoch
from depthjepa.distributed import Ranks
from depthjepa.evaluation.probes import Judged, judged_config
from depthjepa.evaluation.probes import table as probes
from depthjepa.evaluation.probes.task import Data
from depthjepa.faults import BadInput, nearest
from depthjepa.method import build_method, build_teacher
from depthjepa.run.checks import refuse_impossible
from depthjepa.settings import configuration
from depthjepa.study.claims import Comparison
from depthjepa.warm_start import start_from

FILES = ("study.yaml", "data.json", "data.npz", "steps.json", "study.json", "study.md")
NAME = re.compile(r"\w[\w.+=-]*", re.ASCII)


@configuration
class Study:
    """What a study file says; settings are KEY=VALUE, as behind the name of a recipe."""

    base: str
    """Recipe that all arms start from: a shipped one, or a file, relative to the study's folder."""
    arms: dict[str, tuple[str, ...]]
    """By the name of each arm its own settings, over those of the study; none: [], the base as it is."""
    seeds: tuple[NonNegativeInt, ...]
    """Seeds that each arm is trained with, or how many of them: 3 is 0, 1, 2."""
    name: str = "study"
    """Name in tables and of the folder; by default the file's."""
    about: str = ""
    """What is asked, in one sentence; it heads the table."""
    printed: str = ""
    """What the source paper has in the place of these figures."""
    settings: tuple[str, ...] = ()
    """Settings of all arms, over the base; settings behind the study's name lie over these."""
    minutes: PositiveFloat | None = None
    """Equal training time of each run [min]; null: as long as its configuration says."""
    side_by_side: PositiveInt = 1
    """Runs at a time; they share the threads of the machine."""
    probes: tuple[str, ...] = ()
    """Figures of each run: tasks of `depthjepa probe`, and diagnose."""
    judged: dict[str, tuple[str, ...]] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """Further probes of each run on other data, by their names: [TASK, DATA, KEY=VALUE, ...]."""
    claims: tuple[Comparison, ...] = ()
    """What is to be compared, fixed before the runs."""

    @property
    def asked(self) -> tuple[str | Judged, ...]:
        """All probes of each run."""
        further = (Judged(name, task, data, tuple(rest)) for name, (task, data, *rest) in self.judged.items())
        return (*self.probes, *further)

    @field_validator("judged")
    @classmethod
    def _task_and_data(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if short := [name for name, each in value.items() if len(each) < 2]:
            raise ValueError(f"should be [TASK, DATA, KEY=VALUE, ...], as {short[0]}: [depth, RGBD]")
        return value

    @field_validator("arms", mode="before")
    @classmethod
    def _lists_of_lists_are_one(cls, value: object) -> object:
        """Arms that share settings name them once, by an anchor: `[*paper, *dense]`; an empty arm changes nothing."""
        return {key: _flat(arm) for key, arm in value.items()} if isinstance(value, dict) else value

    @field_validator("seeds", mode="before", json_schema_input_type=int | tuple[int, ...])
    @classmethod
    def _count_or_list(cls, value: object) -> object:
        return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _flat(arm: object) -> object:
    if arm is None:
        return ()
    return list(_items(arm)) if isinstance(arm, list) else arm


def _items(arm: list[object]) -> Iterator[object]:
    for each in arm:
        if isinstance(each, list):
            yield from _items(each)
        else:
            yield each


def study_names() -> list[str]:
    """Names of the shipped studies."""
    folder = resources.files("depthjepa") / "studies"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_study(study: str | Path) -> Study:
    """Read a shipped study (by name) or a YAML file; raises `BadInput` with all faults of the file."""
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        read_text(path, "study")
    elif str(study) in study_names():
        path = Path(str(resources.files("depthjepa") / "studies" / f"{study}.yaml"))
    else:
        shipped = ", ".join(study_names())
        raise BadInput(
            f"there is no study {str(study)!r}{nearest(str(study), study_names())}; give a file, or one of {shipped}"
        )
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
        for each in [] if faults else error.errors():
            key = ".".join(map(str, each["loc"]))
            absent = each["type"] == "missing"
            said = each["msg"].replace("Input should", "should").replace("valid tuple", "list")
            said = said.replace("valid dictionary", "mapping of names to lists")
            quotes = f" ({IN_QUOTES})" if each["type"] == "string_type" and not isinstance(each["input"], dict) else ""
            faults.append(f"{key} is missing" if absent else f"{key}: {said}, got {each['input']!r}{quotes}")
    raise BadInput(f"{study}: {'; '.join(faults)}")


def with_settings(study: Study, settings: Sequence[str]) -> Study:
    """The study with further settings for all arms, in the place of its own of the same keys."""
    keys = {text.partition("=")[0] for text in settings}
    own = [text for text in study.settings if text.partition("=")[0] not in keys]
    return replace(study, settings=(*own, *settings))


def resolve(study: Study) -> dict[str, RunConfig]:
    """The configuration of each arm, with the first seed; raises `BadInput` with every fault that can be known."""
    faults = [f"name {study.name!r} is to name a folder: letters, digits and . + = - _"] * (
        not NAME.fullmatch(study.name)
    )
    if not study.arms or not study.seeds:
        faults.append("a study needs at least one arm and one seed")
    faults += [f"{what} {each!r} is given twice" for what, each in _repeated(study)]
    faults += [f"settings: {fault}" for fault in given_twice(study.settings)]
    tasks = [*study.probes, *(each.task for each in study.asked if isinstance(each, Judged))]
    faults += [fault for task in tasks if (fault := probes.fault_of(task, probes.studied()))]
    faults += [
        f"judged: {name!r} is to name a file that no probe has: letters, digits and + = - _"
        for name in study.judged
        if not NAME.fullmatch(name) or "." in name or "@" in name or name in probes.tasks()
    ]
    faults += _claim_faults(study)
    content = read_recipe(study.base)
    found: dict[str, RunConfig] = {}
    for arm, settings in study.arms.items():
        try:
            _refuse_name(arm)
            _refuse_reserved(study, settings)
            for fault in given_twice(settings):
                raise BadInput(fault)
            config = build_config(content | {"name": arm, "seed": 0}, study.settings, settings)
            if study.minutes is not None:
                config = of_length(config, None)
            config = with_threads(config, study.side_by_side)
            _refuse_unusable(config, study, checked=[other.data for other in found.values()])
            found[arm] = config
        except BadInput as fault:
            faults.append(f"arm {arm!r}: {fault}")
    if faults:
        raise BadInput(f"study {study.name}: {'; '.join(faults)}")
    return found


def with_threads(config: RunConfig, together: int) -> RunConfig:
    """The configuration of one of some runs side by side: their share of the machine's threads, unless it says."""
    threads = config.train.threads or max(1, torch.get_num_threads() // together)
    return replace(config, train=replace(config.train, threads=threads))


def _repeated(study: Study) -> Iterator[tuple[str, object]]:
    for what, values in (("seed", study.seeds), ("probe", study.probes)):
        yield from ((what, value) for value in dict.fromkeys(values) if values.count(value) > 1)


def _claim_faults(study: Study) -> Iterator[str]:
    """What is compared has to be an arm and a figure of the study."""
    for each in study.claims:
        others = (*study.arms, *probes.baselines())
        for arm, known_arms in ((each.first, study.arms), *((arm, others) for arm in each.against)):
            if arm not in known_arms:
                yield f"claims: there is no arm {arm!r}{nearest(arm, known_arms)}"
        if each.first in each.against:
            yield f"claims: {each.first} is to stand against others, not against itself"
        named, _, figure = each.measure.partition(".")
        task = named.partition("@")[0]  # of one of several data sets
        known = [*study.probes, *study.judged]
        kind = study.judged[task][0] if task in study.judged else task
        columns = probes.studied()[kind].columns if kind in probes.studied() else ()
        keys = [column.key for column in columns]
        if task not in known:
            yield (
                f"claims: {each.measure} is no figure of a probe of the study{nearest(task, known)}: give "
                f"PROBE.KEY with one of {', '.join(known) or 'its probes (there are none)'}"
            )
        elif not any(column.has(figure) for column in columns) and re.sub(r"\d+", "#", figure) not in (
            *keys,
            *(re.sub(r"\d+", "#", key) for key in keys),
        ):
            hint = nearest(figure, keys)
            yield f"claims: {task} probes have no figure {figure!r}{hint}: choose from {', '.join(keys)}"


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
    data = open_splits(config.data)
    source = data["train"]
    if config.data not in checked:  # listing a large folder takes a while
        _refuse_probes_without_data(config, study.probes)
        for each in [each for each in study.asked if isinstance(each, Judged)]:
            _refuse_judged(config, each)
    runtime.device(config.train.device)
    if study.minutes is None:
        config.train.total_steps(steps_per_epoch(len(source), config.train.batch_size))
    refuse_impossible(config, data, Ranks())
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


def _refuse_judged(config: RunConfig, judged: Judged) -> None:
    """Meet the faults of a probe on other data."""
    if judged.task in probes.studied():  # others are told with the study's
        Data(judged_config(config, judged)).refuse_lacking([probes.studied()[judged.task]])


def of_length(config: RunConfig, steps: int | None) -> RunConfig:
    return replace(config, train=replace(config.train, steps=steps, epochs=None))
