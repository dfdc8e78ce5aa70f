"""README can be followed: its tree is the package's, its commands and its Python run, links lead somewhere."""

from __future__ import annotations

import ast
import fnmatch
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import typer

from depthjepa import cost
from depthjepa.cli import USAGE, app
from depthjepa.commands.convert import convert
from depthjepa.config.keys import listings
from depthjepa.config.reading import build_fit, load_config
from depthjepa.config.recipe_files import read_recipe, recipe_names
from depthjepa.config.run_config import FIT_DEFAULTS, RunConfig, TeacherFitConfig, keys
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.table import TEACHERS
from depthjepa.study.keys import study_listing
from depthjepa.study.plan import load_study, study_names
from tiny_images import write_classes, write_flat, write_pairs
from tiny_onnx import write_onnx
from tiny_runs import GUIDED, SETTINGS, Call, run

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("releases/*.md")]
)
README = (ROOT / "README.md").read_text()


def link_releases(place: Path) -> Path:
    place.symlink_to(ROOT / "releases")
    return place


# README's commands are run one after the other in one folder, each with the settings of its row. A command that has no
# row here nor a reason not to be run is a fault.
FEW_STEPS = ("train.steps=5", "train.epochs=null", "train.precision=fp32", "evaluation.precision=fp32")
FEW_SCENES = ("data.scenes_train=32", "data.scenes_val=16")
ADDED: dict[str, tuple[str, ...]] = {
    "depthjepa demo": (*SETTINGS, *FEW_STEPS, *FEW_SCENES, "guidance.teacher_size=64"),
    "depthjepa train": (*SETTINGS, *FEW_STEPS),
    "depthjepa probe": (),
    "depthjepa diagnose": (),
    "depthjepa embed": (),
    "depthjepa predict": (),
    "depthjepa report": (),
}
NOT_RUN = {
    "pip install": "from a repository: `make wheel-check` installs the wheel",
    "git clone": "a repository",
    "cd depthjepa": "belongs to the clone",
    "make demo": "minutes: `make test-all` ends with it",
}
# What stands for the reader's own folders, by its name in README.
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "FOLDER": write_classes,
    "RGBD": write_pairs,
    "PHOTOGRAPHS": lambda place: write_flat(place, images=3, size=64),
    "releases": link_releases,
}
# README's Python is run as it stands but for this.
REPLACED = {'"train.steps=100"': ", ".join(f'"{setting}"' for setting in (*FEW_STEPS, *FEW_SCENES))}


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of each command in ```bash, sh and console fences, comments left out; console: what follows `$ `."""
    lines = [line for block in blocks(text, "(?:ba)?sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    words = [list(group) for line in lines for _, group in groupby(shlex.split(line, comments=True), "&&".__ne__)]
    return [command for command in words if command != ["&&"]]


def of_depthjepa(text: str) -> list[list[str]]:
    """The words that follow `depthjepa`."""
    return [words[1:] for words in commands(text) if words[0] == "depthjepa"]


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders that README speaks of."""
    for name, make in FOLDERS.items():
        make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def anchor(heading: str) -> str:
    """A heading's name in an address, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def test_the_tree_is_the_package_s() -> None:
    tree = runpy.run_path(str(ROOT / "tools" / "tree.py"))["tree"]()
    assert tree in README, "README's tree is another one: python tools/tree.py --write"


def test_every_folder_of_the_package_says_what_it_is() -> None:
    for file in (ROOT / "src" / "depthjepa").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_fences_are_of_languages_that_are_tested(page: Path) -> None:
    fences = re.findall(r"^```(.*)\n(?:.*\n)*?```$", page.read_text(), re.MULTILINE)
    assert set(fences) <= {"python", "bash", "sh", "console", "text", "yaml"}


def test_every_command_of_readme_is_run_or_has_a_reason_not_to() -> None:
    found = {" ".join(words[:2]) for words in commands(README)}
    assert len(found) >= 8
    assert found == ADDED.keys() | NOT_RUN.keys(), "README's commands and the rows of ADDED and NOT_RUN differ"


@pytest.mark.slow
def test_commands_of_readme_run(readers_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In README's order: later commands read what earlier ones wrote. What `--out` names is there afterwards."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)  # a second a run
    for words in of_depthjepa(README):
        status, _, errors = call(*words, *ADDED[f"depthjepa {words[0]}"])
        assert status == 0, f"depthjepa {shlex.join(words)}: {errors}"
        if "--out" in words:
            out = readers_folder / words[words.index("--out") + 1]
            assert out.is_file() or any(out.iterdir()), f"depthjepa {shlex.join(words)} wrote no {out.name}"


NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # that one speaks of what was


def printed(page: Path) -> list[str]:
    """The command lines of a page: of fences, of indented lines, and between backticks where arguments follow."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4}(depthjepa .*)$", text, re.MULTILINE)
    lines += [shlex.join(["depthjepa", *words]) for words in of_depthjepa(text)]
    lines += [" ".join(each.split()) for each in re.findall(r"`(depthjepa [a-z-]+ [^`]*)`", text)]
    return [line for line in lines if "…" not in line]


def words_of(line: str) -> list[str]:
    """The words behind `depthjepa`; `[--option A|B]` is given, with A."""
    words = shlex.split(re.sub(r"\[(--[^]]*)\]", r"\1", line), comments=True)[1:]
    return [word if "=" in word else word.partition("|")[0] for word in words]


def fault_of(words: list[str]) -> str | None:
    """What is wrong with a command line, found without running it: options, names, and what its settings lead to.

    A name in capitals stands for the reader's.
    """
    command, name = typer.main.get_command(app), ""
    while isinstance(command, typer.core.TyperGroup):
        if words[0] not in command.commands:
            return f"there is no command {words[0]}"
        name, *words = words
        command = command.commands[name]
    try:
        given = command.make_context(name, list(words)).params
    except (BadInput, USAGE) as fault:
        return str(fault)
    settings = given.get("overrides") or []
    try:
        if name == "train" and not given["recipe"].endswith(".yaml"):
            load_config(given["recipe"], settings)
        elif name == "study" and not given["study"].endswith(".yaml") and not given["study"].isupper():
            load_study(given["study"])
        elif name == "fit-teacher":
            build_fit(FIT_DEFAULTS, settings)
        elif name == "teach":
            TEACHERS.check(given["teacher"])
        elif name == "bench" and settings and "=" not in settings[0]:
            load_config(settings[0], settings := settings[1:])
        elif name == "recipes" and given["keys"]:
            listings(given["name"], [study_listing()])
        elif name == "recipes" and given["name"]:
            read_recipe(given["name"])
    except BadInput as fault:
        return str(fault)
    known = keys(TeacherFitConfig if name == "fit-teacher" else RunConfig)
    unknown = [text for text in settings if text.partition("=")[0] not in known]
    return f"no keys: {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_command_lines_of_a_page_are_the_command_line_s(page: Path, readers_folder: Path) -> None:
    faults = {line: fault for line in printed(page) if (fault := fault_of(words_of(line)))}
    assert not faults


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("depthjepa trian photos", "no command trian"),
        ("depthjepa train photo", "no recipe 'photo'"),
        ("depthjepa train photos --ot x", "--ot"),
        ("depthjepa train photos data.rot=x", "unknown key 'data.rot'"),
        ("depthjepa train photos guidance.control=image", "guidance.control"),
        ("depthjepa probe RUN lnear", "no probe 'lnear'"),
        ("depthjepa probe RUN depth evaluation.far=1", "no keys: evaluation.far=1"),
        ("depthjepa study nothing", "no study 'nothing'"),
        ("depthjepa bench photo", "no recipe 'photo'"),
        ("depthjepa recipes --keys optm", "no section or key 'optm'"),
        ("depthjepa prepare nyu SOURCE --out x", "no command nyu"),
    ],
)
def test_faults_of_a_printed_line_are_found(line: str, said: str) -> None:
    assert said in (fault_of(words_of(line)) or "")
    assert fault_of(words_of("depthjepa prepare kitti A --out B [--raw RAW] [--split C]")) is None


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_and_recipes_that_a_page_names_are_there(page: Path) -> None:
    """Between backticks; `guidance.teacher_*` stands for several keys."""
    known = {*keys(RunConfig), *keys(TeacherFitConfig)}
    sections = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    named = re.findall(rf"(?<=`)((?:{sections})\.[a-z_0-9*]+)(?=[=` ])", page.read_text())
    assert not [key for key in named if not fnmatch.filter(known, key)]
    shipped = [*recipe_names(), *study_names()]
    recipes = re.findall(r"(?<=`)((?:paper|ijepa)-[\w*-]+)(?=`)", page.read_text())
    assert not [name for name in recipes if not fnmatch.filter(shipped, name)]


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_that_a_page_starts_are_programs(page: Path) -> None:
    """`python -m depthjepa.cli` would do nothing, and end well."""
    started = re.findall(r"-m\s+(depthjepa[\w.]*)", page.read_text())
    assert set(started) <= {"depthjepa"}


