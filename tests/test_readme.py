"""README can be followed: its tree is the package's, its commands and its Python run, links lead somewhere."""

from __future__ import annotations

import ast
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
from depthjepa.cli import app
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import SETTINGS, Call

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


def test_commands_of_readme_run(readers_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In README's order: later commands read what earlier ones wrote. What `--out` names is there afterwards."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)  # a second a run
    for words in of_depthjepa(README):
        status, _, errors = call(*words, *ADDED[f"depthjepa {words[0]}"])
        assert status == 0, f"depthjepa {shlex.join(words)}: {errors}"
        if "--out" in words:
            out = readers_folder / words[words.index("--out") + 1]
            assert out.is_file() or any(out.iterdir()), f"depthjepa {shlex.join(words)} wrote no {out.name}"


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