# Pages of docs/ whose commands are run, one after the other in one folder: what is added to those that begin so, and
# what is not run. Settings that a page gives and that take long are replaced.
TINY = (
    *(text for text in SETTINGS if not text.startswith(("model.width", "model.heads"))),
    "model.width=64",
    "model.heads=1",
)
FIT = (
    "data.image_size=64",
    "fit.autoencoder_widths=[8, 8, 8, 8]",
    "fit.autoencoder_steps=2",
    "fit.width=32",
    "fit.multiples=[1]",
    "fit.steps=2",
    "fit.crops=8",
    "fit.batch_size=4",
    "fit.val_images=3",
)
TEACHING = (*TINY, *FEW_STEPS, "train.whitening_images=8")
RUN_PAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "checkpoints.md": {
        "convert plain.pth.tar": ("masks.bias=unbiased",),
        **dict.fromkeys(("train", "convert", "embed", "push"), ()),
    },
    "depth-probes.md": {"probe": ("evaluation.depth_steps=4",)},
    "pixel-guidance.md": {
        "train": (*TINY, *FEW_STEPS),
        "diagnose": ("evaluation.gate_steps=0",),
        **dict.fromkeys(("probe", "predict", "show"), ()),
    },
    "teachers.md": {"train": TEACHING, "teach": (), "fit-teacher": FIT},
}
SHORTER = {"train.epochs=300": "train.epochs=3", "guidance.teacher_size=256": "guidance.teacher_size=64"}
EXTRAS = {
    "checkpoints.md": ("transformers", "timm", "onnx", "onnxruntime"),
    "teachers.md": ("diffusers", "onnx", "onnxruntime"),
}
PAGES_NOT_RUN = {
    "train paper-feature-pretrained": "a ViT-H",
    "push RUN OWNER/NAME --licence apache-2.0 #": "a hub: test_push.py has one",
    **dict.fromkeys(
        ("train photos --out runs/guided", "probe timm:", "train photos data.root=PHOTOGRAPHS init"), "a hub"
    ),
}


def write_dino(place: Path) -> Path:
    """A small DINOv2 of random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(place)
    return place


def make(name: str, place: Path) -> Path:
    """What a page of docs/ reads and does not write: pairs, and runs, the plain one as the released file as well."""
    if name == "NYU":
        return write_pairs(place)
    if name == "NAME.onnx":
        return write_onnx(place)
    if name == "DINO_FOLDER":
        return write_dino(place)
    pairs = place.parents[name.count("/")] / "RGBD"
    if name.endswith(".pth.tar"):
        convert(str(make("runs/released", place.parent / "runs" / "released")), place, "reference")
    elif not place.exists():
        run(pairs, place, *TINY[-2:], "train.steps=2", *(GUIDED if name == "RUN" else ()))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_PAGES)
def test_commands_of_a_page_run(name: str, readers_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    for module in EXTRAS.get(name, ()):
        pytest.importorskip(module)
    page, ran = ROOT / "docs" / name, 0
    lines = re.findall(r"^ {4}depthjepa (.*)$", page.read_text().replace("\\\n", " "), re.MULTILINE)
    for needed in ("NYU", "RUN", "NAME.onnx", "DINO_FOLDER", "runs/mine", "runs/plain", "IN1K-vit.h.14-300e.pth.tar"):
        if any(re.search(rf"[ =]{re.escape(needed)}(?: |$)", line) for line in lines):
            make(needed, readers_folder / needed)
    for line in map(" ".join, map(str.split, lines)):
        if line.startswith(tuple(PAGES_NOT_RUN)):
            continue
        added = next(settings for start, settings in RUN_PAGES[name].items() if line.startswith(start))
        words = [SHORTER.get(word, word) for word in words_of(f"depthjepa {line}")]
        status, _, errors = call(*words, *added)
        assert status == 0, f"depthjepa {shlex.join(words)}: {errors}"
        ran += 1
    assert ran


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_of_readme_runs(readers_folder: Path, code: str) -> None:
    for old, new in REPLACED.items():
        code = code.replace(old, new)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_is_replaced_in_readme_s_python_is_there() -> None:
    code = "".join(blocks(README, "python"))
    assert code
    assert all(old in code for old in REPLACED)


def test_table_of_commands_is_the_command_line_s() -> None:
    """Each command of the table that is called by its name there; `embed RUN FOLDER`, `predict …` are two."""
    group = typer.main.get_command(app)
    table = re.search(r"^\| command \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table is not None
    named = {name for row in table[1].splitlines() for name in re.findall(r"`([a-z-]+)", row.split("|")[1])}
    assert named == set(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, part = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target} is not there"
        if part:
            headings = [anchor(line.lstrip("#")) for line in file.read_text().splitlines() if line.startswith("#")]
            assert part in headings, f"{target}: {file.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_results_that_a_page_names_are_kept(page: Path) -> None:
    for name in re.findall(r"`results/([\w.*/-]+)`", page.read_text()):
        assert list((ROOT / "results").glob(name.rstrip("/"))), f"results/{name} is not there"


def test_contributing_names_files_and_folders_that_are_there() -> None:
    """Files called `my…` are the reader's own."""
    named = re.findall(r"`((?:src|tests|tools)/[\w/.-]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    there = [name for name in named if not Path(name).name.startswith("my")]
    assert len(there) > 10
    assert not [name for name in there if not (ROOT / name).exists()]
